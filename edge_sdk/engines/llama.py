"""llama.cpp behind Python types: a loaded model with its context and adapter.

With `llama_vocabulary` and `llama_sampler` the one place that knows ctypes and the C functions of
llama-cpp-python's low-level module. It knows nothing of prompts or text. Nothing here may be used by two threads at
once; `engine_gguf` sees to that.
"""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EngineError
from ..kernel_faces import flag, greedy
from .llama_library import complaint, complaints, library
from .llama_state import State, copy_state, describe_setup, restore_state
from .llama_vocabulary import Vocabulary
from .native_thread import NativeThread
from .profile import DEFAULT, Tuning
from .threads import DRAFT, ThreadPace

if TYPE_CHECKING:
    from kernels.logits import LogitsFigures

_ABORTED = 2  # what llama_decode returns then


@dataclass(slots=True)
class _Handles:
    """What llama.cpp has made and has to free; the last two change when another adapter comes in."""

    model: Any
    context: Any = None
    adapter: Any = None


class LlamaModel(Vocabulary):
    """A model, one context of it, and `seen`, the tokens whose keys and values that context holds."""

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        threads: int,
        gpu_layers: int,
        tuning: Tuning = DEFAULT,
        adapter: Path | None = None,
        observer: Any = None,
        yielding: bool = True,
    ) -> None:
        """Load `path`, and a LoRA `adapter`; the headers of both have been checked.

        Raises `EngineError` with llama.cpp's own words. `observer`, a `ggml_backend_sched_eval_callback`, is asked
        about every operation; it must not raise. A `yielding` model computes tokens on fewer than `threads`
        while other processes need the cores.
        """
        self._lib = lib = library()
        complaints.clear()
        settings = lib.llama_model_default_params()
        self._gpu_layers = gpu_layers
        settings.n_gpu_layers, settings.load_mode = gpu_layers, lib.LLAMA_LOAD_MODE_MMAP
        self._repack = settings.use_extra_bufts = tuning.repack is not False
        model = lib.llama_model_load_from_file(_native_path(path), settings)
        if not model:
            raise EngineError(f"llama.cpp cannot load {path.name}: {complaint()}")
        settings = lib.llama_context_default_params()
        self.batch = min(tuning.batch, context)
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, self.batch, self.batch
        if tuning.flash_attention is not None:
            settings.flash_attn_type = int(tuning.flash_attention)
        settings.type_k = settings.type_v = getattr(lib, f"GGML_TYPE_{tuning.cache_type}")
        settings.n_threads = settings.n_threads_batch = self._running = threads
        self._pace = ThreadPace(threads) if yielding else None
        if observer is not None:
            settings.cb_eval = self._observer = observer  # kept alive as long as the context
        self._settings, self._handles, self._file = settings, _Handles(model), path.name
        self._thread, self._unsettled = NativeThread("edge-llama"), False
        self._free = weakref.finalize(self, _free, lib, self._handles, self._thread)
        self._free.atexit = False  # another thread may still be at work then, and the process ends anyway
        self.seen: list[int] = []
        try:
            self._begin_context(adapter)
        except EngineError:
            self.close()
            raise
        super().__init__(lib, model)
        self._stop = flag.Flag()
        self._token = (ctypes.c_int32 * 1)()
        self._single = lib.llama_batch(n_tokens=1, token=self._token)
        self._greedy = greedy.open_greedy(lib)
        self._place = -1  # of the last token seen among those evaluated together
        # Recurrent memories hold no single token that could be forgotten.
        self.forgets = not (lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))

    def adapt(self, adapter: Path | None) -> None:
        """Use the LoRA adapter of a file that has been checked instead of the one in use, or none.

        What was seen is forgotten. Raises `EngineError`, and then everything is as it was.
        """
        self._thread.run(lambda: self._begin_context(adapter))

    def _begin_context(self, path: Path | None) -> bool:
        """A new context, for llama.cpp plans its graphs when it makes one, for the adapters that are there then."""
        lib, handles = self._lib, self._handles
        complaints.clear()
        made = _Handles(handles.model)
        if path is not None:
            made.adapter = lib.llama_adapter_lora_init(made.model, _native_path(path))
            if not made.adapter:
                raise EngineError(f"llama.cpp cannot use {path.name} with {self._file}: {complaint()}")
        made.context = lib.llama_init_from_model(made.model, self._settings)
        memory = made.context and lib.llama_get_memory(made.context)
        if not memory or not set_adapter(lib, made):
            what = f"a context of {self._settings.n_ctx} tokens"
            what = "text: it is not a language model" if made.context and not memory else what
            _free_context(lib, made)
            raise EngineError(f"llama.cpp cannot make {what} with {self._file}: {complaint()}")
        old = replace(handles)
        handles.context, handles.adapter = made.context, made.adapter
        self._context, self._memory = made.context, memory
        self._running = self._settings.n_threads
        self.seen.clear()
        _free_context(lib, old)
        return True

    def close(self) -> None:
        """Free both; again does nothing. Nothing else may be called afterwards."""
        self._free()
        self._thread.join()

    # --- evaluation -------------------------------------------------------------------------------------

    def keep_prefix(self, prompt: Sequence[int]) -> int:
        """Forget what is beyond the longest prefix shared with `prompt`; return the length of what is kept.

        At least the last token is left to evaluate: its logits are what an answer starts from. Models whose memory
        cannot be cut (recurrent ones) forget everything.
        """
        shared = 0
        for old, new in zip(self.seen, prompt[:-1], strict=False):
            if old != new:
                break
            shared += 1
        # Always, for an interrupted evaluation may have left more behind than `seen` tells.
        if not self._lib.llama_memory_seq_rm(self._memory, 0, shared, -1):
            self._lib.llama_memory_clear(self._memory, True)
            shared = 0
        del self.seen[shared:]
        return shared

    @cached_property
    def setup(self) -> dict[str, object]:
        """All that `state` follows from, besides weights and tokens."""
        return describe_setup(self._lib, self._settings, self._gpu_layers, self._repack)

    def state(self, most: int) -> State | None:
        """A copy of what the context holds of all tokens seen; None where it has over `most` bytes, or in doubt."""
        return copy_state(self._lib, self._context, len(self.seen), most)

    def restore(self, tokens: Sequence[int], state: State) -> bool:
        """Have seen `tokens`, of which `state` is the copy, and nothing else; False where llama.cpp refuses it.

        Then nothing has been seen. The state must be of the same weights and `setup`.
        """
        self.seen.clear()
        if restore_state(self._lib, self._context, len(tokens), state):
            self.seen += tokens
        return bool(self.seen)

    def prefill(self, tokens: Sequence[int], stopped: Callable[[], bool]) -> bool:
        """Evaluate `tokens` after those seen. False where `stopped` became true before the end.

        An exception in the waiting thread, Ctrl-C above all, stops it too and is raised when it has stopped.
        """
        self._stop.set(False)
        return self._thread.run(lambda: self._evaluate(tokens), self._stop.set, stopped)

    def _evaluate(self, tokens: Sequence[int]) -> bool:
        lib = self._lib
        row = (ctypes.c_int32 * len(tokens))(*tokens)
        self._place = -1
        lib.llama_set_abort_callback(self._context, self._stop.callback, self._stop.address)
        try:
            for start in range(0, len(tokens), self.batch):
                count = min(self.batch, len(tokens) - start)
                first = ctypes.cast(ctypes.byref(row, start * ctypes.sizeof(ctypes.c_int32)), lib.llama_token_p)
                if self._stop.is_set() or not self._decode(lib.llama_batch(n_tokens=count, token=first)):
                    return False
                self.seen += tokens[start : start + count]
        finally:
            lib.llama_set_abort_callback(self._context, lib.ggml_abort_callback(), None)
        return True

    def advance(self, token: int, draft: Sequence[int] = ()) -> None:
        """Evaluate one token after those seen, and together with it a draft of what may follow, each with its row.

        The draft is in the memory then, but not among those seen: `keep` adds its tokens one by one, `cut` forgets
        the rest. Nothing else may be evaluated before that.
        """
        if draft:
            count = 1 + len(draft)
            tokens, wanted = (ctypes.c_int32 * count)(token, *draft), (ctypes.c_int8 * count)(*[1] * count)
            batch = self._lib.llama_batch(n_tokens=count, token=tokens, logits=wanted)
        else:
            self._token[0], batch = token, self._single
        self._thread.run(lambda: self._decode(batch))
        self._place = 0 if draft else -1
        self.seen.append(token)  # not before: `seen` may lack what the memory holds, never the reverse

    def advance_greedily(self, token: int, most: int, seconds: float) -> list[LogitsFigures]:
        """Evaluate `token`, then what is likeliest behind it, and so on; what the row behind each says.

        At most `most` tokens, as many as may take `seconds` and one at least; a token that ends a text is not
        evaluated. Empty where only `advance` can do it. Only for the thread that computes, and for a model that
        forgets.
        """
        pace = self._pace
        if pace and pace.unsure:
            return []
        self._set_threads(pace.threads if pace else self._settings.n_threads)
        steps, code = self.run_greedily(self._context, token, most, seconds)
        if not steps:
            self._check(code, 1)
            return []
        self._place = -1
        self.seen += [token, *(figures.chosen for figures, _ in steps[:-1])]
        if code:  # the next evaluation fails, too, and says so
            self._lib.llama_memory_seq_rm(self._memory, 0, len(self.seen), -1)
        if pace:
            pace.took_together(took for _, took in steps)
        return [figures for figures, _ in steps]

    def run_greedily(
        self, context: Any, token: int, most: int, seconds: float, place: tuple[int, int] = (0, -1)
    ) -> tuple[list[tuple[LogitsFigures, float]], int]:
        """`Greedy.run` in a context of this model; nothing is done where that cannot be."""
        if self._greedy is None:
            return [], 0
        try:
            return self._greedy.run(context, self.vocabulary, self.size, token, most, seconds, place)
        except ValueError as error:
            raise EngineError(f"the model fails: {error}", hint="its file may be damaged") from error

    def submit(self, job: Callable[[], object]) -> None:
        """Run `job`, which must not raise, on the thread that computes; only it uses the model until `settle`."""
        self._thread.submit(job)
        self._unsettled = True

    def settle(self) -> None:
        """Wait for what still computes, if anything may; not in a job itself."""
        if self._unsettled:
            self._unsettled = not self._thread.run(lambda: True)

    @property
    def computing(self) -> bool:
        """Whether the caller is a job on the thread that computes."""
        return self._thread.current

    @property
    def threads(self) -> int:
        """How many have computed the last tokens."""
        return int(self._running)

    def keep(self, token: int) -> None:
        """The next token of the draft is right, and the last one seen from now on."""
        self._place += 1
        self.seen.append(token)

    def cut(self, length: int) -> None:
        """Forget all but the first `length` tokens seen. Until the next evaluation there is no row."""
        kept = self.seen[:length]
        if self._lib.llama_memory_seq_rm(self._memory, 0, length, -1):
            del self.seen[length:]
            return
        self._lib.llama_memory_clear(self._memory, True)
        self.seen.clear()
        self.prefill(kept, bool)

    def _decode(self, batch: Any) -> bool:
        pace = self._pace
        if pace and pace.unsure and batch.n_tokens == 1 and self.forgets:
            # Forgotten again, for on another number of threads the numbers differ in their last bits.
            started = time.perf_counter()
            if not self._compute(batch, 1):
                pace.tried_one(time.perf_counter() - started)
            self._lib.llama_memory_seq_rm(self._memory, 0, len(self.seen), -1)
        started = time.perf_counter()
        code = self._compute(batch, pace.threads if pace and batch.n_tokens <= DRAFT else self._settings.n_threads)
        if pace and not code:
            took = pace.took if batch.n_tokens == 1 else pace.passed
            took(time.perf_counter() - started)
        if code != _ABORTED:
            self._check(code, batch.n_tokens)
        return not code

    def _check(self, code: int, tokens: int) -> None:
        """Raise `EngineError` for a code of llama.cpp's that is none of success."""
        if code:
            self._lib.llama_memory_clear(self._memory, True)
            self.seen.clear()
            raise EngineError(f"llama.cpp fails to evaluate {tokens} tokens (code {code}): {complaint()}")

    def _compute(self, batch: Any, threads: int) -> int:
        self._set_threads(threads)
        return int(self._lib.llama_decode(self._context, batch))

    def _set_threads(self, threads: int) -> None:
        if threads != self._running:
            self._lib.llama_set_n_threads(self._context, threads, threads)
            self._running = threads

    def row(self) -> Any:
        """The logits behind the last token seen: a pointer to `size` floats, good until the next evaluation."""
        row = self._lib.llama_get_logits_ith(self._context, self._place)
        if not row:
            raise EngineError("the model gives no logits", hint="use a language model")
        return row


def _native_path(path: Path) -> bytes:
    return str(path).encode("utf-8", "surrogateescape")


def set_adapter(lib: Any, handles: _Handles) -> bool:
    """Give the context the adapter, if there is one."""
    if not handles.adapter:
        return True
    adapters, scales = (lib.llama_adapter_lora_p_ctypes * 1)(handles.adapter), (ctypes.c_float * 1)(1.0)
    return not lib.llama_set_adapters_lora(handles.context, adapters, 1, scales)


def _free_context(lib: Any, handles: _Handles) -> None:
    """Free a context and then its adapter."""
    if handles.context:
        lib.llama_free(handles.context)
    if handles.adapter:
        lib.llama_adapter_lora_free(handles.adapter)


def _free(lib: Any, handles: _Handles, thread: NativeThread) -> None:
    def free() -> bool:
        _free_context(lib, handles)
        lib.llama_model_free(handles.model)
        return True

    thread.end(free)  # there, so that it comes after whatever still computes
