"""Whether a model file can be opened and run at all, tried once in a worker process before this process does it.

The verdict is kept in `HOME/probes.json` under the hash of the file, with the version of llama.cpp and the
processor, so that a known file costs a look at its size and times. Knows nothing of where a file comes from.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Timer
from typing import Any

from ..device import cpu_name
from ..errors import EngineCrashedError, EngineError
from ..records import GenerateOptions
from .engine import adapted_fingerprint, file_fingerprint
from .opening import Opening
from .worker_process import WorkerProcess, can_start

FORMAT = "edge-probes-1"
_KEPT = 200  # verdicts and files that are remembered
_PROMPT, _TOKENS = "The quick brown fox", 3
_SECONDS, _BYTES_A_SECOND = 60.0, 10 << 20  # to start, and for a slow memory card
_FINE = "fine"
_PASSING = ("SIGKILL", "SIGTERM")  # ends that say nothing of the file: memory ran out, somebody wanted it


def probe(opening: Opening, home: Path) -> bool:
    """Open the model in a worker and let it say a few words, unless it is known to do that.

    True where it is fine, False where no process can be started, so that nothing is known. Raises
    `EngineCrashedError` for a file that crashed native code, now or earlier; what opening it raised; and
    `EngineError` where it takes too long. Only crashes are remembered, and what is fine.
    """
    if not can_start():
        return False
    record = _Record(home / "probes.json")
    key = " ".join((record.fingerprint(opening), _version(), cpu_name(), f"repack {opening.tuning.repack}"))
    verdict = record.verdicts.get(key)
    if verdict == _FINE:
        return True
    if verdict is not None:
        raise _rejected(opening, verdict, f"use another model; {record.path} remembers how this one ended")
    ending = _tried(opening)
    if ending.startswith(_PASSING):
        raise _rejected(opening, ending, "")
    record.verdicts[key] = ending
    record.save()
    if ending != _FINE:
        raise _rejected(opening, ending, "the file may be damaged or made to do harm: use another model")
    return True


def _rejected(opening: Opening, ending: str, hint: str) -> EngineCrashedError:
    return EngineCrashedError(opening.title, ending, "when the model was tried", hint=hint)


def _tried(opening: Opening) -> str:
    """How it went: `_FINE`, or how the process ended."""
    process = WorkerProcess(opening)
    limit = _SECONDS + opening.path.stat().st_size / _BYTES_A_SECOND
    late = False

    def end() -> None:
        nonlocal late
        late = True
        process.kill()

    timer = Timer(limit, end)
    timer.daemon = True
    timer.start()
    try:
        process.wait()
        call = process.call("generate", _PROMPT, asdict(GenerateOptions(max_tokens=_TOKENS)))
        call.value()
        call.tell("more", _TOKENS + 1)
        while call.next()[0] != "end":
            pass
    except EngineCrashedError as error:
        if late:
            raise EngineError(
                f"{opening.title} has not said a word within {limit:.0f} s, in a process of its own",
                hint="use a smaller model, or try again when the device has less to do",
            ) from error
        return error.ending
    finally:
        timer.cancel()
        process.stop()
    return _FINE


def _version() -> str:
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        return "unknown"


class _Record:
    """`probes.json`: verdicts by key, and the hashes of files that were not known otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.verdicts: dict[str, str] = {}
        self._hashes: dict[str, list[Any]] = {}  # path to size, times and inode, and the hash
        with suppress(OSError, ValueError, RecursionError, AttributeError, TypeError):
            content = json.loads(path.read_bytes())
            if content.get("format") == FORMAT:
                self.verdicts = {str(key): str(value) for key, value in content["verdicts"].items()}
                self._hashes = {str(key): list(value) for key, value in content["hashes"].items()}

    def fingerprint(self, opening: Opening) -> str:
        """Of the model with its adapter; a file is hashed when it was not seen as it is now."""
        own = opening.sha256 or self._hash(opening.path)
        return own if opening.adapter is None else adapted_fingerprint(own, self._hash(opening.adapter))

    def _hash(self, path: Path) -> str:
        try:
            status = path.stat()
        except OSError as error:
            raise EngineError(f"{path} cannot be read: {error.strerror}") from error
        # The time of the last change, unlike that of the last writing, cannot be set.
        now = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        seen = self._hashes.pop(str(path.absolute()), None)
        if seen is None or seen[:4] != now or len(seen) != 5:
            seen = [*now, file_fingerprint(path)]
        self._hashes[str(path.absolute())] = seen
        return str(seen[4])

    def save(self) -> None:
        """Write it, whole or not at all; where it cannot be written, the model is tried again next time."""
        content = {"format": FORMAT, "verdicts": _last(self.verdicts), "hashes": _last(self._hashes)}
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
            partial.replace(self.path)


def _last(rows: dict[str, Any]) -> dict[str, Any]:
    return dict(list(rows.items())[-_KEPT:])
