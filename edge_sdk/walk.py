"""The walk of a question: what is found, what is read there, the local answer and its judge, perhaps a remote.

`Walk.events` reads top to bottom. Knows nothing of how the parts that it asks are opened.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import uuid4

from .drafting import Draft, Manner, abstention, local_answer
from .errors import StoreError
from .handoff import Missed, Topic, recall
from .judge import Judge
from .parts import Parts
from .records import Answer, Event, Hit, Message, Timings
from .route import Policy, decide_before

if TYPE_CHECKING:
    from .confidence.setup import Setup
    from .readers.extract import Extract

_UNSURE = "so this is the local answer, unsure as it is"


class Walk:
    """One question on its way through the parts, to be walked once. `k` passages are looked for."""

    def __init__(self, parts: Parts, question: str, manner: Manner, *, k: int = 8, task: str = "") -> None:
        self._parts, self._question, self._manner, self._k, self._task = parts, question, manner, k, task
        self._hits: list[Hit] = []
        self._query, self._notes = question, tuple[str, ...]()  # what found the hits, and why it is another text
        self._extract: Extract | None = None
        self._draft = Draft()
        self._found: Answer | Missed | None = None  # from elsewhere
        self._timings = Timings()

    def events(self) -> Iterator[Event]:
        """The steps as `Edge.stream` describes them; the last one holds the answer."""
        self._retrieve()
        yield Event("retrieved", hits=tuple(self._hits))
        self._read()
        self._draft = Draft(passages=tuple(hit.passage for hit in self._hits))
        if self._parts.privacy.mode == "prefer_remote" and self._parts.remote is not None:
            yield from self._hand_off("the remote is preferred")
        judge = yield from self._answer_here()
        reasons = judge.decision.reasons
        if judge.decision.route == "remote" and self._found is None:
            yield from self._hand_off(*reasons)
        elif judge.decision.route == "abstain" and self._found is None:
            self._recall(reasons)
        missed: tuple[str, ...] = (self._found.reason,) if isinstance(self._found, Missed) else ()
        if missed and judge.gave_up:  # nobody else answers: go through with it after all
            policy, note = Policy("local"), "given up at first"
            judge = Judge(self._query, self._hits, policy, note=note, extract=self._extract, task=self._task)
            yield from self._generate(judge)
            missed = (*reasons, *missed, _UNSURE)
        answer = self._answer(judge, reasons, missed)
        yield Event("final", answer=self._kept(self._told(answer, judge)))

    def _retrieve(self) -> None:
        """Search for the question; a follow-up that finds nothing by itself is searched with the one before it."""
        started = time.perf_counter()
        self._hits = self._parts.search(self._question, self._k)
        chat = self._manner.conversation
        earlier = chat.last_question if chat is not None else None
        if earlier and not self._supported(self._question, self._hits):
            together = f"{earlier}\n{self._question}"
            more = self._parts.search(together, self._k)
            if self._supported(together, more):
                self._hits, self._query = more, together
                self._notes = ("searched together with the question before",)
        self._timings = replace(self._timings, retrieve_ms=_since(started))

    def _supported(self, query: str, hits: list[Hit]) -> bool:
        return decide_before(query, hits, self._parts.policy).route == "local"

    def _read(self) -> None:
        """What the reader finds in the passages."""
        if self._hits and (extractor := self._parts.extractor) is not None:  # loaded before the clock runs
            started = time.perf_counter()
            self._extract = extractor.extract(self._query, self._hits)
            self._timings = replace(self._timings, read_ms=_since(started))

    def _answer_here(self) -> Generator[Event, None, Judge]:
        """The reader's answer, where a calibration of such answers is sure enough of this one; else the model's."""
        served = isinstance(self._found, Answer)
        if self._manner.conversation is None and not served and (judge := self._quick()) is not None:
            yield Event("provisional", self._draft.cited.text)
            return judge
        judge = self._appoint(self._parts.policy, lambda: self._parts.setup(self._manner.style, self._k))
        if judge.decision.route == "local" and not served:
            yield from self._generate(judge)
        return judge

    def _quick(self) -> Judge | None:
        extractor = self._parts.extractor
        if extractor is None or self._extract is None:
            return None
        judge = self._appoint(Policy(), lambda: self._parts.reader_setup(self._k))
        unsure = judge.explanation.threshold is None or judge.decision.route != "local"
        if unsure:
            return None
        draft = extractor.draft(self._extract, self._hits)
        judge.ends(draft.cited.text, self._hits, finish_reason="stop", refusal=not draft.usable)
        if judge.decision.route != "local":
            return None
        self._draft = draft
        return judge

    def _appoint(self, policy: Policy, setup: Callable[[], Setup | None]) -> Judge:
        chat = self._manner.conversation
        return Judge.appoint(
            self._query,
            self._hits,
            policy,
            self._parts.calibrations,
            setup,
            encode=self._parts.vector,
            follows_up=chat is not None and bool(chat.turns),
            extract=self._extract,
            task=self._task,
        )

    def _generate(self, judge: Judge) -> Iterator[Event]:
        drafter = self._parts.drafter
        self._draft = yield from drafter.draft(self._question, self._hits, judge, self._manner, self._extract)

    def _hand_off(self, *reasons: str) -> Iterator[Event]:
        """Look for an answer elsewhere; `reasons` are those for handing off."""
        cancel = self._manner.cancel
        if self._parts.handoff is None:
            self._found = Missed("no remote is configured")
        elif cancel is not None and cancel.is_set():
            self._found = Missed("cancelled")
        else:
            self._found = yield from self._parts.handoff.answer(self._topic(), reasons, cancel)

    def _recall(self, reasons: tuple[str, ...]) -> None:
        """The answer that was learned for a question to which the documents have none."""
        from .fallback.learned import LearnedAnswers

        empty = LearnedAnswers(self._parts.store.database).empty  # then the encoder is not needed
        learned = None if empty else self._parts.learned
        if learned is not None and (known := recall(learned, self._topic())) is not None:
            self._found = replace(known, reasons=(*reasons, *known.reasons))

    def _topic(self) -> Topic:
        vector = self._parts.vector(self._question)
        return Topic(self._question, vector, self._draft.passages, self._manner.conversation)

    def _answer(self, judge: Judge, reasons: tuple[str, ...], missed: tuple[str, ...]) -> Answer:
        """Whichever answer there is; `missed` are reasons why there is none from elsewhere."""
        found, draft, chat = self._found, self._draft, self._manner.conversation
        if isinstance(found, Answer):
            if chat is not None:
                labels = {passage.label for passage in draft.passages}
                chat.append(self._question, Message("user", self._question), found.text, labels)
            return found
        if judge.decision.route == "local":
            return local_answer(judge, draft, *missed)
        if missed and draft.usable:
            return local_answer(judge, draft, *missed, _UNSURE)
        answer = abstention((*reasons, *missed), draft)
        return replace(answer, route="queued") if found is not None and found.queued else answer

    def _told(self, answer: Answer, judge: Judge) -> Answer:
        """The answer with all that the walk has seen."""
        return replace(
            answer,
            reasons=(*self._notes, *answer.reasons),
            timings=replace(
                self._timings,
                prefill_ms=self._draft.prefill_ms,
                decode_ms=self._draft.decode_ms,
                remote_ms=answer.timings.remote_ms,
            ),
            hits=tuple(self._hits),
            signals=dict(judge.signals),
            explanation=judge.explanation,
            left_device=self._found.left_device if isinstance(self._found, Missed) else answer.left_device,
        )

    def _kept(self, answer: Answer) -> Answer:
        """The answer with an id under which the store has the decision; that it could not be kept is a reason."""
        answer = replace(answer, id=uuid4().hex[:12])
        record = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **answer.decision()}
        store = self._parts.store
        try:
            store.keep_decision(answer.id, json.dumps(record), question=self._question, route=answer.route)
        except StoreError as error:
            return replace(answer, id="", reasons=(*answer.reasons, f"the decision was not kept: {error}"))
        return answer


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1000.0
