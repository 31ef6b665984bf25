"""Many sequences in one context of llama.cpp, evaluated together.

Their keys and values lie in one buffer, where a common beginning costs a mark on each cell; or each sequence has a
buffer of its own, to which a beginning is copied. Knows nothing of prompts, of text or of which sequence is to be
evaluated when.
"""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from .llama import LlamaModel, set_adapter
from .profile import Tuning
from .threads import DRAFT, ThreadPace

if TYPE_CHECKING:
    from kernels.logits import LogitsFigures

_ABORTED = 2  # what llama_decode returns then
_SMALLEST = 32  # cells of the context that comes with the model and computes nothing
MOST_SEQUENCES = 256  # of one context, in llama.cpp


class SequenceModel(LlamaModel):
    """A loaded model of which contexts for many sequences can be made."""

    def __init__(
        self, path: Path, *, threads: int, gpu_layers: int, tuning: Tuning, adapter: Path | None = None
    ) -> None:
        """Load `path`, and an adapter; the headers of both have been checked.

        Raises `EngineError`, also for what cannot be batched.
        """
        super().__init__(
            path,
            context=_SMALLEST,
            threads=threads,
            gpu_layers=gpu_layers,
            tuning=replace(tuning, batch=_SMALLEST),
            adapter=adapter,
        )
        lib, self.most_threads = self._lib, threads
        self.handle = lib.llama_get_model(self._context)
        for asked, what in (
            (lib.llama_model_is_recurrent, "recurrent"),
            (lib.llama_model_is_hybrid, "partly recurrent"),
            (lib.llama_model_has_encoder, "an encoder with a decoder"),
        ):
            if asked(self.handle):
                self.close()
                raise EngineError(
                    f"{path.name} is {what}, and of that kind no sequences can share a beginning",
                    hint="use another model, or one answer at a time (EDGE_PARALLEL=1)",
                )


class SequenceContext:
    """`sequences` sequences in `cells` cells; up to `batch` tokens of any of them are evaluated together.

    Tokens are added one sequence after the other, then `evaluate` takes them all. Where sequences are `apart`, each
    has its share of the cells for itself; those in a batch come in rising order, and without a gap in their numbers
    they are evaluated at once. Close it before its model.
    """

    def __init__(
        self,
        model: SequenceModel,
        *,
        cells: int,
        sequences: int,
        batch: int,
        tuning: Tuning,
        apart: bool = False,
    ) -> None:
        """Raises `EngineError` where llama.cpp cannot make it."""
        self._model, self._lib, self.apart = model, model._lib, apart
        lib, self.cells, self.sequences, self.batch = self._lib, cells, sequences, batch
        settings = lib.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = cells, batch, batch
        settings.n_seq_max, settings.kv_unified, settings.swa_full = sequences, not apart, True
        settings.n_outputs_max = min(batch, sequences)  # else there is room for the logits of the whole batch
        if tuning.flash_attention is not None:
            settings.flash_attn_type = int(tuning.flash_attention)
        settings.type_k = settings.type_v = getattr(lib, f"GGML_TYPE_{tuning.cache_type}")
        settings.n_threads = settings.n_threads_batch = self._running = model.most_threads
        self._paces: dict[int, ThreadPace] = {}  # by number of tokens, for what is alike takes as long
        handle = lib.llama_init_from_model(model.handle, settings)
        if not handle:
            raise EngineError(f"llama.cpp cannot make a context of {cells} tokens for {sequences} sequences")
        self._context, self._memory = handle, lib.llama_get_memory(handle)
        if not set_adapter(lib, replace(model._handles, context=handle)):
            lib.llama_free(handle)
            raise EngineError("llama.cpp cannot use the adapter with many sequences")
        self._free = weakref.finalize(self, _free, lib, handle)
        self._free.atexit = False  # as for the model: the process ends anyway
        lib.llama_set_abort_callback(handle, model._stop.callback, model._stop.address)
        self._tokens, self._positions = np.zeros(batch, np.int32), np.zeros(batch, np.int32)
        self._owners, self._wanted = np.zeros(batch, np.int32), np.zeros(batch, np.int8)
        self._struct = self._batch_of_arrays()
        self.clear()

    def _batch_of_arrays(self) -> Any:
        """llama.cpp's view of our arrays, in which each token belongs to one sequence."""
        lib, kind = self._lib, ctypes.POINTER(ctypes.c_int32)
        self._counts = np.ones(self.batch, np.int32)
        start = self._owners.ctypes.data
        self._each = (kind * self.batch)(
            *(ctypes.cast(start + at * self._owners.itemsize, kind) for at in range(self.batch))
        )
        return lib.llama_batch(
            n_tokens=0,
            token=_address(self._tokens, ctypes.c_int32),
            pos=_address(self._positions, ctypes.c_int32),
            n_seq_id=_address(self._counts, ctypes.c_int32),
            seq_id=self._each,
            logits=_address(self._wanted, ctypes.c_int8),
        )

    def close(self) -> None:
        """Free it; again does nothing."""
        self._model._thread.run(lambda: self._free() is None)

    def clear(self) -> None:
        """Forget all sequences and what was added."""
        self._lib.llama_memory_clear(self._memory, True)
        self._struct.n_tokens = 0

    def cut(self, sequence: int, length: int) -> None:
        """Keep the first `length` tokens of a sequence."""
        if not self._lib.llama_memory_seq_rm(self._memory, sequence, length, -1):
            raise EngineError("llama.cpp cannot cut a sequence of this model", hint="use another model")

    def share(self, source: int, target: int, length: int) -> None:
        """Make the first `length` tokens of `source`, which are evaluated, those of `target`.

        Where sequences are not apart, `target` has to be empty.
        """
        if self.apart:  # a whole buffer is copied, or nothing
            self._lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            self.cut(target, length)
        elif length:
            self._lib.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def add(self, sequence: int, start: int, tokens: NDArray[np.int32], *, wanted: bool) -> int:
        """Add tokens of a sequence from position `start` on; the place of the last, whose logits may be wanted."""
        first = int(self._struct.n_tokens)
        end = first + len(tokens)
        self._tokens[first:end] = tokens
        self._positions[first:end] = np.arange(start, start + len(tokens), dtype=np.int32)
        self._owners[first:end] = sequence
        self._wanted[first:end] = 0
        self._wanted[end - 1] = wanted
        self._struct.n_tokens = end
        return end - 1

    def evaluate(self, stopped: Callable[[], bool]) -> bool:
        """Evaluate what was added. False where `stopped` became true before the end.

        Then each sequence of which there were tokens has to be cut to what it held before.
        """
        whole = not stopped() and self.run(self.compute, stopped)
        self._struct.n_tokens = 0
        return whole

    def run(self, job: Callable[[], bool], stopped: Callable[[], bool]) -> bool:
        """What `job` returns, on the thread that computes; while `stopped` is true, evaluations in it end early."""
        return self._model._thread.run(job, self._model._stop.set, stopped)

    def compute(self) -> bool:
        """`evaluate` on the thread that computes, which this has to be."""
        self._model._stop.set(False)
        try:
            return self._decode()
        finally:
            self._struct.n_tokens = 0

    def advance_greedily(
        self, sequence: int, position: int, token: int, most: int, seconds: float
    ) -> list[LogitsFigures]:
        """`LlamaModel.advance_greedily` for a sequence of which nothing else is to be evaluated.

        Fewer than one token where it is stopped. On the thread that computes.
        """
        model, pace = self._model, self._paces.setdefault(1, ThreadPace(self._model.most_threads))
        if pace.unsure:
            return []
        model._stop.set(False)
        self._set_threads(pace.threads)
        steps, code = model.run_greedily(self._context, token, most, seconds, (sequence, position))
        if code:
            if code != _ABORTED and not steps:
                raise EngineError(f"llama.cpp fails to evaluate 1 tokens (code {code})")
            self.cut(sequence, position + len(steps))  # what failed behind them fails again, and says so
        pace.took_together(took for _, took in steps)
        for each in self._paces.values():
            if each is not pace:
                each.passed(sum(took for _, took in steps))
        return [figures for figures, _ in steps]

    def _set_threads(self, threads: int) -> None:
        if threads != self._running:
            self._lib.llama_set_n_threads(self._context, threads, threads)
            self._running = threads

    def _decode(self) -> bool:
        tokens = int(self._struct.n_tokens)
        pace = self._paces.setdefault(tokens, ThreadPace(self._model.most_threads)) if tokens <= DRAFT else None
        # Not with parts of prompts: on many cores that would hold up all answers for long.
        trial = pace is not None and pace.unsure and tokens <= self.sequences
        self._set_threads(1 if trial else pace.threads if pace else self._model.most_threads)
        started = time.perf_counter()
        code = self._lib.llama_decode(self._context, self._struct)
        if code and code != _ABORTED:
            raise EngineError(f"llama.cpp fails to evaluate {tokens} tokens (code {code})")
        seconds = time.perf_counter() - started
        for each in self._paces.values():
            if each is not pace or code:
                each.passed(seconds)
            elif trial:
                each.tried_one(seconds)
            else:
                each.took(seconds)
        return not code

    def row(self, place: int) -> Any:
        """The logits behind a token of the last batch: a pointer to floats, good until the next `evaluate`."""
        row = self._lib.llama_get_logits_ith(self._context, place)
        if not row:
            raise EngineError("the model gives no logits", hint="use a language model")
        return row


def _address(array: NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))


def _free(lib: Any, context: Any) -> None:
    lib.llama_free(context)
