"""The engine for GGUF models on which many generations run at once; implements `edge_sdk.engines.engine.Engine`.

One context holds all of them. A thread of its own evaluates them in batches and hands each token over to whoever
reads that generation. Which tokens come together is the business of `batching`. Knows nothing of documents.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from queue import Empty
from threading import Event
from types import TracebackType
from typing import Any, Self

from ..device import available_memory, default_threads
from ..errors import ConfigError, EngineError
from ..model_files.gguf_adapter import read_adapter
from ..model_files.gguf_header import GgufHeader, read_header
from ..records import GenerateOptions, GenerationResult, Message, Token
from .batch_worker import Asked, BatchWorker
from .engine import Generation, adapted_fingerprint, check_options, file_fingerprint
from .llama_library import library
from .memory import estimate_memory, fit_tuning, room, rounded
from .profile import DEFAULT, Tuning
from .prompt_tokens import PromptTokens
from .sequences import MOST_SEQUENCES, SequenceContext, SequenceModel

_POLL = 1.0  # seconds between two looks of a reader; whatever happens wakes it
_OWN_SHARE = 0.125  # of the free memory may go to cells so that every sequence has its own


class BatchEngine:
    """A GGUF model in llama.cpp: many generations at once, from any threads.

    A generation begins at once, not when its first token is asked for, and as many as `sequences` run together;
    the others wait their turn, first come first served. Each gets a token at every step, whether or not it is read.
    What prompts begin with alike is computed once. One that is closed or dropped gives its place to the next.

    Greedy answers are those of `GgufEngine`, but for rounding: the sums of a batch have another order, and where
    two tokens are about as likely the other one may be chosen.

    >>> engine = BatchEngine.open(Path("model.gguf"), sequences=8)  # doctest: +SKIP
    >>> running = [engine.generate(prompt, GenerateOptions()) for prompt in prompts]  # doctest: +SKIP
    >>> answers = ["".join(token.text for token in each) for each in running]  # doctest: +SKIP
    """

    def __init__(
        self,
        model: SequenceModel,
        context: SequenceContext,
        header: GgufHeader,
        name: str,
        longest: int,
        fingerprint: Callable[[], str],
    ) -> None:
        """Use `open`; this takes what it has loaded."""
        self._model, self._name, self._context, self._hash = model, name, longest, fingerprint
        self._prompts = PromptTokens(model, header, name)
        self._worker = BatchWorker(model, context, self._prompts, name)
        weakref.finalize(self, self._worker.shut).atexit = False

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        name: str | None = None,
        sequences: int = 8,
        context: int | None = None,
        cells: int | None = None,
        threads: int | None = None,
        gpu_layers: int = 0,
        sha256: str | None = None,
        template: str | None = None,
        tuning: Tuning = DEFAULT,
        adapter: Path | None = None,
    ) -> Self:
        """Check the file's header, then load it.

        Up to `sequences` generations run at once, of at most `context` tokens each, prompt and answer; fewer where
        they do not fit `cells`, the tokens that the key-value cache holds for all. Where that is a context for
        every sequence, each has its own, which is faster; by default so where it takes little of the free memory,
        else there are two contexts of cells. The rest is as in `GgufEngine.open`. Raises what that raises, and
        `EngineError` for a model of which no sequences can share a beginning (recurrent ones).
        """
        library()
        threads = default_threads() if threads is None else threads
        longest = 4096 if context is None else context
        if not 1 <= sequences <= MOST_SEQUENCES or min(threads, longest, cells or 1) < 1:
            raise ConfigError(
                f"{sequences} sequences with a context of {longest} tokens in {cells or 'any'} cells, "
                f"{threads} threads",
                hint=f"use 1 to {MOST_SEQUENCES} sequences, and 1 or more of the others",
            )
        header = read_header(path)
        if template is not None:
            header = replace(header, chat_template=template)
        name = name or header.name or path.stem
        longest = min(longest, header.context_length or longest, cells or longest)
        adapted, size = None, 0
        if adapter is not None:
            read_adapter(adapter, header)
            adapted, size = file_fingerprint(adapter), adapter.stat().st_size
        free, own = available_memory(), sequences * rounded(longest)
        if cells is None and free is not None and not gpu_layers:
            wanted = estimate_memory(header, own, tuning, adapter=size)
            cells = own if wanted.cache <= _OWN_SHARE * free and wanted.needed <= room(free) else None
        cells = cells or longest * min(2, sequences)
        apart = cells >= own and sequences > 1
        cells = own if apart else cells
        tuning = fit_tuning(name, header, cells, tuning, free, adapter=size)
        model = SequenceModel(path, threads=threads, gpu_layers=gpu_layers, tuning=tuning, adapter=adapter)
        try:
            batch = max(min(tuning.batch, cells), sequences)
            made = SequenceContext(model, cells=cells, sequences=sequences, batch=batch, tuning=tuning, apart=apart)
        except EngineError:
            model.close()
            raise

        def fingerprint() -> str:
            own = sha256 or file_fingerprint(path)
            return own if adapted is None else adapted_fingerprint(own, adapted)

        return cls(model, made, header, name, longest, fingerprint)

    @property
    def name(self) -> str:
        """The model's name as the user knows it."""
        return self._name

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model file, hexadecimal; with an adapter, of that and the adapter's together."""
        return self._hash()

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may take together."""
        return self._context

    @property
    def running(self) -> int:
        """Generations that hold a sequence now."""
        return self._worker.batching.running

    def count(self, text: str) -> int:
        """Exact number of tokens that `generate` would evaluate for `text` as the whole prompt."""
        return len(self.tokens(text))

    def tokens(self, text: str) -> list[int]:
        """The tokens that `generate` would evaluate for `text` as the whole prompt."""
        return self._prompts.tokens(text)

    def render(self, messages: Sequence[Message]) -> str:
        """See `Engine.render`. Raises `TemplateError`."""
        self._worker.check_open()
        return self._prompts.render(messages)

    def generate(self, prompt: str, options: GenerateOptions, cancel: Event | None = None) -> Generation:
        """Start generating; see `Engine.generate`. Tokens that are not read wait, so no reader holds up another.

        The timings of its result begin with its first batch: what it waited for a sequence is not in them.
        """
        check_options(options)
        self._worker.check_open()
        tokens = self._prompts.fitting(prompt, options.max_tokens, self.context)
        with self._prompts.reading() as model:
            asked = Asked(model, tokens, options, cancel or Event())
        self._worker.add(asked)
        return Generation(_Reading(self, self._worker, asked), lambda: asked.made.ready)

    def candidates(
        self, prompt: str, count: int, options: GenerateOptions, cancel: Event | None = None
    ) -> list[Generation]:
        """`count` answers to one prompt, which is evaluated once; their seeds count up from that of `options`."""
        return [self.generate(prompt, replace(options, seed=options.seed + at), cancel) for at in range(count)]

    def close(self) -> None:
        """Free the model; running generations end with `EngineError`. Again does nothing."""
        self._worker.shut()
        self._worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Reading(Generator[Token, None, GenerationResult]):
    """The tokens of an answer, for one reader. Closed or dropped, even before the first, it ends the answer."""

    def __init__(self, engine: BatchEngine, worker: BatchWorker, asked: Asked) -> None:
        self._engine: BatchEngine | None = engine  # stays open for as long as it is read
        self._worker, self._asked, self._read = worker, asked, 0
        weakref.finalize(self, _drop, asked).atexit = False

    def send(self, _value: None) -> Token:
        """The next token; raises `StopIteration` with the result, and `EngineError`."""
        try:
            while self._engine is not None:
                if self._asked.unwanted:
                    raise StopIteration(self._asked.result("cancelled", self._read))
                self._worker.check_open()
                try:
                    made = self._asked.made.get(timeout=_POLL)
                except Empty:
                    continue
                if isinstance(made, Token):
                    self._read += 1
                    return made
                if isinstance(made, Exception):
                    raise made
                raise StopIteration(self._asked.result(made, self._read))
            raise StopIteration
        except BaseException:
            self.close()
            raise

    def throw(self, kind: Any, value: Any = None, trace: Any = None) -> Token:
        """End the answer and raise."""
        self.close()
        raise (kind if value is None else value)

    def close(self) -> None:
        """End the answer."""
        self._asked.dropped = True
        self._engine = None


def _drop(asked: Asked) -> None:
    asked.dropped = True
