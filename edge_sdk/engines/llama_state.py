"""What a context of llama.cpp holds, as bytes: copied out, put back, and what it is worth anything with.

Knows nothing of models or tokens beyond their number; `llama` owns the context.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

State = NDArray[np.uint8]
_SETTINGS = ("n_ctx", "n_ubatch", "type_k", "type_v", "flash_attn_type", "swa_full", "kv_unified", "n_seq_max")


def describe_setup(lib: Any, settings: Any, gpu_layers: int, repack: bool) -> dict[str, object]:
    """All that the state after given tokens follows from, besides the weights: build, processor, settings."""
    import llama_cpp

    build = [llama_cpp.__version__, lib.llama_version().decode(), lib.llama_print_system_info().decode()]
    settings_used = {name: int(getattr(settings, name)) for name in _SETTINGS}
    return {"build": build, "gpu_layers": gpu_layers, "repack": repack, **settings_used}


def copy_state(lib: Any, context: Any, tokens: int, most: int) -> State | None:
    """The keys and values of the first sequence, which has so many tokens; what is behind them is forgotten.

    None where that is more than `most` bytes, or where the context does not hold what it should.
    """
    memory = lib.llama_get_memory(context)
    if not lib.llama_memory_seq_rm(memory, 0, tokens, -1) or not _holds(lib, memory, tokens):
        return None
    size = int(lib.llama_state_seq_get_size(context, 0))
    if not 0 < size <= most:
        return None
    try:
        state = np.empty(size, np.uint8)
    except MemoryError:
        return None
    return state if lib.llama_state_seq_get_data(context, _pointer(state), size, 0) == size else None


def restore_state(lib: Any, context: Any, tokens: int, state: State) -> bool:
    """Put back what `copy_state` gave; False where llama.cpp refuses it, and then nothing is held.

    It must be whole, and of the same weights and set-up: a wrong one may give wrong answers, or worse.
    """
    memory = lib.llama_get_memory(context)
    lib.llama_memory_clear(memory, False)
    done = lib.llama_state_seq_set_data(context, _pointer(state), len(state), 0) == len(state)
    if done and _holds(lib, memory, tokens):
        return True
    lib.llama_memory_clear(memory, True)
    return False


def _holds(lib: Any, memory: Any, tokens: int) -> bool:
    """Whether the sequence ends where it should: llama.cpp may report success and have restored nothing."""
    return bool(lib.llama_memory_seq_pos_max(memory, 0) == tokens - 1)


def _pointer(data: State) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
