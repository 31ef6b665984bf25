"""The engine for GGUF models on which many generations run at once; implements `edge_sdk.engines.engine.Engine`.

One context holds all of them. A thread of its own evaluates them in batches and hands each token over to whoever
reads that generation. Which tokens come together is the business of `batching`. Knows nothing of documents.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event
from types import TracebackType
from typing import Any, Self

import numpy as np

from ..device import available_memory, default_threads
from ..errors import ConfigError, EngineError
from ..model_files.gguf_adapter import read_adapter
from ..model_files.gguf_header import GgufHeader, read_header
from ..records import FinishReason, GenerateOptions, GenerationResult, Message, Token
from .batching import Batching
from .engine import Generation, TextStream, adapted_fingerprint, check_options, file_fingerprint
from .llama import LlamaModel, library
from .llama_sampler import Sampler
from .memory import fit_tuning
from .profile import DEFAULT, Tuning
from .prompt_tokens import PromptTokens
from .sequences import MOST_SEQUENCES, SequenceContext, SequenceModel

_POLL = 1.0  # seconds between two looks of a reader; whatever happens wakes it
_STALL = 0.1  # seconds that an answer may have to wait for the prompts of others in its batch
_LEAST_PART = 32  # tokens of a prompt; with fewer the weights are read too often
_KEPT_SHARE = 0.25  # of the cells may hold what ended answers have left


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
        self._worker = _Worker(model, context, self._prompts, name)
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
        they do not fit `cells`, the tokens that the key-value cache holds for all, by default two contexts of them.
        The rest is as in `GgufEngine.open`. Raises what that raises, and `EngineError` for a model of which no
        sequences can share a beginning (recurrent ones).
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
        cells = cells or longest * min(2, sequences)
        adapted, size = None, 0
        if adapter is not None:
            read_adapter(adapter, header)
            adapted, size = file_fingerprint(adapter), adapter.stat().st_size
        tuning = fit_tuning(name, header, cells, tuning, available_memory(), adapter=size)
        model = SequenceModel(path, threads=threads, gpu_layers=gpu_layers, tuning=tuning, adapter=adapter)
        try:
            batch = max(min(tuning.batch, cells), sequences)
            made = SequenceContext(model, cells=cells, sequences=sequences, batch=batch, tuning=tuning)
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
            asked = _Asked(model, tokens, options, cancel or Event())
        self._worker.add(asked)
        return Generation(_Reading(self, self._worker, asked))

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


class _Asked:
    """A prompt and its answer, between the thread that reads it and the one that computes."""

    def __init__(self, model: LlamaModel, prompt: list[int], options: GenerateOptions, cancel: Event) -> None:
        self.prompt, self.max_tokens = np.array(prompt, np.int32), options.max_tokens
        self.made: SimpleQueue[Token | FinishReason | Exception] = SimpleQueue()
        self.cached, self.dropped, self.over = 0, False, False
        self._model, self._cancel = model, cancel
        self._sampler, self._stream = Sampler(model, options, prompt), TextStream(options.stop)
        self._produced = 0
        self._began = self._first = self._last = time.perf_counter()

    @property
    def unwanted(self) -> bool:
        """Whether nobody wants the rest."""
        return self.dropped or self._cancel.is_set()

    def begin(self, cached: int) -> None:
        """See `Answer.begin`."""
        self.cached, self._began = cached, time.perf_counter()

    def next(self, row: Any) -> int | None:
        """See `Answer.next`. What goes wrong is for whoever reads this answer; the others go on."""
        if self.over:
            return None
        try:
            figures = self._sampler.choose(row)
            chosen = figures.chosen
            ended = self._model.is_end(chosen)
            text = self._stream.push(b"" if ended else self._model.piece(chosen))
        except Exception as error:
            self.end(error)
            return None
        self._last = time.perf_counter()
        self._first = self._first if self._produced else self._last
        self._produced += 1
        reason: FinishReason | None = "stop" if ended or self._stream.stopped else None
        if reason is None and self._produced == self.max_tokens:
            reason = "length"
        text += self._stream.finish() if reason else ""
        self.made.put(Token(chosen, text, figures.logprob, figures.entropy, figures.margin))
        if reason:
            self.end(reason)
            return None
        return chosen

    def end(self, how: FinishReason | Exception) -> None:
        """Nothing more comes."""
        if not self.over:
            self.over = True
            self.made.put(how)

    def result(self, reason: FinishReason, tokens: int) -> GenerationResult:
        """How it ended, of which so many tokens were read."""
        prefilling, decoding = max(0.0, self._first - self._began), self._last - self._first
        return GenerationResult(
            reason, len(self.prompt), self.cached, tokens, prefilling * 1e3, decoding * 1e3 if tokens else 0.0
        )


class _Reading(Generator[Token, None, GenerationResult]):
    """The tokens of an answer, for one reader. Closed or dropped, even before the first, it ends the answer."""

    def __init__(self, engine: BatchEngine, worker: _Worker, asked: _Asked) -> None:
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


def _drop(asked: _Asked) -> None:
    asked.dropped = True


class _Worker:
    """Evaluates what is asked, in batches, on the thread that computes; one of its own watches for what to stop.

    Both sleep while there is nothing to do.
    """

    def __init__(self, model: SequenceModel, context: SequenceContext, prompts: PromptTokens, name: str) -> None:
        self._model, self._context, self._prompts, self._name = model, context, prompts, name
        self.batching: Batching[_Asked] = Batching(context, keep=int(context.cells * _KEPT_SHARE))
        self._inbox: SimpleQueue[_Asked | None] = SimpleQueue()
        self._asked: list[_Asked] = []
        self._closed, self._seconds = False, 0.0  # a token of a prompt, as it was last
        self._thread = threading.Thread(target=self._work, name="edge-batches", daemon=True)
        self._thread.start()

    def add(self, asked: _Asked) -> None:
        self._inbox.put(asked)

    def check_open(self) -> None:
        if self._closed:
            raise self._no_longer()

    def _no_longer(self) -> EngineError:
        return EngineError(f"{self._name} is closed")

    def shut(self) -> None:
        """End soon; takes no lock, so that it may come whenever an engine is dropped."""
        self._closed = True
        self._inbox.put(None)

    def join(self) -> None:
        self._thread.join()

    def _work(self) -> None:
        try:
            while not self._closed:
                self._take(self._inbox.get())
                self._context.run(self._answer, self._stopped)
        finally:
            self._closed = True
            self._receive()
            for asked in self._asked:
                asked.end(self._no_longer())
            self._prompts.close()
            self._context.close()
            self._model.close()

    def _answer(self) -> bool:
        """On the thread that computes: one batch after the other, until there is nothing left to do."""
        while self._asked and not self._closed:
            self._step()
            self._receive()
        return True

    def _receive(self) -> None:
        with suppress(Empty):
            while True:
                self._take(self._inbox.get_nowait())

    def _take(self, asked: _Asked | None) -> None:
        if asked is not None:
            self._asked.append(asked)
            self.batching.add(asked)

    def _step(self) -> None:
        self._end_unwanted()
        over = [asked for asked in self._asked if asked.over]  # as it is now: whoever watches may end more
        for asked in over:
            self.batching.drop(asked)
        self._asked = [asked for asked in self._asked if asked not in over]
        if not self._asked:
            return
        started = time.perf_counter()
        try:
            tokens = self.batching.step(prompts=self._prompt_tokens())
        except EngineError as error:
            for asked in self.batching.clear():
                asked.end(error)
        else:
            if tokens and tokens >= _LEAST_PART:
                self._seconds = (time.perf_counter() - started) / tokens

    def _end_unwanted(self) -> None:
        for asked in self._asked:
            if asked.unwanted:
                asked.end("cancelled")

    def _stopped(self) -> bool:
        """Whether nobody wants the batch that is being evaluated; asked from another thread."""
        self._end_unwanted()
        batch = self.batching.evaluating()
        return self._closed or (bool(batch) and all(asked.over for asked in batch))

    def _prompt_tokens(self) -> int:
        """How many tokens of prompts may be in the next batch: all of it for one that is alone."""
        if len(self._asked) == 1:
            return self._context.batch
        return max(_LEAST_PART, int(_STALL / self._seconds) if self._seconds else 0)
