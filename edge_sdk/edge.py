"""The whole flow: documents in, an answer with its evidence and its reasons out.

`Edge.stream` is the walk of a question, top to bottom. Every part comes in from outside (store, encoder,
engine, remote), so that tests use fakes and apps can bring their own; `Edge.open` builds the usual ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from threading import Event as Flag
from threading import RLock
from types import TracebackType
from typing import TYPE_CHECKING, SupportsIndex
from uuid import uuid4

from .config import Settings, load_settings
from .conversation import Conversation
from .drafting import Draft, Drafter, Manner, abstention, local_answer
from .errors import ConfigError, EdgeError, StoreError
from .extracting import Extractor, Reader
from .handoff import Handoff, Missed, Topic, recall
from .idle import IdleTimer, while_busy
from .judge import Judge
from .opened_once import opened_once
from .privacy.gate import PrivacyPolicy
from .prompt import Reading, Style
from .records import AddReport, Answer, Event, GenerateOptions, Hit, Message, Timings
from .route import Policy, decide_before

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .confidence.calibration import Calibrations
    from .confidence.setup import Setup
    from .encoders.embed import Encoder
    from .engines.engine import Engine
    from .fallback.caller import Caller
    from .fallback.learned import LearnedAnswers
    from .fallback.remote import Remote
    from .ingest import Progress, Sources
    from .privacy.gate import Consent
    from .readers.extract import Extract
    from .storage.store import Store


class Edge:
    """An assistant over one store. Opening costs little; encoder and model load when they are first needed.

    Several threads may use one, each with a question of its own; that several answers are generated at once takes
    an engine that can (`parallel` in the settings), another raises `EngineError` while it is busy.

    >>> with Edge.open("manuals.db", model="smollm2") as edge:  # doctest: +SKIP
    ...     edge.add(["manual.pdf"])
    ...     print(edge.ask("How do I reset it?").text)
    """

    def __init__(
        self,
        store: Store,
        encoder: Callable[[], Encoder],
        engine: Callable[[], tuple[Engine, Reading]],
        *,
        remote: Remote | Caller | None = None,
        privacy: PrivacyPolicy | None = None,
        consent: Consent | None = None,
        policy: Policy | None = None,
        calibrations: Calibrations | None = None,
        sampling: GenerateOptions | None = None,
        reader: Callable[[], Reader | None] | None = None,
        unload_after: float | None = None,
    ) -> None:
        """`engine` gives the loaded model and how it reads documents best, `sampling` how it writes best: greedily,
        unless given. Without `calibrations` no answer has a probability. Nothing leaves the device unless there is
        a `remote` and `privacy` has another mode than `local_only`; `policy` is then to ask it when unsure.

        A `reader` is asked before the model: what it finds tells how good the passages are, and is the answer where
        a calibration of its own is sure enough of it. After `unload_after` idle seconds the model is freed.
        """
        self.store = store
        self.idle = IdleTimer(unload_after, self.unload)
        self.remote = remote
        self.privacy = privacy or PrivacyPolicy()
        self.consent = consent
        asks = remote is not None and self.privacy.mode != "local_only"
        self.policy = policy or Policy("remote" if asks else "abstain")
        self.calibrations = calibrations
        self._open_encoder, self._open_engine, self._open_reader = encoder, engine, reader
        self.sampling = sampling or GenerateOptions()
        self.opening, self.closed = RLock(), False

    @classmethod
    def open(
        cls,
        store: str | Path | None = None,
        *,
        settings: Settings | None = None,
        policy: Policy | None = None,
        consent: Consent | None = None,
        **flags: object,
    ) -> Edge:
        """Open the store (made when missing) with the models and the remote that the settings name.

        `flags` are fields of `Settings` (`model="qwen"`, `offline=True`). Raises `EdgeError` with the next
        step when a model is missing, the store was made with another encoder, and so on. `consent` is asked in the
        privacy mode `ask`, with the exact payload.
        """
        from . import loading

        given = {name: value for name, value in {"store": store, **flags}.items() if value is not None}
        if settings is not None and given:
            raise ConfigError(f"both settings and {', '.join(given)} are given", hint="put them into the settings")
        settings = settings or load_settings(given)
        calibrations, sampling = loading.load_calibrations(settings), loading.load_sampling(settings)
        privacy, opened = loading.load_policy(settings), loading.open_store(settings)
        try:
            caller = loading.load_caller(settings, opened)
        except BaseException:
            opened.close()
            raise
        return cls(
            opened,
            lambda: loading.load_encoder(settings),
            lambda: loading.load_engine(settings),
            remote=caller,
            privacy=privacy,
            consent=consent,
            policy=policy,
            calibrations=calibrations,
            sampling=sampling,
            reader=lambda: loading.load_reader(settings),
            unload_after=settings.unload_after,
        )

    @opened_once
    def encoder(self) -> Encoder:
        """The text encoder, loaded on first use."""
        return self._open_encoder()

    @opened_once
    def _vector(self) -> Callable[[str], NDArray[np.float32]]:
        """A question to its vector; the last is remembered, for reader, model and remote each ask for it."""
        return lru_cache(maxsize=1)(lambda text: self.encoder.encode([text])[0])

    @opened_once
    def _drafter(self) -> Drafter:
        return Drafter(*self._open_engine(), self.sampling, lambda texts: self.encoder.encode(texts))

    @opened_once
    def extractor(self) -> Extractor | None:
        """The reader, loaded on first use; None without one."""
        reader = self._open_reader() if self._open_reader is not None else None
        return None if reader is None else Extractor(reader)

    @property
    def engine(self) -> Engine:
        """The language model, loaded on first use; another object after `unload`."""
        return self._drafter.engine

    def unload(self) -> None:
        """Free the language model; the next question loads it again. A running answer ends with `EngineError`."""
        with self.opening:
            drafter = self.__dict__.pop("_drafter", None)
        if drafter is not None:
            drafter.engine.close()

    def add(
        self,
        sources: Sources,
        *,
        progress: Progress | None = None,
        cancel: Flag | None = None,
    ) -> list[AddReport]:
        """Add or update documents: files, folders or `py:module`. Unchanged ones cost only a hash.

        A document that fails is reported, not raised.
        """
        return list(self.add_each(sources, progress=progress, cancel=cancel))

    def add_each(
        self,
        sources: Sources,
        *,
        progress: Progress | None = None,
        cancel: Flag | None = None,
    ) -> Iterator[AddReport]:
        """Like `add`, one report at a time: each document is durable as soon as its report is there."""
        from .ingest import add

        return add(self.store, self.encoder, sources, progress=progress, cancel=cancel)

    def search(self, question: str, k: int = 8) -> list[Hit]:
        """The k best passages, best first. An empty store gives an empty list."""
        from .retrieval.retrieve import retrieve

        if not (isinstance(question, str) and isinstance(k, SupportsIndex)):
            raise ConfigError(f"question is {question!r:.80} and k is {k!r}", hint="use a text and a whole number")
        if not self.store.counts().passages:
            return []
        return retrieve(self.store, self.encoder, question, k)

    def ask(
        self,
        question: str,
        *,
        style: Style = "full",
        max_tokens: int = 256,
        k: int = 8,
        conversation: Conversation | None = None,
        cancel: Flag | None = None,
        task: str = "",
    ) -> Answer:
        """Answer a question from the documents; see `stream` for the steps."""
        for event in self.stream(
            question, style=style, max_tokens=max_tokens, k=k, conversation=conversation, cancel=cancel, task=task
        ):
            if event.answer is not None:
                return event.answer
        raise EdgeError("the answer was interrupted")

    @while_busy
    def stream(
        self,
        question: str,
        *,
        style: Style = "full",
        max_tokens: int = 256,
        k: int = 8,
        conversation: Conversation | None = None,
        cancel: Flag | None = None,
        task: str = "",
        hold: int | None = 0,
    ) -> Iterator[Event]:
        """Yield the steps of an answer: `retrieved`, `provisional` pieces, perhaps `handoff`, then `final`.

        Pieces of the local answer come at once; with `hold` only from that token on, when a hopeless answer has
        mostly been given up, and with None not before the decision on the whole. `task` names the kind of question
        for a calibration that knows several. Setting `cancel` ends the generation at the next token; the `final`
        answer then holds what there was.
        """
        manner = Manner(style, max_tokens, conversation, cancel, hold)
        started = time.perf_counter()
        hits, query, note = self._retrieve(question, k, conversation)
        timings = Timings(retrieve_ms=_since(started))
        yield Event("retrieved", hits=tuple(hits))

        extract: Extract | None = None
        if hits and (extractor := self.extractor) is not None:  # loaded before the clock runs
            started = time.perf_counter()
            extract = extractor.extract(query, hits)
            timings = replace(timings, read_ms=_since(started))
        draft = Draft(passages=tuple(hit.passage for hit in hits))
        found: Answer | Missed | None = None
        if self.privacy.mode == "prefer_remote" and self.remote is not None:
            preferred = ("the remote is preferred",)
            found = yield from self._hand_off(question, draft, preferred, conversation, cancel)
        alone = conversation is None and not isinstance(found, Answer)
        quick = self._quick(query, hits, extract, k, task) if alone else None
        if quick is not None:
            judge, draft = quick
            yield Event("provisional", draft.cited.text)
        else:
            judge = self._judge(query, hits, self.policy, lambda: self.setup(style, k), extract, task, conversation)
            if judge.decision.route == "local" and not isinstance(found, Answer):
                draft = yield from self._drafter.draft(question, hits, judge, manner)
        reasons = judge.decision.reasons
        if judge.decision.route == "remote" and found is None:
            found = yield from self._hand_off(question, draft, reasons, conversation, cancel)
        elif judge.decision.route == "abstain" and found is None:
            found = self._recalled(question, conversation, reasons)
        missed: tuple[str, ...] = (found.reason,) if isinstance(found, Missed) else ()
        if missed and judge.gave_up:  # nobody else answers: go through with it after all
            judge = Judge(query, hits, Policy("local"), note="given up at first", extract=extract, task=task)
            draft = yield from self._drafter.draft(question, hits, judge, manner)
            missed = (*reasons, *missed, "so this is the local answer, unsure as it is")
        if isinstance(found, Answer):
            answer = found
            if conversation is not None:
                labels = {passage.label for passage in draft.passages}
                conversation.append(question, Message("user", question), found.text, labels)
        elif judge.decision.route == "local":
            answer = local_answer(judge, draft, *missed)
        elif missed and draft.usable:
            answer = local_answer(judge, draft, *missed, "so this is the local answer, unsure as it is")
        else:
            answer = abstention((*reasons, *missed), draft)
            if isinstance(found, Missed) and found.queued:
                answer = replace(answer, route="queued")
        answer = replace(
            answer,
            reasons=(*note, *answer.reasons),
            timings=replace(
                timings,
                prefill_ms=draft.prefill_ms,
                decode_ms=draft.decode_ms,
                remote_ms=answer.timings.remote_ms,
            ),
            hits=tuple(hits),
            signals=dict(judge.signals),
            explanation=judge.explanation,
            left_device=found.left_device if isinstance(found, Missed) else answer.left_device,
        )
        yield Event("final", answer=self._kept(answer, question))

    def close(self) -> None:
        """Free the model and close the store."""
        with self.opening:
            self.closed = True
        self.idle.stop()
        self.unload()
        self.store.close()

    def __enter__(self) -> Edge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- steps of the walk --------------------------------------------------------------------------

    def _retrieve(
        self, question: str, k: int, conversation: Conversation | None
    ) -> tuple[list[Hit], str, tuple[str, ...]]:
        """Search for the question; a follow-up that finds nothing by itself is searched with the one before it.

        Returns the hits, the text that found them, and a reason to show.
        """
        hits = self.search(question, k)
        earlier = conversation.last_question if conversation is not None else None
        if earlier and decide_before(question, hits, self.policy).route != "local":
            together = f"{earlier}\n{question}"
            more = self.search(together, k)
            if decide_before(together, more, self.policy).route == "local":
                return more, together, ("searched together with the question before",)
        return hits, question, ()

    def _judge(
        self,
        query: str,
        hits: list[Hit],
        policy: Policy,
        setup: Callable[[], Setup | None],
        extract: Extract | None,
        task: str,
        conversation: Conversation | None = None,
    ) -> Judge:
        return Judge.appoint(
            query,
            hits,
            policy,
            self.calibrations,
            setup,
            encode=self._vector,
            follows_up=conversation is not None and bool(conversation.turns),
            extract=extract,
            task=task,
        )

    def _quick(
        self, query: str, hits: list[Hit], extract: Extract | None, k: int, task: str
    ) -> tuple[Judge, Draft] | None:
        """The reader's answer and its judge, where a calibration of such answers is sure enough of this one."""
        if self.extractor is None or extract is None:
            return None
        judge = self._judge(query, hits, Policy(), lambda: self.reader_setup(k), extract, task)
        if judge.explanation.threshold is None or judge.decision.route != "local":
            return None
        draft = self.extractor.draft(extract, hits)
        judge.ends(draft.cited.text, hits, finish_reason="stop", refusal=not draft.usable)
        return (judge, draft) if judge.decision.route == "local" else None

    def setup(self, style: Style = "full", k: int = 8) -> Setup:
        """What a calibration of answers in this style, from `k` passages, is filed under. Loads the models."""
        reader = "none" if self.extractor is None else self.extractor.reader.fingerprint[:16]
        return self._drafter.setup(_retrieval(k), self.encoder.fingerprint[:16], style, reader=reader)

    def reader_setup(self, k: int = 8) -> Setup | None:
        """The same for the reader's answers; None without one."""
        if self.extractor is None:
            return None
        return self.extractor.setup(_retrieval(k), self.encoder.fingerprint[:16])

    def _kept(self, answer: Answer, question: str) -> Answer:
        """The answer with an id under which the store has the decision; that it could not be kept is a reason."""
        answer = replace(answer, id=uuid4().hex[:12])
        record = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **answer.decision()}
        try:
            self.store.keep_decision(answer.id, json.dumps(record), question=question, route=answer.route)
        except StoreError as error:
            return replace(answer, id="", reasons=(*answer.reasons, f"the decision was not kept: {error}"))
        return answer

    @opened_once
    def handoff(self) -> Handoff | None:
        """The way to the remote, through privacy gate, budget and ledger; None without one."""
        if self.remote is None:
            return None
        return Handoff.of(self.remote, self.privacy, self.store.database, self.learned, self.consent)

    @opened_once
    def learned(self) -> LearnedAnswers | None:
        """Answers of remotes that were paid for once; None, where it is set to that, asks for each anew."""
        from .fallback.learned import LearnedAnswers

        return LearnedAnswers(self.store.database, self.encoder.fingerprint)

    def _recalled(
        self, question: str, conversation: Conversation | None, reasons: tuple[str, ...]
    ) -> Answer | None:
        """The answer that was learned for a question to which the documents have none."""
        from .fallback.learned import LearnedAnswers

        if LearnedAnswers(self.store.database).empty or self.learned is None:  # else the encoder is not needed
            return None
        known = recall(self.learned, Topic(question, self._vector(question), (), conversation))
        return None if known is None else replace(known, reasons=(*reasons, *known.reasons))

    def _hand_off(
        self,
        question: str,
        draft: Draft,
        reasons: tuple[str, ...],
        conversation: Conversation | None,
        cancel: Flag | None,
    ) -> Generator[Event, None, Answer | Missed]:
        """An answer from elsewhere, or why there is none; `reasons` are those for handing off."""
        if self.handoff is None:
            return Missed("no remote is configured")
        if cancel is not None and cancel.is_set():
            return Missed("cancelled")
        topic = Topic(question, self._vector(question), draft.passages, conversation)
        return (yield from self.handoff.answer(topic, reasons, cancel))


def _retrieval(k: int) -> str:
    from .retrieval.retrieve import RANKING

    return f"{RANKING}, {k} passages"


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1000.0
