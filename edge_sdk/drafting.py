"""The local answer: a prompt within the budget, its generation under a judge's eyes, and its citations.

Also says what a calibration of such answers depends on. Knows nothing of retrieval, remotes or stores.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Event as Flag
from typing import TYPE_CHECKING, SupportsIndex, get_args

from .choices import RULE as OFFER
from .choices import choices, completed, held
from .citations import CitedText, is_refusal, resolve_citations
from .confidence.setup import SIGNALS_HASH, Setup, short_hash
from .conversation import Conversation
from .engines.engine import Engine
from .errors import ConfigError
from .evidence import RULE, choose
from .judge import Judge
from .prompt import NOT_FOUND, NOT_SURE, Prompt, Reading, Style, build_prompt, whole
from .records import Answer, Event, GenerateOptions, Hit, Message, Passage, Timings, TokenCounts
from .repetition import Repetition

if TYPE_CHECKING:
    from .evidence import Encode
    from .readers.extract import Extract


@dataclass(frozen=True, slots=True)
class Draft:
    """The local answer before the decision on it; empty when none was generated, or not to its end."""

    cited: CitedText = field(default_factory=lambda: CitedText("", (), 0))
    reasons: tuple[str, ...] = ()
    prefill_ms: float | None = None
    decode_ms: float | None = None
    tokens: TokenCounts = field(default_factory=TokenCounts)
    passages: tuple[Passage, ...] = ()
    usable: bool = False
    model: str = ""


@dataclass(frozen=True, slots=True)
class Manner:
    """How an answer is wanted; see `Edge.stream`. Raises `ConfigError` for what is no such thing."""

    style: Style = "full"
    max_tokens: int = 256
    conversation: Conversation | None = None
    cancel: Flag | None = None
    hold: int | None = 0

    def __post_init__(self) -> None:
        checks = (
            ("style", self.style in get_args(Style), " or ".join(get_args(Style))),
            (
                "max_tokens",
                isinstance(self.max_tokens, SupportsIndex) and self.max_tokens >= 1,
                "a whole number from 1",
            ),
            ("conversation", isinstance(self.conversation, Conversation | None), "a Conversation"),
            ("cancel", isinstance(self.cancel, Flag | None), "a threading.Event"),
            ("hold", isinstance(self.hold, SupportsIndex | None), "a number of tokens, or None"),
        )
        for name, fine, wanted in checks:
            if not fine:
                raise ConfigError(f"{name} is {getattr(self, name)!r}", hint=f"use {wanted}")


class _Stop(Flag):
    """Ends a generation where the user cancels it, and where it is set."""

    def __init__(self, user: Flag | None) -> None:
        super().__init__()
        self._user = user

    @property
    def by_user(self) -> bool:
        """Whether the user did."""
        return self._user is not None and self._user.is_set()

    def is_set(self) -> bool:
        return self.by_user or super().is_set()


@dataclass(frozen=True, slots=True)
class Drafter:
    """A language model that answers from passages; `reading` and `sampling` are how it does that best.

    With `encode` the sentences that are chosen, where any are to be, are compared with the question by vectors too.
    """

    engine: Engine
    reading: Reading
    sampling: GenerateOptions = field(default_factory=GenerateOptions)
    encode: Encode | None = None

    def draft(
        self, question: str, hits: Sequence[Hit], judge: Judge, manner: Manner, extract: Extract | None = None
    ) -> Generator[Event, None, Draft]:
        """Generate the local answer; the judge decides on the whole, or has it given up on the way.

        `extract`, what a reader found in the first of the hits, helps to choose sentences, and gives the answers
        that an extractive model chooses from.
        Only what is served becomes a turn of the conversation.
        """
        prompt, notices = self._prompt(question, hits, manner, extract)
        yield from (Event("notice", text) for text in notices)
        offered = self._offered(extract, hits, prompt, manner)
        options = replace(self.sampling, max_tokens=manner.max_tokens, choices=offered or self.sampling.choices)
        stop = _Stop(manner.cancel)
        generation = self.engine.generate(prompt.text, options, stop)
        read = tuple(hit.passage for hit in prompt.passages)
        pieces: list[str] = []
        shown, hold = 0, None if offered else manner.hold  # what is chosen may still be completed
        repetition, fresh = Repetition(), None
        try:
            for token in generation:
                pieces.append(token.text)
                if judge.sees(token):
                    return Draft(tokens=TokenCounts(prompt.tokens, 0, len(pieces)), passages=read)
                if fresh is None and (fresh := repetition.grow(token.text)) is not None:
                    stop.set()
                if hold is not None and len(pieces) > hold and (text := "".join(pieces[shown:])):
                    shown = len(pieces)
                    yield Event("provisional", text)
        finally:
            generation.close()
        end = generation.result
        if fresh is not None and not stop.by_user:
            end = replace(end, finish_reason="length")  # as if the limit had come there
        said = "".join(pieces)[:fresh].strip()
        raw = completed(said, offered or (), end)
        cited = resolve_citations(raw, prompt.passages)
        refusal = is_refusal(cited.text)
        judge.ends(
            cited.text,
            prompt.passages,
            finish_reason=end.finish_reason,
            refusal=refusal,
            choice_held=None if offered is None else held(raw, offered, end),
        )
        served = judge.decision.route == "local" and end.finish_reason != "cancelled"
        if manner.conversation is not None and served:
            labels = [hit.passage.label for hit in prompt.passages]
            manner.conversation.append(question, prompt.messages[-1], raw, labels)
        return Draft(
            cited,
            (
                *self._read(prompt, offered or ()),
                *_completed(said, raw),
                *_reasons(cited, end.finish_reason, repeats=fresh is not None),
            ),
            end.prefill_ms,
            end.decode_ms,
            TokenCounts(end.prompt_tokens, end.cached_tokens, end.completion_tokens),
            read,
            usable=bool(cited.text) and not refusal,
            model=self.engine.name,
        )

    def setup(self, retrieval: str, encoder: str, style: Style = "full", *, reader: str = "none") -> Setup:
        """What a calibration of these answers is filed under; the names say what finds the passages and reads them.

        How many tokens an answer may take is no part of it, nor that a loop ends early: to be cut is a signal.
        """
        passage = Passage(1, "d", "Title", "Heading", "The text of a passage.", 0, 22)
        chosen = self.reading.evidence_tokens
        helped = ("" if self.encode else " without vectors") + (" and a reader" if reader != "none" else "")
        sentences = f", {chosen} of {RULE}{helped}" if chosen else ""
        offer = f", {OFFER}" if self.reading.extractive and reader != "none" else ""
        sampler = [repr(replace(self.sampling, max_tokens=1)), *map(repr, self.sampling.choices)]
        probe = self._build("What does it say?", [Hit(passage, 1.0)], style, self.engine.context, ())
        return Setup(
            {
                "model": self.engine.fingerprint,
                "prompt": short_hash(probe.text),
                "passages": f"{self.reading.prompt_tokens} tokens of a prompt, context {self.engine.context}"
                + sentences
                + offer,
                "sampler": short_hash("".join(sampler)),
                "retrieval": retrieval,
                "encoder": encoder,
                "reader": reader,
                "signals": SIGNALS_HASH,
            }
        )

    def _prompt(
        self, question: str, hits: Sequence[Hit], manner: Manner, extract: Extract | None
    ) -> tuple[Prompt, list[str]]:
        """The prompt of this turn; turns for which the context has no room are dropped, oldest first, and named."""
        engine, reading, conversation = self.engine, self.reading, manner.conversation
        room = engine.context - manner.max_tokens
        notices: list[str] = []
        past = 0
        if conversation is not None:
            dropped, past = self._left_out(conversation.messages, room - reading.prompt_tokens)
            for _ in range(dropped):
                conversation.drop_oldest()
                notices = [f"the conversation is longer than {room} tokens; the oldest turns were left out"]
        history = conversation.messages if conversation is not None else ()
        budget = min(room, past + reading.prompt_tokens)
        if not reading.evidence_tokens:
            return self._build(question, hits, manner.style, budget, tuple(history), room), notices
        earlier = conversation.last_question if conversation is not None else None
        asked = f"{earlier}\n{question}" if earlier else question  # "And when?" has no words of its own
        likely = extract.likely if extract is not None else ()
        excerpts = choose(
            asked, hits, reading.evidence_tokens, count=engine.count, encode=self.encode, likely=likely
        )
        texts = {excerpt.hit: excerpt.text for excerpt in excerpts}
        prompt = self._build(question, list(texts), manner.style, budget, tuple(history), room, texts.__getitem__)
        return replace(prompt, left_out=len(hits) - len(prompt.passages)), notices

    def _offered(
        self, extract: Extract | None, hits: Sequence[Hit], prompt: Prompt, manner: Manner
    ) -> tuple[tuple[str, float], ...] | None:
        """The answers that the model is to choose from; None where it is not to choose, or is held already.

        A reader knows no earlier turns, so it may not say what a question that follows up is answered with.
        """
        sampling, follows = self.sampling, manner.conversation is not None and manner.conversation.turns
        held_already = sampling.choices or sampling.json_schema or sampling.grammar
        if extract is None or not self.reading.extractive or follows or held_already:
            return None
        return choices(extract, hits, prompt, numbered=self.reading.numbered and manner.style == "full")

    def _read(self, prompt: Prompt, offered: Sequence[object]) -> Iterator[str]:
        sentences = "sentences of " if self.reading.evidence_tokens else ""
        yield f"read {sentences}{len(prompt.passages)} passages in {prompt.tokens} prompt tokens"
        if offered:
            yield f"was to choose among {len(offered)} answers in the reader's words"

    def _left_out(self, history: Sequence[Message], room: int) -> tuple[int, int]:
        """How many of the oldest turns have to go so that the others fit, and the tokens of these.

        By bisection, for every count reads the text.
        """

        def tokens(turns: int) -> int:
            rest = history[2 * turns :]
            return self.engine.count(self.engine.render(rest)) if rest else 0

        least, most, size = 0, len(history) // 2, 0
        if not history or (size := tokens(0)) <= room:
            return 0, size
        size = 0
        while most - least > 1:
            middle = (least + most) // 2
            found = tokens(middle)
            least, most, size = (least, middle, found) if found <= room else (middle, most, size)
        return most, size

    def _build(
        self,
        question: str,
        hits: Sequence[Hit],
        style: Style,
        budget: int,
        history: Sequence[Message],
        limit: int | None = None,
        shown: Callable[[Hit], str] = whole,
    ) -> Prompt:
        return build_prompt(
            question,
            hits,
            render=self.engine.render,
            count=self.engine.count,
            budget=budget,
            limit=budget if limit is None else limit,
            style=style,
            numbered=self.reading.numbered,
            history=history,
            shown=shown,
        )


def local_answer(judge: Judge, draft: Draft, *more: str) -> Answer:
    """The draft as the answer that is served, with what was decided on it and `more` reasons."""
    why = judge.explanation
    unknown = () if why.probability is not None else (f"probability unknown: {why.note}",)
    return Answer(
        text=draft.cited.text,
        citations=draft.cited.citations,
        probability=why.probability,
        route="local",
        reasons=(*judge.decision.reasons, *draft.reasons, *more, *unknown),
        timings=Timings(),
        tokens=draft.tokens,
        model=draft.model,
        read=tuple(passage.id for passage in draft.passages),
        dropped_citations=draft.cited.dropped,
    )


def abstention(reasons: tuple[str, ...], draft: Draft) -> Answer:
    """What is said in place of a draft that is not served."""
    return Answer(
        text=NOT_SURE if draft.usable else NOT_FOUND,
        citations=(),
        probability=None,
        route="abstain",
        reasons=reasons,
        timings=Timings(),
        tokens=draft.tokens,
        model="",
    )


def _completed(said: str, given: str) -> Iterator[str]:
    if said != given:
        yield f"chose {said!r}, and gave what agrees better with all that was likely"


def _reasons(cited: CitedText, finish_reason: str, *, repeats: bool) -> Iterator[str]:
    if finish_reason == "length":
        yield "cut where it began to repeat itself" if repeats else "cut at the token limit"
    if finish_reason == "cancelled":
        yield "cancelled"
    if cited.dropped:
        yield f"{cited.dropped} citations pointed at no passage and were dropped"
    if not cited.citations:
        yield "no sentence of the passages holds the answer's words"
