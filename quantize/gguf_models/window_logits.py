"""Logits of a GGUF language model behind every token of a window of text, a slice at a time.

Texts become windows as in llama.cpp's perplexity tool: its tokenization, windows of equal length that each start
afresh, the token that the vocabulary begins texts with in the place of their first. Knows nothing of what is made
of the logits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event as Flag

import numpy as np
from numpy.typing import NDArray

from edge_sdk.device import available_memory, default_threads
from edge_sdk.engines.llama import LlamaModel
from edge_sdk.engines.llama_library import library
from edge_sdk.engines.native_thread import NativeThread
from edge_sdk.errors import ConfigError, EngineError
from edge_sdk.model_files.gguf_header import read_header

Floats = NDArray[np.float32]
Tokens = NDArray[np.int32]

SLICE = 256  # positions that are evaluated together; of Qwen's 151,936 tokens their logits take 155 MB
_LEAST_CONTEXT = 8
_MOST_TEXT = 64 << 20  # bytes; llama.cpp counts in 32 bits and slows down on long texts


class LogitModel(LlamaModel):
    """A loaded model that gives the logits of many positions instead of the last one."""

    def __init__(self, path: Path, *, context: int, threads: int, beside: LogitModel | None = None) -> None:
        """Load `path`, whose header has been checked. It computes on the native thread of `beside`, if given."""
        super().__init__(path, context=context, threads=threads, gpu_layers=0)
        self._worker: NativeThread = (
            self._thread if beside is None else beside._worker
        )  # see `native_thread`: one for all

    def texts(self) -> tuple[bytes, ...]:
        """Every token as the vocabulary spells it."""
        spelled = self._lib.llama_vocab_get_text
        return tuple(spelled(self.vocabulary, token) for token in range(self.size))

    def plain_tokens(self, text: str) -> list[int]:
        """Tokens of a text in which nothing spells a special token; those that the vocabulary adds are there."""
        raw = text.encode("utf-8", "replace")
        if len(raw) > _MOST_TEXT:
            raise ConfigError(
                f"a text of {len(raw) >> 20} MiB is too long", hint=f"give {_MOST_TEXT >> 20} or less"
            )
        tokens = (ctypes.c_int32 * (len(raw) + 8))()
        count = self._lib.llama_tokenize(self.vocabulary, raw, len(raw), tokens, len(tokens), True, False)
        if count < 0:
            raise EngineError(f"llama.cpp cannot tokenize a text of {len(raw)} bytes")
        return tokens[:count]

    def windows(self, text: str | Sequence[int], length: int) -> Tokens:
        """A text, or its tokens, as windows of `length` tokens [windows, length]; what is left over is dropped.

        Raises `ConfigError` for a text that is shorter than a window.
        """
        tokens = np.asarray(self.plain_tokens(text) if isinstance(text, str) else text, np.int64)
        if len(tokens) < length:
            raise ConfigError(
                f"the text has {len(tokens)} tokens, which is less than a window of {length}",
                hint="give a longer text or shorter windows",
            )
        if (unknown := tokens[(tokens < 0) | (tokens >= self.size)]).size:
            raise ConfigError(f"token {unknown[0]} is not among the {self.size} of the vocabulary")
        windows = tokens[: len(tokens) // length * length].reshape(-1, length).astype(np.int32)
        if (begin := self.begin()) is not None:
            windows[:, 0] = begin
        return windows

    def logits(self, window: Tokens, first: int, cancel: Flag | None = None) -> Iterator[tuple[Floats, Tokens]]:
        """Logits behind the tokens from `first` to the last but one, and the tokens that really follow them.

        They come in slices [positions, vocabulary] of llama.cpp's own memory, each good until the next. Setting
        `cancel` stops the evaluation within milliseconds and raises `KeyboardInterrupt`.
        """
        self._lib.llama_memory_clear(self._memory, True)
        self.seen.clear()
        tokens = (ctypes.c_int32 * len(window))(*window.tolist())
        wanted = (ctypes.c_int8 * len(window))(*[0] * first, *[1] * (len(window) - first))
        for start, end in slices(len(window) - 1):
            self._part(tokens, wanted, start, end - start, cancel)
            if end <= first:
                continue
            rows, start = self._lib.llama_get_logits(self._context), max(start, first)
            if not rows:
                raise EngineError("the model gives no logits", hint="use a language model")
            yield np.ctypeslib.as_array(rows, (end - start, self.size)), window[start + 1 : end + 1]

    def _part(
        self,
        tokens: ctypes.Array[ctypes.c_int32],
        wanted: ctypes.Array[ctypes.c_int8],
        start: int,
        count: int,
        cancel: Flag | None,
    ) -> None:
        """Evaluate some tokens of a window after those before them, for the logits of those that are wanted."""
        lib = self._lib
        first = ctypes.cast(ctypes.byref(tokens, start * ctypes.sizeof(ctypes.c_int32)), lib.llama_token_p)
        flags = ctypes.cast(ctypes.byref(wanted, start), ctypes.POINTER(ctypes.c_int8))
        batch = lib.llama_batch(n_tokens=count, token=first, logits=flags)
        stopped: Callable[[], bool] = bool if cancel is None else cancel.is_set
        self._stop.set(False)

        def evaluate() -> bool:
            lib.llama_set_abort_callback(self._context, self._stop.callback, self._stop.address)
            try:
                return self._decode(batch)
            finally:
                lib.llama_set_abort_callback(self._context, lib.ggml_abort_callback(), None)

        if stopped() or not self._worker.run(evaluate, self._stop.set, stopped):
            raise KeyboardInterrupt


def slices(count: int) -> Iterator[tuple[int, int]]:
    """Parts of at least half a `SLICE`, where there are as many tokens, for which llama.cpp evaluates `count`.

    For fewer than 64 it sums attention in another order. That alone changes logits by less than 1e-6, but then the
    activations, which are rounded to int8 at every quantized tensor, round differently: a file differs from itself
    by a KL divergence of 0.003, as much as Q8_0 costs. Parts of 128 and more give the very logits of a whole window
    (SmolLM2, x86-64).

    >>> list(slices(511)), list(slices(600)), list(slices(40))
    ([(0, 256), (256, 511)], [(0, 256), (256, 600)], [(0, 40)])
    """
    starts = list(range(0, count, SLICE))
    if len(starts) > 1 and count - starts[-1] < SLICE // 2:
        starts.pop()
    return zip(starts, [*starts[1:], count], strict=True)


@contextmanager
def open_models(*paths: Path, context: int, threads: int | None = None) -> Iterator[list[LogitModel]]:
    """The models of some files, loaded side by side, closed at the end.

    Every header, and the memory for all of them, is checked before one is loaded. Raises `ModelDamagedError`,
    `ModelNotFoundError`, `EngineError` and, for a context that they were not made for, `ConfigError`.
    """
    library()
    headers = {path: read_header(path) for path in paths}
    threads = default_threads() if threads is None else threads
    if threads < 1:
        raise ConfigError(f"{threads} threads", hint="use 1 or more")
    needed = 0
    for path, header in headers.items():
        most = header.context_length or context
        if not _LEAST_CONTEXT <= context <= most:
            raise ConfigError(f"windows of {context} tokens, but {path.name} takes {_LEAST_CONTEXT} to {most}")
        needed += header.file_bytes + header.kv_bytes(context) + 8 * SLICE * header.vocabulary
    free = available_memory()
    if free is not None and needed > free:
        raise EngineError(
            f"{' and '.join(path.name for path in headers)} need {needed >> 20} MiB, but {free >> 20} MiB are free",
            hint="close other programs or use smaller models",
        )
    with ExitStack() as stack:
        models: list[LogitModel] = []
        for path in paths:
            beside = models[0] if models else None
            models.append(LogitModel(path, context=context, threads=threads, beside=beside))
            stack.callback(models[-1].close)
        yield models


def check_same_vocabulary(expected: Sequence[bytes], found: Sequence[bytes], name: str) -> None:
    """Raise `ConfigError` unless the tokens of model `name` are exactly those expected, in the same order."""
    if len(expected) != len(found):
        raise ConfigError(
            f"{name} has {len(found)} tokens and the reference {len(expected)}: their vocabularies differ",
            hint="compare models with the same vocabulary",
        )
    for token, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        if ours != theirs:
            raise ConfigError(
                f"token {token} is {_shown(theirs)} in {name} and {_shown(ours)} in the reference",
                hint="compare models with the same vocabulary",
            )


def read_text(path: Path) -> str:
    """A text file's contents. Raises `ConfigError` where it cannot be read or is no UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", hint="give a text file with --text"
        ) from error


def _shown(token: bytes) -> str:
    return repr(token.decode("utf-8", "replace")[:40])
