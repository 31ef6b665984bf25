"""The engine for GGUF models, on llama.cpp's low-level functions; implements `edge_sdk.engines.engine.Engine`.

Prompts, streaming text, cancelling, reuse of the KV cache between prompts, and the order of things when several
threads ask. Knows nothing of documents; the C functions are in `llama`, the file's header in `gguf_header`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import NamedTuple, Self

from ..device import available_memory, default_threads
from ..errors import ConfigError, EngineError
from ..model_files.gguf_adapter import read_adapter
from ..model_files.gguf_header import GgufHeader, read_header
from ..records import FinishReason, GenerateOptions, GenerationResult, Message, Token
from .ahead import Ahead
from .decoding import Decoding, Speculation
from .engine import Generation, TextStream, adapted_fingerprint, check_options, file_fingerprint
from .llama import LlamaModel
from .llama_library import library
from .llama_sampler import Sampler
from .memory import fit_tuning
from .prefix_cache import PrefixCache, state_key
from .profile import DEFAULT, Tuning
from .prompt_tokens import PromptTokens


class GgufEngine:
    """A GGUF model in llama.cpp: one generation at a time, from any thread.

    The engine is taken when the first token of a generation is asked for and free again when the generation
    ends, is closed or is dropped; another one meanwhile raises `EngineError`. A prompt that begins like the one
    before (the next turn of a chat) is evaluated only from where it differs.

    >>> engine = GgufEngine.open(Path("model.gguf"))  # doctest: +SKIP
    >>> prompt = engine.render([Message("user", "Hi")])  # doctest: +SKIP
    >>> for token in engine.generate(prompt, GenerateOptions()):  # doctest: +SKIP
    ...     print(token.text, end="")
    """

    def __init__(
        self, model: LlamaModel, header: GgufHeader, name: str, context: int, fingerprint: Callable[[], str]
    ) -> None:
        """Use `open`; this takes what it has loaded."""
        self._file_hash = cache(fingerprint)
        self._adapter: tuple[Path, str] | None = None  # with its hash
        self._model, self._header, self._name, self._context = model, header, name, context
        self._template_source, self._prompts = header.chat_template, PromptTokens(model, header, name)
        self._taken = threading.Lock()  # by a generation, for as long as it runs
        self._native = threading.Lock()  # by whoever is inside llama.cpp
        self._closed = Event()
        self._speculation: Speculation | None = None
        self._prefixes: PrefixCache | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        name: str | None = None,
        context: int | None = None,
        threads: int | None = None,
        gpu_layers: int = 0,
        sha256: str | None = None,
        template: str | None = None,
        tuning: Tuning = DEFAULT,
        adapter: Path | None = None,
        speculation: bool = False,
        prefix_cache: PrefixCache | None = None,
    ) -> Self:
        """Check the file's header, then load it; the weights are mapped, not read.

        `sha256` is the file's, where that is known; it is computed when it is asked for, else. `template` is a
        chat template to use instead of the file's, `adapter` a LoRA adapter in GGUF; see `use_adapter`.
        `context` is at most what the model was trained for, and 4,096 unless given; `threads` follows the device.
        `gpu_layers` other than 0 needs a llama.cpp built for a GPU, and then a prefill can only be cancelled
        between batches. With `speculation` the tokens of a greedy answer that repeats its prompt are evaluated
        several at a time where that pays (see `decoding`): the same tokens, sooner. What a `prefix_cache` has of
        a prompt, from this process or another, is not evaluated again; the engine closes it with itself.

        Raises `ModelNotFoundError`, `ModelDamagedError` before native code sees a file, `ModelError` for the
        adapter of another model, `NotEnoughMemoryError` with settings that fit where memory cannot hold it (smaller
        batches are taken without asking), `EngineError` where llama.cpp cannot load it, and `MissingExtraError`.
        """
        library()
        threads = default_threads() if threads is None else threads
        wanted = 4096 if context is None else context
        if threads < 1 or wanted < 1:
            raise ConfigError(f"{threads} threads and a context of {wanted} tokens", hint="use 1 or more of each")
        header = read_header(path)
        if template is not None:
            header = replace(header, chat_template=template)
        name = name or header.name or path.stem
        wanted = min(wanted, header.context_length or wanted)
        used = None if adapter is None else (adapter, _checked_adapter(adapter, header))
        size = 0 if adapter is None else adapter.stat().st_size
        tuning = fit_tuning(name, header, wanted, tuning, available_memory(), adapter=size)
        model = LlamaModel(
            path, context=wanted, threads=threads, gpu_layers=gpu_layers, tuning=tuning, adapter=adapter
        )
        if prefix_cache is not None and sha256 is None:
            sha256 = prefix_cache.folder.model_hash(path)
        engine = cls(model, header, name, wanted, lambda: sha256 or file_fingerprint(path))
        engine._prefixes = prefix_cache
        engine._adapter = used
        if speculation and model.forgets:
            engine._speculation = Speculation()
        return engine

    @property
    def name(self) -> str:
        """The model's name as the user knows it."""
        return self._name

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model file, hexadecimal; with an adapter, of that and the adapter's together."""
        if self._adapter is None:
            return self._file_hash()
        return adapted_fingerprint(self._file_hash(), self._adapter[1])

    @property
    def adapter(self) -> Path | None:
        """The file of the LoRA adapter in use."""
        return self._adapter[0] if self._adapter else None

    def use_adapter(self, adapter: Path | None) -> None:
        """Take another LoRA adapter from now on, or none; the model stays loaded.

        Raises `ModelDamagedError`, `ModelNotFoundError` or `ModelError` for a file that is none or does not fit the
        model, and `EngineError` during a generation or where llama.cpp fails; then the one in use stays.
        """
        used = None if adapter is None else (adapter, _checked_adapter(adapter, self._header))
        with self._alone(), self._inside() as model:
            model.adapt(adapter)
            self._adapter = used

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may take together."""
        return self._context

    def count(self, text: str) -> int:
        """Exact number of tokens that `generate` would evaluate for `text` as the whole prompt.

        That includes the token that some models want at the beginning, and special tokens spelled in `text`.
        Raises `EngineError` for a text of more than 16 MiB.
        """
        return len(self.tokens(text))

    def tokens(self, text: str) -> list[int]:
        """The tokens that `generate` would evaluate for `text` as the whole prompt; see `count`."""
        return self._prompts.tokens(text)

    def render(self, messages: Sequence[Message]) -> str:
        """The model's chat template applied, ending where the assistant's turn begins; ChatML where it has none.

        Control tokens spelled out in a message are defused: they stay text. Raises `TemplateError`.
        """
        self._check_open()
        return self._prompts.render(messages)

    def generate(self, prompt: str, options: GenerateOptions, cancel: Event | None = None) -> Generation:
        """Start generating; see `Engine.generate`. All of `prompt` is tokenized with special tokens.

        The token with which the model ends its answer comes too, its text empty but for what was held back. A
        JSON schema or grammar holds as far as the answer goes: `max_tokens` may cut it off.
        """
        check_options(options)
        self._check_open()
        tokens = self._prompts.fitting(prompt, options.max_tokens, self.context)
        with self._inside():
            sampler = Sampler(self._model, options, tokens)
        group = deque[_Made]()  # tokens that came together and are still to be read
        return Generation(self._run(tokens, options, sampler, cancel or Event(), group), lambda: bool(group))

    def close(self) -> None:
        """Free the model; a running generation ends with `EngineError`. Again does nothing."""
        self._closed.set()  # a running prefill looks at it
        self._prompts.close()
        with self._native:
            self._model.close()
        if self._prefixes is not None:
            self._prefixes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _inside(self) -> Iterator[LlamaModel]:
        """The model, to this thread alone."""
        with self._native:
            self._check_open()
            yield self._model

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The engine, for as long as a generation takes, to it alone."""
        if not self._taken.acquire(blocking=False):
            raise EngineError(
                f"{self._name} is busy with another generation", hint="finish or close that one first"
            )
        try:
            yield
        finally:
            self._taken.release()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise EngineError(f"{self._name} is closed")

    def _run(
        self,
        prompt: list[int],
        options: GenerateOptions,
        sampler: Sampler,
        cancel: Event,
        group: deque[_Made],
    ) -> Generator[Token, None, GenerationResult]:
        with self._alone(), self._kept_after():
            started = time.perf_counter()

            def stopped() -> bool:
                return cancel.is_set() or self._closed.is_set()

            with self._inside() as model:
                model.settle()  # what a dropped generation may have left
                cached = 0 if stopped() else self._take_up(model, prompt)
                complete = not stopped() and model.prefill(prompt[cached:], stopped)
            self._check_open()
            prefilling = time.perf_counter() - started
            if not complete:
                return GenerationResult("cancelled", len(prompt), cached, 0, prefilling * 1e3, 0.0)
            answer = Decoding(self._model, sampler, prompt, self._speculation if sampler.greedy else None)
            reason, produced, last = yield from self._decode(answer, options, cancel, group)
            return GenerationResult(
                reason,
                len(prompt),
                cached,
                produced,
                prefilling * 1e3,
                last.seconds * 1e3,
                drafted_tokens=last.drafted,
                accepted_tokens=last.accepted,
                shares=sampler.shares,
            )

    def _take_up(self, model: LlamaModel, prompt: list[int]) -> int:
        """Have in the context what can be had of a prompt without evaluating it; how many tokens that is."""
        if self._prefixes is None:
            return model.keep_prefix(prompt)
        return self._prefixes.begin(self._state_key(), model, prompt)

    @contextmanager
    def _kept_after(self) -> Iterator[None]:
        """Keep afterwards what the context holds, however the generation has ended.

        A dropped one may end in a thread that has the lock, so it is not waited for long.
        """
        try:
            yield
        finally:
            if self._prefixes is not None and self._may_wait and self._native.acquire(timeout=0.1):
                try:
                    if not self._closed.is_set():
                        self._model.settle()
                        self._prefixes.end(self._state_key(), self._model)
                finally:
                    self._native.release()

    def _state_key(self) -> bytes:
        return state_key(self.fingerprint, self._template_source, self._model.setup)

    def _decode(
        self, answer: Decoding, options: GenerateOptions, cancel: Event, group: deque[_Made]
    ) -> Generator[Token, None, tuple[FinishReason, int, _Made]]:
        """The tokens of an answer, through `group`; why it ended, how many they are, what the last of them says."""
        produced, last = 0, _NOTHING
        # What cannot be forgotten is not made before it is wanted.
        ahead = Ahead(self._submit, self._maker(answer, options), most=int(self._model.forgets))
        try:
            while last.reason is None:
                if cancel.is_set():
                    return "cancelled", produced, last
                self._check_open()
                if not group:
                    group.extend(ahead.get())
                last = group.popleft()
                produced += 1
                yield last.token
            return last.reason, produced, last
        finally:
            ahead.stop()
            self._settle(answer, produced)

    def _maker(self, answer: Decoding, options: GenerateOptions) -> Callable[[], tuple[list[_Made], bool]]:
        """What makes the next token, with those that come at once, and says whether another follows."""
        stream, model = TextStream(options.stop), self._model
        produced, seconds = 0, 0.0

        def one() -> _Made:
            nonlocal produced, seconds
            started = time.perf_counter()
            figures = answer.next(options.max_tokens - produced)
            ended = model.is_end(figures.chosen)
            text = stream.push(b"" if ended else model.piece(figures.chosen))
            produced += 1
            reason: FinishReason | None = "stop" if ended or stream.stopped else None
            if reason is None and produced == options.max_tokens:
                reason = "length"
            text += stream.finish() if reason else ""
            token = Token(figures.chosen, text, figures.logprob, figures.entropy, figures.margin)
            seconds += time.perf_counter() - started
            return _Made(token, reason, seconds, answer.drafted, answer.accepted)

        def make() -> tuple[list[_Made], bool]:
            self._check_open()
            group = [one()]
            while group[-1].reason is None and answer.at_hand:
                group.append(one())
            return group, group[-1].reason is None

        return make

    def _submit(self, job: Callable[[], object]) -> None:
        with self._inside() as model:  # a closed one runs nothing
            model.submit(job)

    def _settle(self, answer: Decoding, given: int) -> None:
        """Leave in the memory only what was given.

        A dropped generation may end in a thread that has the lock, so that is not waited for: `LlamaModel.settle`
        and `keep_prefix` do the same before the next prompt.
        """
        if self._may_wait and self._native.acquire(blocking=False):
            try:
                if not self._closed.is_set():
                    self._model.settle()
                    answer.end(given)
            finally:
                self._native.release()

    @property
    def _may_wait(self) -> bool:
        """Whether the thread that computes goes on while this one waits: not in it, nor at the program's end."""
        return not (self._model.computing or sys.is_finalizing())


class _Made(NamedTuple):
    """A token, why it is the last, and what the answer with it has taken; `drafted` and `accepted` are tokens."""

    token: Token
    reason: FinishReason | None
    seconds: float
    drafted: int
    accepted: int


_NOTHING = _Made(Token(0, "", 0.0, 0.0, 0.0), None, 0.0, 0, 0)


def _checked_adapter(path: Path, model: GgufHeader) -> str:
    """The hash of an adapter that fits the model."""
    read_adapter(path, model)
    return file_fingerprint(path)
