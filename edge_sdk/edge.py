"""The whole flow: documents in, an answer with its evidence and its reasons out.

Every part comes in from outside (store, encoder, engine, remote), so that tests use fakes and apps can bring their
own; `Edge.open` builds the usual ones. What becomes of a question is in `walk`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event as Flag
from typing import TYPE_CHECKING

from .config import Settings, load_settings
from .conversation import Conversation
from .drafting import Manner
from .errors import ConfigError, EdgeError
from .idle import while_busy
from .parts import Parts
from .prompt import Style
from .records import AddReport, Answer, Event
from .route import Policy
from .walk import Walk

if TYPE_CHECKING:
    from .ingest import Progress, Sources
    from .privacy.gate import Consent


class Edge(Parts):
    """An assistant over one store. Opening costs little; encoder and model load when they are first needed.

    Several threads may use one, each with a question of its own; that several answers are generated at once takes
    an engine that can (`parallel` in the settings), another raises `EngineError` while it is busy.

    >>> with Edge.open("manuals.db", model="smollm2") as edge:  # doctest: +SKIP
    ...     edge.add(["manual.pdf"])
    ...     print(edge.ask("How do I reset it?").text)
    """

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
        mostly been given up, and with None, or where the model chooses among a reader's words, not before the
        decision on the whole. `task` names the kind of question
        for a calibration that knows several. Setting `cancel` ends the generation at the next token; the `final`
        answer then holds what there was.
        """
        manner = Manner(style, max_tokens, conversation, cancel, hold)
        yield from Walk(self, question, manner, k=k, task=task).events()
