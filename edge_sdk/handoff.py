"""From the decision to ask a remote to its answer: learned answers first, the privacy gate, the guarded call.

Whatever stops it is a reason, and it is told what had left the device by then. Knows nothing of when to hand off,
of local models or of prompts.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import Event as Flag
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from .conversation import Conversation
from .errors import EdgeError, OfflineError, RemoteError, RemoteUnreachableError, StoreError
from .fallback.caller import Caller
from .fallback.outbox import Outbox, Payload, policy_name
from .privacy.gate import Consent, Outgoing, PastTurn, PrivacyPolicy, Withheld, prepare
from .privacy.pseudonyms import Vault
from .records import Answer, Event, Passage, RemoteReply, Timings, TokenCounts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .fallback.learned import LearnedAnswers
    from .fallback.remote import Remote
    from .privacy.detectors import Detector
    from .storage.database import Database

MAX_TOKENS = 1024
"""Of a remote answer."""


@dataclass(frozen=True, slots=True)
class Topic:
    """What is to be handed off: the question, its vector, the passages that were in its prompt, and the chat."""

    question: str
    vector: NDArray[np.float32]
    passages: Sequence[Passage] = ()
    conversation: Conversation | None = None

    @property
    def stands_alone(self) -> bool:
        """Whether the question can be understood without the turns before it."""
        return self.conversation is None or not self.conversation.begun


@dataclass(frozen=True, slots=True)
class Missed:
    """There is no answer from elsewhere, and why; `queued` names the question where it waits in the outbox.

    `left_device` is what was sent all the same, in characters of each kind.
    """

    reason: str
    queued: str = ""
    left_device: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Handoff:
    """The way to one remote under one privacy policy. `consent` is asked in mode `ask`, with the exact payload.

    With `learns`, answers are kept, and those accepted are given again without a call; with `queues`, a question
    that could not be sent for want of a network waits in the outbox, redacted.
    """

    caller: Caller
    policy: PrivacyPolicy
    outbox: Outbox
    learned: LearnedAnswers | None = None
    consent: Consent | None = None
    detectors: Sequence[Detector] = ()
    queues: bool = True
    _vaults: WeakKeyDictionary[Conversation, Vault] = field(default_factory=WeakKeyDictionary, init=False)

    @classmethod
    def of(
        cls,
        remote: Remote | Caller,
        policy: PrivacyPolicy,
        database: Database,
        learned: LearnedAnswers | None = None,
        consent: Consent | None = None,
    ) -> Handoff:
        """The way to `remote` with everything that is kept of it in one file."""
        caller = remote if isinstance(remote, Caller) else Caller(remote, database)
        return cls(caller, policy, Outbox(database), learned, consent)

    def answer(
        self, topic: Topic, reasons: tuple[str, ...], cancel: Flag | None = None
    ) -> Generator[Event, None, Answer | Missed]:
        """An answer from elsewhere, learned or remote, or why there is none; on the way its pieces.

        `reasons` are those for handing off, the last one decided.
        """
        found: Answer | Missed | None = None if self.learned is None else recall(self.learned, topic)
        if found is None:
            outgoing = self.prepare(topic)
            if isinstance(outgoing, Withheld):
                return Missed(outgoing.reason)
            yield Event("handoff", reasons[-1])
            pieces = self.send(outgoing, topic, cancel)
            try:
                while True:
                    yield Event("provisional", next(pieces))
            except StopIteration as end:
                found = end.value
            finally:
                pieces.close()
        if isinstance(found, Answer):
            return replace(found, reasons=(*reasons, *found.reasons))
        return found or Missed("the remote gave nothing")

    def prepare(self, topic: Topic) -> Outgoing | Withheld:
        """What may be sent, or why nothing may. Asks for consent where that is the mode."""
        turns = topic.conversation.turns if topic.conversation is not None else ()
        return prepare(
            self.policy,
            topic.question,
            topic.passages,
            [PastTurn(turn.question, turn.assistant.content, turn.labels) for turn in turns],
            earlier=topic.conversation.labels if topic.conversation is not None else (),
            vault=self._vault(topic.conversation),
            preview=lambda messages: self.caller.remote.preview(messages, max_tokens=MAX_TOKENS),
            consent=self.consent,
            detectors=self.detectors,
        )

    def send(
        self, outgoing: Outgoing, topic: Topic, cancel: Flag | None = None
    ) -> Generator[str, None, Answer | Missed]:
        """Call the remote once: pieces of its reply, private values put back, and then the whole answer."""
        stream = self.caller.stream(
            outgoing.messages,
            max_tokens=MAX_TOKENS,
            characters=outgoing.contents,
            entities=outgoing.entities,
            cancel=cancel,
        )
        restorer = outgoing.vault.restorer()
        try:
            for piece in stream:
                if text := restorer.push(piece):
                    yield text
        except (RemoteError, OfflineError) as error:
            unsent = isinstance(error, OfflineError | RemoteUnreachableError)
            missed = self._missed(error, outgoing, topic, queue=unsent)
            sent = stream.entry is not None and not unsent  # nothing is sent that is not in the ledger
            return replace(missed, left_device=dict(outgoing.contents)) if sent else missed
        finally:
            stream.close()
        if rest := restorer.finish():
            yield rest
        reply = stream.reply
        text = outgoing.vault.restore(reply.text).strip()
        return Answer(
            text=text,
            citations=(),
            probability=None,
            route="remote",
            reasons=(*_ending(reply), *self._learn(topic, text, reply, outgoing)),
            timings=Timings(remote_ms=reply.milliseconds),
            tokens=TokenCounts(reply.prompt_tokens or 0, 0, reply.completion_tokens or 0),
            model=reply.model,
            left_device=dict(outgoing.contents),
        )

    def _vault(self, conversation: Conversation | None) -> Vault:
        """One for each conversation, so that a value keeps its pseudonym from turn to turn."""
        return Vault() if conversation is None else self._vaults.setdefault(conversation, Vault())

    def _learn(self, topic: Topic, text: str, reply: RemoteReply, outgoing: Outgoing) -> tuple[str, ...]:
        if self.learned is None or not topic.stands_alone or reply.finish_reason != "stop":
            return ()
        from .fallback.learned_table import Provenance

        now = datetime.now(UTC).isoformat(timespec="seconds")
        provenance = Provenance(self.caller.remote.url, reply.model, now, redacted=bool(outgoing.entities))
        texts = [passage.text for passage in topic.passages]
        try:
            return (self.learned.learn(topic.question, topic.vector, text, provenance, passages=texts).reason,)
        except StoreError as error:
            return (f"the answer was not kept: {error}",)

    def _missed(self, error: EdgeError, outgoing: Outgoing, topic: Topic, *, queue: bool) -> Missed:
        """What is left of a failed call: a question that was never sent and stands alone may wait in the outbox."""
        failed = f"remote failed: {error}"
        if not (queue and self.queues and topic.stands_alone):
            return Missed(failed)
        payload = Payload(outgoing.messages, MAX_TOKENS, outgoing.contents, outgoing.entities)
        try:
            id = self.outbox.put(payload, policy=policy_name(self.policy, self.caller.remote))
        except (RemoteError, StoreError) as full:
            return Missed(f"{failed}; not queued: {full}")
        return Missed(f"{failed}; the question waits in the outbox as {id} (`edge outbox send`)", id)


def _ending(reply: RemoteReply) -> tuple[str, ...]:
    return () if reply.finish_reason == "stop" else (f"the remote ended with {reply.finish_reason}",)


def recall(learned: LearnedAnswers, topic: Topic) -> Answer | None:
    """The answer that was learned for this very question, if there is one; nothing leaves the device."""
    if not topic.stands_alone:
        return None
    known = learned.find(topic.question, topic.vector)
    if known is None:
        return None
    with suppress(StoreError):  # a file that cannot be written does not keep the answer back
        learned.count_use(known.id)
    return Answer(
        text=known.answer,
        citations=(),
        probability=None,
        route="local",
        reasons=(known.origin,),
        timings=Timings(),
        tokens=TokenCounts(),
        model=known.provenance.model,
    )
