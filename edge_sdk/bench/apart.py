"""What is measured runs in a process of its own, asked by lines of JSON: its peak memory is its own.

Knows nothing of what is asked.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from os import environ, pathsep
from pathlib import Path
from typing import IO, Any

from ..errors import EngineError


class Apart:
    """A module of this package that runs by itself and answers with `answer`. `name` is for errors."""

    def __init__(self, name: str, module: str, arguments: Sequence[str]) -> None:
        self.name = name
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `stop`)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env=environment(),
        )

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The reply. Raises `EngineError` with the last words of a process that has ended."""
        line = b""
        try:
            if self._process.stdin and self._process.stdout:
                self._process.stdin.write(json.dumps(question).encode() + b"\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            self._process.wait()
            raise EngineError(f"measuring {self.name} failed: {last_words(self._complaints)}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def stop(self) -> None:
        """End the process; it is idle, or its figures are no longer wanted."""
        self._process.kill()
        self._process.communicate()
        self._complaints.close()


def answer(reply: Callable[[Mapping[str, Any]], Mapping[str, Any]], answers: IO[str]) -> None:
    """The loop of such a process: one reply a line, until there are no more questions.

    `answers` is standard output as it was before `quiet`.
    """
    for line in sys.stdin:
        answers.write(json.dumps(reply(json.loads(line))) + "\n")
        answers.flush()


def quiet() -> IO[str]:
    """Standard output; from now on whatever a library prints goes elsewhere, and not between the answers."""
    answers, sys.stdout = sys.stdout, sys.stderr
    return answers


def environment() -> dict[str, str]:
    """That of a process which is to find what this one finds."""
    found = {**environ, "PYTHONPATH": pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    found.pop("GOMP_SPINCOUNT", None)  # `llama_library` may have set it here; the others do without
    return found


def last_words(complaints: IO[bytes]) -> str:
    """The last line of what a process has said on standard error."""
    complaints.seek(0)
    said = complaints.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
    return said[-1] if said else "its process ended"


def peak_mb() -> float:
    """The most memory that this process has had resident, in MiB."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
