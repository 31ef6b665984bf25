"""The gate that everything passes on its way to a remote: what may leave, in which words, or why nothing does.

It fails closed: whatever raises, nothing is sent. Whether to ask a remote is decided before, from numbers; here the
words of retrieved passages can only take something away. It knows nothing of remotes, budgets or models.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..errors import ConfigError, MissingExtraError, PrivacyError
from ..records import OPEN_LABELS, Message, Passage
from .detectors import Detector, Finding, find
from .pseudonyms import Vault, drop, is_marked

Mode = Literal["local_only", "prefer_local", "ask", "prefer_remote"]
Send = Literal["question", "selected", "all"]
Level = Literal["pseudonymise", "redact"]

LONGEST = 100_000  # characters; the detectors take about 3 seconds for the worst text of this size

_INSTRUCTIONS = "Answer the question briefly and truthfully. If you do not know, say so."
_WITH_PASSAGES = " Use the numbered passages where they help."
_WITH_MARKS = (
    " Words like NAME_1 stand for private values: write them as they are. Marks like [KEY] stand for secrets."
)


@dataclass(frozen=True, slots=True)
class PrivacyPolicy:
    """What the user allows.

    `mode`: `local_only` sends nothing, ever; `ask` asks the consent hook each time; the other two send without
    asking, and differ only in how readily the router turns to the remote. `send`: the `question` alone, with the
    `selected` passages of this turn's prompt, or `all`, earlier turns too. `level`: private values become
    pseudonyms that are put back in the reply, or are taken out for good. Raises `ConfigError` for any other value.
    """

    mode: Mode = "local_only"
    send: Send = "question"
    level: Level = "pseudonymise"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("privacy mode", self.mode, get_args(Mode)),
            ("what to send", self.send, get_args(Send)),
            ("privacy level", self.level, get_args(Level)),
        ):
            if value not in known:
                raise ConfigError(f"{name} is {value!r}", hint=f"use one of {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class PastTurn:
    """An earlier turn: the question as typed, the reply as shown, and the labels of the passages in its prompt."""

    question: str
    reply: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What may be sent, word for word. `payload` is the body of the request, and `sha256` is of those bytes.

    `contents` has the characters of each part (`question`, `passages`, `history`) after redaction, `entities` how
    many values of each kind were replaced, `passages` the ids of those that are in.
    """

    messages: tuple[Message, ...]
    payload: bytes = field(repr=False)
    sha256: str
    contents: Mapping[str, int]
    entities: Mapping[str, int]
    passages: tuple[int, ...]
    vault: Vault

    def describe(self) -> dict[str, object]:
        """For a ledger or a screen: everything but the words."""
        return {
            "contents": dict(self.contents),
            "entities": dict(self.entities),
            "passages": list(self.passages),
            "bytes": len(self.payload),
            "sha256": self.sha256,
        }


@dataclass(frozen=True, slots=True)
class Withheld:
    """Nothing leaves, and `reason` is the sentence that says why; it quotes nothing private."""

    reason: str
    cause: Literal["mode", "label", "consent", "content", "failure"]


Consent = Callable[[Outgoing], bool]
"""Asked in mode `ask` with the exact payload; only True is a yes."""
Preview = Callable[[Sequence[Message]], bytes]
"""Messages to the body of the request, as `OpenAIRemote.preview` makes it."""


def prepare(
    policy: PrivacyPolicy,
    question: str,
    passages: Sequence[Passage] = (),
    history: Sequence[PastTurn] = (),
    *,
    earlier: Iterable[str] = (),
    vault: Vault | None = None,
    preview: Preview | None = None,
    consent: Consent | None = None,
    detectors: Sequence[Detector] = (),
) -> Outgoing | Withheld:
    """What may be sent of a turn, or why nothing may.

    `passages` are those in this turn's prompt and `history` the earlier turns, whether they are to be sent or not:
    one private passage among them keeps the whole turn on the device, and so does one of the `earlier` labels, of
    turns that were left out. `vault` is the conversation's, so that a
    value keeps its pseudonym from turn to turn. `detectors` are further layers; the rules are always the first.
    Without `preview` the payload is the messages as JSON. Raises nothing but what interrupts the program.

    >>> policy = PrivacyPolicy(mode="prefer_local")
    >>> outgoing = prepare(policy, "Is jo@x.de a valid address?")
    >>> outgoing.messages[-1].content, dict(outgoing.entities)
    ('Is EMAIL_1 a valid address?', {'EMAIL': 1})
    >>> prepare(PrivacyPolicy(), "Is jo@x.de a valid address?").reason
    'the privacy mode is local_only: nothing leaves this device'
    """
    vault = Vault() if vault is None else vault
    try:
        used = [label for turn in history for label in turn.labels]
        labels = [passage.label for passage in passages], [*used, *earlier]
        refusal = _refusal(policy, *labels, asked=consent is not None)
        if refusal is not None:
            return refusal
        outgoing = _outgoing(policy, question, passages, history, vault, preview or _as_json, (find, *detectors))
    except (PrivacyError, MissingExtraError) as error:  # ours: their messages quote nothing
        return Withheld(f"the privacy check failed, nothing was sent: {error}", "failure")
    except Exception as error:
        return Withheld(f"the privacy check failed ({type(error).__name__}), nothing was sent", "failure")
    if policy.mode != "ask" or consent is None:
        return outgoing
    try:
        agreed = isinstance(outgoing, Withheld) or consent(outgoing) is True
    except Exception as error:
        return Withheld(f"asking for consent failed ({type(error).__name__}), nothing was sent", "failure")
    return outgoing if agreed else Withheld("you did not agree to what was to be sent", "consent")


def _refusal(
    policy: PrivacyPolicy, labels: Sequence[str], earlier: Sequence[str], *, asked: bool
) -> Withheld | None:
    """Why nothing may leave, whatever it says: this takes labels and settings, and no word of any text."""
    if policy.mode not in ("prefer_local", "ask", "prefer_remote"):
        return Withheld(f"the privacy mode is {policy.mode}: nothing leaves this device", "mode")
    if policy.mode == "ask" and not asked:
        return Withheld("the privacy mode is ask, and there is nobody to ask", "consent")
    for used, where in ((labels, "in this question's prompt"), (earlier, "used earlier in this conversation")):
        closed = [label for label in used if label not in OPEN_LABELS]
        if closed:
            name = (
                "private" if "private" in closed else f"labelled {str(closed[0])[:40]!r}, which counts as private"
            )
            return Withheld(f"a passage {where} is {name}: nothing of this turn leaves", "label")
    return None


def _outgoing(
    policy: PrivacyPolicy,
    question: str,
    passages: Sequence[Passage],
    history: Sequence[PastTurn],
    vault: Vault,
    preview: Preview,
    detectors: Sequence[Detector],
) -> Outgoing | Withheld:
    sent = tuple(passages) if policy.send in ("selected", "all") else ()
    past = tuple(history) if policy.send == "all" else ()
    texts = [question, *(_passage_text(number, each) for number, each in enumerate(sent, 1))]
    texts += [text for turn in past for text in (turn.question, turn.reply)]
    if not question.strip():
        return Withheld("there is no question to send", "content")
    if sum(map(len, texts)) > LONGEST:
        size = sum(map(len, texts))
        return Withheld(f"{size:,} characters are more than the {LONGEST:,} that can be checked", "content")

    counts: Counter[str] = Counter()
    clean = [_clean(text, detectors, vault, policy.level == "pseudonymise", counts) for text in texts]
    asked, read, said = clean[0], clean[1 : 1 + len(sent)], clean[1 + len(sent) :]
    instructions = _INSTRUCTIONS + _WITH_PASSAGES * bool(sent) + _WITH_MARKS * bool(counts)
    messages = (
        Message("system", instructions),
        *(Message("assistant" if at % 2 else "user", text) for at, text in enumerate(said)),
        Message("user", "\n\n".join([*read, f"Question: {asked}"]) if read else asked),
    )
    payload = preview(messages)
    contents = {"question": len(asked), "passages": sum(map(len, read)), "history": sum(map(len, said))}
    return Outgoing(
        messages=messages,
        payload=payload,
        sha256=hashlib.sha256(payload).hexdigest(),
        contents={name: size for name, size in contents.items() if size},
        entities=dict(counts),
        passages=tuple(passage.id for passage in sent),
        vault=vault,
    )


def _passage_text(number: int, passage: Passage) -> str:
    """A passage under its heading; the name of the document, often a path, stays."""
    heading = f"{passage.heading}: " if passage.heading and not passage.text.startswith(passage.heading) else ""
    return f"[{number}] {heading}{passage.text}"


def _clean(text: str, detectors: Sequence[Detector], vault: Vault, reversible: bool, counts: Counter[str]) -> str:
    """The text without private values.

    What is left is looked at again, because a find may have hidden another beside it; that one is dropped, and a
    third look must find nothing.
    """
    hidden = vault.hide(text, _found(text, detectors), reversible=reversible, counts=counts)
    left = _left(hidden, detectors)
    if left:
        counts.update(finding.kind for finding in left)
        hidden = drop(hidden, left)
        if _left(hidden, detectors):
            raise PrivacyError("private values could not be told from the text around them")
    return hidden


def _left(hidden: str, detectors: Sequence[Detector]) -> list[Finding]:
    return [each for each in _found(hidden, detectors) if not is_marked(hidden[each.start : each.end])]


def _found(text: str, detectors: Sequence[Detector]) -> list[Finding]:
    findings = [finding for detect in detectors for finding in detect(text)]
    for finding in findings:
        if not (0 <= finding.start < finding.end <= len(text) and re.fullmatch(r"[A-Z]{2,20}", finding.kind)):
            raise PrivacyError(f"a detector gave a find of kind {finding.kind!r} that is not within the text")
    return findings


def _as_json(messages: Sequence[Message]) -> bytes:
    body = [{"role": message.role, "content": message.content} for message in messages]
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
