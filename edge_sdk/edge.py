"""The whole flow: documents in, an answer with its evidence and its reasons out.

`Edge.stream` is the walk of a question, top to bottom. Every part comes in from outside (store, encoder,
engine, remote), so that tests use fakes and apps can bring their own; `Edge.open` builds the usual ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Event as Flag
from types import TracebackType
from typing import TYPE_CHECKING

from .citations import CitedText, is_refusal, resolve_citations
from .config import Settings, load_settings
from .conversation import Conversation
from .errors import EdgeError, OfflineError, RemoteError
from .prompt import NOT_FOUND, Prompt, Reading, Style, build_prompt
from .records import (
    AddReport,
    Answer,
    Event,
    GenerateOptions,
    Hit,
    Message,
    Timings,
    TokenCounts,
)
from .route import Policy, decide_after, decide_before

if TYPE_CHECKING:
    from .encoders.embed import Encoder
    from .engines.engine import Engine
    from .fallback.remote import Remote
    from .ingest import Progress
    from .storage.store import Store

_UNCALIBRATED = "probability unknown: no calibration for this model and these documents"
_REMOTE_SYSTEM = "Answer the question briefly and truthfully. If you do not know, say so."


class Edge:
    """An assistant over one store. Opening costs little; encoder and model load when they are first needed.

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
        remote: Remote | None = None,
        policy: Policy | None = None,
    ) -> None:
        """`engine` gives the loaded model and how it reads documents best."""
        self.store = store
        self.remote = remote
        self.policy = policy or Policy()
        self._open_encoder, self._open_engine = encoder, engine

    @classmethod
    def open(
        cls,
        store: str | Path | None = None,
        *,
        settings: Settings | None = None,
        policy: Policy | None = None,
        **flags: object,
    ) -> Edge:
        """Open the store (made when missing) with the models and the remote that the settings name.

        `flags` are fields of `Settings` (`model="qwen"`, `offline=True`). Raises `EdgeError` with the next
        step when a model is missing, the store was made with another encoder, and so on.
        """
        from .fallback.remote import remote_from_settings
        from .loading import load_encoder, load_engine, open_store

        settings = settings or load_settings({"store": store, **flags})
        return cls(
            open_store(settings),
            lambda: load_encoder(settings),
            lambda: load_engine(settings),
            remote=remote_from_settings(settings),
            policy=policy,
        )

    @cached_property
    def encoder(self) -> Encoder:
        """The text encoder, loaded on first use."""
        return self._open_encoder()

    @cached_property
    def _engine_and_reading(self) -> tuple[Engine, Reading]:
        return self._open_engine()

    @property
    def engine(self) -> Engine:
        """The language model, loaded on first use."""
        return self._engine_and_reading[0]

    def add(
        self, sources: Iterable[str | Path], *, progress: Progress | None = None, cancel: Flag | None = None
    ) -> list[AddReport]:
        """Add or update documents: files, folders or `py:module`. Unchanged ones cost only a hash.

        A document that fails is reported, not raised.
        """
        return list(self.add_each(sources, progress=progress, cancel=cancel))

    def add_each(
        self, sources: Iterable[str | Path], *, progress: Progress | None = None, cancel: Flag | None = None
    ) -> Iterator[AddReport]:
        """Like `add`, one report at a time: each document is durable as soon as its report is there."""
        from .ingest import add

        return add(self.store, self.encoder, sources, progress=progress, cancel=cancel)

    def search(self, question: str, k: int = 8) -> list[Hit]:
        """The k best passages, best first. An empty store gives an empty list."""
        from .retrieval.retrieve import retrieve

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
    ) -> Answer:
        """Answer a question from the documents; see `stream` for the steps."""
        for event in self.stream(
            question, style=style, max_tokens=max_tokens, k=k, conversation=conversation, cancel=cancel
        ):
            if event.answer is not None:
                return event.answer
        raise EdgeError("the answer was interrupted")

    def stream(
        self,
        question: str,
        *,
        style: Style = "full",
        max_tokens: int = 256,
        k: int = 8,
        conversation: Conversation | None = None,
        cancel: Flag | None = None,
    ) -> Iterator[Event]:
        """Yield the steps of an answer: `retrieved`, `provisional` pieces, perhaps `handoff`, then `final`.

        Setting `cancel` ends the generation at the next token; the `final` answer then holds what there was.
        """
        started = time.perf_counter()
        hits, query, note = self._retrieve(question, k, conversation)
        timings = Timings(retrieve_ms=_since(started))
        yield Event("retrieved", hits=tuple(hits))

        decision = decide_before(query, hits, self.policy)
        if decision.route == "local":
            prompt, notices = self._prompt(question, hits, style, max_tokens, conversation)
            yield from (Event("notice", text) for text in notices)
            options = GenerateOptions(max_tokens=max_tokens)
            generation = self.engine.generate(prompt.text, options, cancel)
            pieces: list[str] = []
            try:
                for token in generation:
                    if token.text:
                        pieces.append(token.text)
                        yield Event("provisional", token.text)
            finally:
                generation.close()
            end = generation.result
            timings = replace(timings, prefill_ms=end.prefill_ms, decode_ms=end.decode_ms)
            tokens = TokenCounts(end.prompt_tokens, end.cached_tokens, end.completion_tokens)
            raw = "".join(pieces).strip()
            cited = resolve_citations(raw, prompt.passages)
            cancelled = end.finish_reason == "cancelled"
            decision = decision if cancelled else decide_after(decision, is_refusal(cited.text), self.policy)
            if decision.route == "local":
                if conversation is not None and not cancelled:
                    conversation.append(question, prompt.messages[-1], raw)
                reasons = (*note, *decision.reasons, *_local_reasons(prompt, cited, end.finish_reason))
                yield Event("final", answer=self._local(cited, reasons, timings, tokens, hits))
                return
        else:
            tokens = TokenCounts()

        if decision.route == "remote" and self.remote is not None:
            yield Event("handoff", decision.reasons[-1])
            try:
                answer = yield from self._ask_remote(self.remote, question, cancel)
            except (RemoteError, OfflineError) as error:
                decision = replace(
                    decision, route="abstain", reasons=(*decision.reasons, f"remote failed: {error}")
                )
            else:
                reasons = (*note, *decision.reasons, *answer.reasons)
                timings = replace(timings, remote_ms=answer.timings.remote_ms)
                yield Event("final", answer=replace(answer, reasons=reasons, timings=timings, hits=tuple(hits)))
                return
        yield Event("final", answer=self._abstain((*note, *decision.reasons), timings, tokens, hits))

    def close(self) -> None:
        """Free the model and close the store."""
        if "_engine_and_reading" in self.__dict__:
            self.engine.close()
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

    def _prompt(
        self, question: str, hits: list[Hit], style: Style, max_tokens: int, conversation: Conversation | None
    ) -> tuple[Prompt, list[str]]:
        """The prompt of this turn; turns for which the context has no room are dropped, oldest first, and named."""
        engine, reading = self._engine_and_reading
        room = engine.context - max_tokens
        notices: list[str] = []
        while True:
            history = conversation.messages if conversation is not None else ()
            past = engine.count(engine.render(history)) if history else 0
            if past + reading.prompt_tokens <= room or conversation is None or not conversation.drop_oldest():
                break
            notices = [f"the conversation is longer than {room} tokens; the oldest turns were left out"]
        prompt = build_prompt(
            question,
            hits,
            render=engine.render,
            count=engine.count,
            budget=min(room, past + reading.prompt_tokens),
            limit=room,
            style=style,
            numbered=reading.numbered,
            history=history,
        )
        return prompt, notices

    def _ask_remote(self, remote: Remote, question: str, cancel: Flag | None) -> Generator[Event, None, Answer]:
        """Send the question, and nothing from the documents."""
        messages = (Message("system", _REMOTE_SYSTEM), Message("user", question))
        stream = remote.complete(messages, max_tokens=1024, cancel=cancel)
        try:
            for piece in stream:
                yield Event("provisional", piece)
        finally:
            stream.close()
        reply = stream.reply
        return Answer(
            text=reply.text.strip(),
            citations=(),
            probability=None,
            route="remote",
            reasons=() if reply.finish_reason == "stop" else (f"the remote ended with {reply.finish_reason}",),
            timings=Timings(remote_ms=reply.milliseconds),
            tokens=TokenCounts(reply.prompt_tokens or 0, 0, reply.completion_tokens or 0),
            model=reply.model,
            left_device={"question": len(question)},
        )

    def _local(
        self, cited: CitedText, reasons: tuple[str, ...], timings: Timings, tokens: TokenCounts, hits: list[Hit]
    ) -> Answer:
        return Answer(
            text=cited.text,
            citations=cited.citations,
            probability=None,
            route="local",
            reasons=(*reasons, _UNCALIBRATED),
            timings=timings,
            tokens=tokens,
            model=self.engine.name,
            hits=tuple(hits),
            dropped_citations=cited.dropped,
        )

    def _abstain(self, reasons: tuple[str, ...], timings: Timings, tokens: TokenCounts, hits: list[Hit]) -> Answer:
        return Answer(
            text=NOT_FOUND,
            citations=(),
            probability=None,
            route="abstain",
            reasons=reasons,
            timings=timings,
            tokens=tokens,
            model="",
            hits=tuple(hits),
        )


def _local_reasons(prompt: Prompt, cited: CitedText, finish_reason: str) -> tuple[str, ...]:
    reasons = [f"read {len(prompt.passages)} passages in {prompt.tokens} prompt tokens"]
    if finish_reason == "length":
        reasons.append("cut at the token limit")
    if finish_reason == "cancelled":
        reasons.append("cancelled")
    if cited.dropped:
        reasons.append(f"{cited.dropped} citations pointed at no passage and were dropped")
    if not cited.citations:
        reasons.append("no sentence of the passages holds the answer's words")
    return tuple(reasons)


def _since(started: float) -> float:
    return (time.perf_counter() - started) * 1000.0
