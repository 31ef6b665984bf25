"""What an assistant is made of: the store, and models, ways out and their policies, opened when first asked for.

Searching is what they do by themselves; knows nothing of what else becomes of a question.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from threading import RLock
from types import TracebackType
from typing import TYPE_CHECKING, Self, SupportsIndex

from .drafting import Drafter
from .errors import ConfigError
from .extracting import Extractor, Reader
from .handoff import Handoff
from .idle import IdleTimer
from .opened_once import opened_once
from .privacy.gate import PrivacyPolicy
from .prompt import Reading, Style
from .records import GenerateOptions, Hit
from .route import Policy

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
    from .privacy.gate import Consent
    from .storage.store import Store


class Parts:
    """Parts over one store. Having them costs little; encoder, reader and model load when they are first needed."""

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

    @opened_once
    def encoder(self) -> Encoder:
        """The text encoder, loaded on first use."""
        return self._open_encoder()

    @opened_once
    def vector(self) -> Callable[[str], NDArray[np.float32]]:
        """A question to its vector; the last is remembered, for reader, model and remote each ask for it."""
        return lru_cache(maxsize=1)(lambda text: self.encoder.encode([text])[0])

    @opened_once
    def drafter(self) -> Drafter:
        """The language model and how it answers; another one after `unload`."""
        return Drafter(*self._open_engine(), self.sampling, lambda texts: self.encoder.encode(texts))

    @opened_once
    def extractor(self) -> Extractor | None:
        """The reader, loaded on first use; None without one."""
        reader = self._open_reader() if self._open_reader is not None else None
        return None if reader is None else Extractor(reader)

    @property
    def engine(self) -> Engine:
        """The language model, loaded on first use; another object after `unload`."""
        return self.drafter.engine

    def unload(self) -> None:
        """Free the language model; the next question loads it again. A running answer ends with `EngineError`."""
        with self.opening:
            drafter = self.__dict__.pop("drafter", None)
        if drafter is not None:
            drafter.engine.close()

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

    def search(self, question: str, k: int = 8) -> list[Hit]:
        """The k best passages, best first. An empty store gives an empty list, and needs no encoder for it."""
        from .retrieval.retrieve import retrieve

        if not (isinstance(question, str) and isinstance(k, SupportsIndex)):
            raise ConfigError(f"question is {question!r:.80} and k is {k!r}", hint="use a text and a whole number")
        return retrieve(self.store, self.encoder, question, k) if self.store.counts().passages else []

    def setup(self, style: Style = "full", k: int = 8) -> Setup:
        """What a calibration of answers in this style, from `k` passages, is filed under. Loads the models."""
        reader = "none" if self.extractor is None else self.extractor.reader.fingerprint[:16]
        return self.drafter.setup(_retrieval(k), self.encoder.fingerprint[:16], style, reader=reader)

    def reader_setup(self, k: int = 8) -> Setup | None:
        """The same for the reader's answers; None without one."""
        if self.extractor is None:
            return None
        return self.extractor.setup(_retrieval(k), self.encoder.fingerprint[:16])

    def close(self) -> None:
        """Free the model and close the store."""
        with self.opening:
            self.closed = True
        self.idle.stop()
        self.unload()
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _retrieval(k: int) -> str:
    from .retrieval.retrieve import RANKING

    return f"{RANKING}, {k} passages"
