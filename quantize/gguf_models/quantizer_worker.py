"""The child process in which llama.cpp's quantizer runs: there it may abort, and may be killed at any moment.

Reads jobs from standard input and answers with the lines of the library's log and a result, all as lines of JSON.
Ends when standard input does, in the middle of a job too. Knows nothing of what is asked for or why.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np

from edge_sdk.engines.llama_library import library

_STRING, _INTEGER = 3, 0  # tags of llama_model_kv_override


def quantize(lib: Any, job: Mapping[str, Any]) -> int:
    """Call `llama_model_quantize` once; 0 is success.

    `job` has `source`, `out`, `settings` by field name, `types` [tensor name, number], `metadata`, and for an
    importance matrix the file of its float32 figures with the name and length of each part.
    """
    settings = lib.llama_model_quantize_default_params()
    for name, value in job["settings"].items():
        setattr(settings, name, value)
    types = [
        lib.llama_model_tensor_override(pattern=f"^{re.escape(name)}$".encode(), type=number)
        for name, number in job["types"]
    ]
    settings.tt_overrides = _ended(lib.llama_model_tensor_override, types)
    entries = [_entry(lib, key, value) for key, value in job["metadata"].items()]
    settings.kv_overrides = _ended(lib.llama_model_kv_override, entries)
    if job["importance"]:
        figures, parts = np.fromfile(job["importance"]["file"], np.float32), []
        at = 0
        for name, length in job["importance"]["parts"]:
            data = figures[at : at + length].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            parts.append(lib.llama_model_imatrix_data(name=name.encode(), data=data, size=length))
            at += length
        settings.imatrix = _ended(lib.llama_model_imatrix_data, parts)
    source, out = os.fsencode(job["source"]), os.fsencode(job["out"])
    return int(lib.llama_model_quantize(source, out, ctypes.byref(settings)))


def _ended(form: type[ctypes.Structure], items: list[Any]) -> Any:
    """An array that ends with an empty item; None where there are no items."""
    return (form * (len(items) + 1))(*items) if items else None


def _entry(lib: Any, key: str, value: str | int) -> Any:
    entry = lib.llama_model_kv_override(key=key.encode())
    if isinstance(value, int):
        entry.tag, entry.value.val_i64 = _INTEGER, value
    else:
        entry.tag, entry.value.val_str = _STRING, value.encode()
    return entry


def _log_lines(say: Callable[[object], None]) -> Callable[[int, bytes, object], None]:
    """A log callback that passes on whole lines with their level."""
    started = ""

    def listen(level: int, text: bytes, _data: object) -> None:
        nonlocal started
        *lines, started = (started + text.decode("utf-8", "replace")).split("\n")
        for line in lines:
            say({"level": level, "line": line})

    return listen


def main() -> None:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what native code prints is no answer
    jobs: SimpleQueue[str] = SimpleQueue()

    def say(answer: object) -> None:
        channel.write(json.dumps(answer) + "\n")
        channel.flush()

    def read_jobs() -> None:
        for line in sys.stdin:
            jobs.put(line)
        os._exit(0)

    Thread(target=read_jobs, daemon=True).start()
    lib = library()
    callback = lib.llama_log_callback(_log_lines(say))
    lib.llama_log_set(callback, None)
    while True:
        job = json.loads(jobs.get())
        say({"result": quantize(lib, job)})


if __name__ == "__main__":
    main()
