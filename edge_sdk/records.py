"""The frozen records that pass between modules. No behaviour beyond simple derived values, no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
Route = Literal["local", "remote", "queued", "abstain"]
FinishReason = Literal["stop", "length", "cancelled"]


# --- generation -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """How to sample. `temperature == 0` is greedy; then `top_k`, `top_p`, `min_p` and `seed` have no effect.

    Each of the `choices` has what speaks for it beforehand, in nats; it counts as the model's log-probability.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    json_schema: str | None = None  # a JSON Schema document as text
    grammar: str | None = None  # GBNF
    # Texts to choose one of, greedily; at most one of the three. Not shown: calibrations are filed under the rest.
    choices: tuple[tuple[str, float], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token with its confidence signals, all from the raw logits (before sampling), in nats.

    But of choices `entropy` and `margin` are those of the texts that could still be taken, with their weights.

    `text` may be empty: bytes of an unfinished character, and text that may become a stop string, are held
    back and come with a later token. `logprob` is of the chosen token, `entropy` of the whole distribution,
    `margin` the log-probability of the best token less that of the second best (so never negative).
    """

    id: int
    text: str
    logprob: float
    entropy: float
    margin: float


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """How a generation ended. `cached_tokens` of `prompt_tokens` were reused from the KV cache.

    `drafted_tokens` were verified in batches, and `accepted_tokens` of them are part of the answer. `shares` are
    the probabilities of the choices, in their order, as far as the answer came.
    """

    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    prefill_ms: float
    decode_ms: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    shares: tuple[float, ...] = ()


# --- documents --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a document: `text[start:end]` (characters) under the headings that lead to it."""

    start: int
    end: int
    headings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """A document as plain text. `sections` are in order, do not overlap, and may leave gaps."""

    name: str  # what the user sees and cites: a path as given, or `py:json`
    title: str
    text: str
    sections: tuple[Section, ...]
    content_hash: str  # sha256 of the source bytes, hexadecimal
    media_type: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage before it is stored: `text == document.text[start:end]`."""

    text: str
    start: int
    end: int
    heading: str  # the headings joined by " › ", or ""


OPEN_LABELS = ("", "public")
"""Labels of passages that may leave when passages are sent; every other one, known or not, keeps its turn here."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A stored passage. `text` is exactly the document's `text[start:end]`, offsets in characters."""

    id: int
    document: str
    title: str
    heading: str
    text: str
    start: int
    end: int
    label: str = ""  # its own or its document's: "public", "private", or "" for neither

    @property
    def open(self) -> bool:
        """Whether its text may leave the device when passages are sent."""
        return self.label in OPEN_LABELS


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """A row of `edge list`."""

    name: str
    title: str
    media_type: str
    characters: int
    passages: int
    content_hash: str
    added_at: str  # UTC, ISO 8601
    label: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved passage. Ranks count from 1; None where that ranking did not return the passage.

    `score` is the fused one that orders the hits; `bm25` is larger for better; `similarity` is the cosine.
    """

    passage: Passage
    score: float
    bm25_rank: int | None = None
    bm25: float | None = None
    vector_rank: int | None = None
    similarity: float | None = None


@dataclass(frozen=True, slots=True)
class AddReport:
    """What happened to one document. `status` is `added`, `updated`, `unchanged` or `failed`."""

    name: str
    status: Literal["added", "updated", "unchanged", "failed"]
    passages: int = 0
    error: str = ""


# --- answers ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Citation:
    """Evidence for an answer: `quote` is the document's `text[start:end]`.

    `by` is `model` when the answer itself carried `[number]`, `match` when the runtime found the answer's
    words in the passage, because it carried none or one on a passage that does not say it.
    """

    number: int
    document: str
    start: int
    end: int
    quote: str
    heading: str
    by: Literal["model", "match"]


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds of each step; None where the step did not run."""

    retrieve_ms: float | None = None
    read_ms: float | None = None  # by the reader
    prefill_ms: float | None = None
    decode_ms: float | None = None
    remote_ms: float | None = None


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Prompt tokens, how many of them came from the KV cache, and generated tokens."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


@dataclass(frozen=True, slots=True)
class RemoteReply:
    """How a remote call ended. Token counts are the server's own, None when it reports none."""

    text: str
    model: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    milliseconds: float
    logprobs: tuple[float, ...] = ()  # one natural logarithm a token, where the server was asked and tells them


@dataclass(frozen=True, slots=True)
class Contribution:
    """A part of a probability: a signal, its value (None: not measured), and what it adds to the log-odds."""

    signal: str
    value: float | None
    log_odds: float
    what: str


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A calibration question near the one that is asked; `right` is whether its local answer was."""

    question: str
    right: bool
    similarity: float


@dataclass(frozen=True, slots=True)
class Reckoning:
    """A probability and what it is made of: `intercept` and `contributions` add up to its log-odds."""

    probability: float
    intercept: float
    contributions: tuple[Contribution, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a question went where it did.

    `intercept` and the `contributions`, the largest first, add up to the log-odds of `probability`, which the local
    answer had at `stage`; without a calibration there are none, and `note` says why. The answer is served locally
    from a probability of `threshold` on, which has its origin in `promise`; where that is about regret, from such a
    probability on that nothing is lost by serving it, `no_regret`, if known: it is right, or the `remote` is not.
    """

    stage: Literal["before", "during", "after"]
    probability: float | None = None
    intercept: float = 0.0
    contributions: tuple[Contribution, ...] = ()
    threshold: float | None = None
    promise: str = ""
    nearest: tuple[Neighbour, ...] = ()
    note: str = ""
    remote: Reckoning | None = None
    no_regret: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of one question.

    `probability` is that of the local answer being right, fitted on this very set-up, and None where there is no
    calibration for it. `id` names the decision in the store.
    """

    text: str
    citations: tuple[Citation, ...]
    probability: float | None
    route: Route
    reasons: tuple[str, ...]
    timings: Timings
    tokens: TokenCounts
    model: str
    hits: tuple[Hit, ...] = ()
    read: tuple[int, ...] = ()  # ids of the passages that were in the prompt
    dropped_citations: int = 0  # numbers that point at no passage
    left_device: Mapping[str, int] = field(default_factory=dict)  # what was sent to a remote: name to characters
    id: str = ""
    signals: Mapping[str, float] = field(default_factory=dict)  # what was measured; see `confidence.signals`
    explanation: Explanation | None = None

    def explain(self) -> str:
        """The decision in lines for people: route, reasons, contributions, threshold, neighbours, what was sent."""
        return "\n".join(_explained(self))

    def decision(self) -> dict[str, Any]:
        """What is kept of it, as JSON values: where it went and why, and nothing of what was said."""
        return {
            "id": self.id,
            "route": self.route,
            "model": self.model,
            "probability": self.probability,
            "reasons": self.reasons,
            "left_device": dict(self.left_device),
            "explanation": None if self.explanation is None else asdict(self.explanation),
        }


def _parts(intercept: float, contributions: Sequence[Contribution]) -> Iterator[str]:
    yield f"  {intercept:+.2f}  log-odds to begin with"
    for part in contributions:
        value = "not measured" if part.value is None else f"{part.value:.3g}"
        yield f"  {part.log_odds:+.2f}  {part.signal} = {value}: {part.what}"


def _explained(answer: Answer) -> Iterator[str]:
    why = answer.explanation or Explanation("before", note="nothing was kept")
    yield f"route: {answer.route}" + (f" ({answer.model})" if answer.model else "")
    yield from (f"  because {reason}" for reason in answer.reasons)
    if why.probability is None:
        yield f"probability: unknown ({why.note})"
    else:
        yield f"probability that the local answer is right: {why.probability:.3f} (decided {why.stage} generating)"
        yield from _parts(why.intercept, why.contributions)
        if (remote := why.remote) is not None:
            yield f"probability that the remote's answer is right: {remote.probability:.3f}"
            yield from _parts(remote.intercept, remote.contributions)
        if why.no_regret is not None:
            yield f"probability that the remote would do no better, which decides: {why.no_regret:.3f}"
        served = "no threshold is set" if why.threshold is None else f"served locally from {why.threshold:.3f} on"
        yield f"threshold: {served}" + (f". {why.promise}" if why.promise else "")
        for near in why.nearest:
            verdict = "right" if near.right else "wrong"
            yield f"  near ({near.similarity:.2f}), answered {verdict}: {near.question}"
    sent = ", ".join(f"{name} ({count} characters)" for name, count in answer.left_device.items())
    yield f"left the device: {sent or 'nothing'}"


EventKind = Literal["retrieved", "provisional", "notice", "handoff", "final"]


@dataclass(frozen=True, slots=True)
class Event:
    """One step of a streamed answer.

    `retrieved` carries `hits`; `provisional` carries the next piece of `text`; `notice` is a sentence for the
    user (a conversation had to be shortened); `handoff` says in `text` why the provisional text is dropped, and
    pieces that follow come from the remote; `final` carries `answer` and ends the stream.
    """

    kind: EventKind
    text: str = ""
    hits: tuple[Hit, ...] = ()
    answer: Answer | None = None
