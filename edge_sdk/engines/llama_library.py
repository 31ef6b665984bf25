"""The one place where llama.cpp's library is loaded, and what it says of its errors is kept.

Knows nothing of models.
"""

from __future__ import annotations

import os
import platform
from collections import deque
from functools import cache
from typing import Any

from ..errors import MissingExtraError

_ERROR, _CONTINUED = 4, 5  # levels of ggml's log

complaints: deque[str] = deque(maxlen=3)


@cache
def library() -> Any:
    """llama-cpp-python's low-level module: started, and its log kept off standard error.

    Where another process keeps a core busy, the threads of GNU OpenMP wait for each other by spinning until the
    scheduler takes the core away, at each of a thousand steps a token: 0.2 tokens a second instead of 140
    (SmolLM2, two x86-64 cores). With 3,000 spins, some 45 microseconds, it is 20, and idle 2 to 3 % less than with
    no limit; with 1,000 it would be 5 % less.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):  # elsewhere a spin is far shorter
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # read when the library is loaded
    try:
        import llama_cpp.llama_cpp as found
    except ImportError as error:
        raise MissingExtraError("running GGUF models", "gguf") from error
    module: Any = found
    level = 0

    def listen(at: int, text: bytes, _data: object) -> None:
        nonlocal level
        level = level if at == _CONTINUED else at
        if level == _ERROR:
            complaints.append(text.decode("utf-8", "replace").strip())

    callback = module.llama_log_callback(listen)
    module.llama_log_set(callback, None)
    module.edge_log_callback = callback  # native code may call it for as long as the module lives
    module.llama_backend_init()
    return module


def complaint() -> str:
    """What llama.cpp has said of its last errors."""
    return "; ".join(complaints) or "it gives no reason"
