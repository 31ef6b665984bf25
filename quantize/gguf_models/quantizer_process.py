"""llama.cpp's quantizer in a child process: started, given jobs, listened to, ended.

Native code that aborts, or that has to be stopped in the middle of a tensor, takes only the child with it. Knows
nothing of types and files.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from threading import Event as Flag
from threading import Thread
from typing import Any, Self

from edge_sdk.errors import EngineError

_POLL = 0.05  # seconds between two looks at whether to stop
_ERROR = 4  # level of ggml's log
_WORDS = re.compile(r"^.*failed to quantize: ")


class QuantizerProcess:
    """A child process that runs one job after the other; `cancel` kills it and makes `run` end."""

    def __init__(self, cancel: Flag | None = None) -> None:
        """Raises `EngineError` where no process can be started."""
        self._cancel, self._errors = cancel or Flag(), tempfile.TemporaryFile()  # noqa: SIM115
        paths = os.pathsep.join(entry for entry in sys.path if entry)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{__package__}.quantizer_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                encoding="utf-8",
                env={**os.environ, "PYTHONPATH": paths, "GGML_NO_BACKTRACE": "1"},
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        except OSError as error:
            self._errors.close()
            raise EngineError(f"no process for the quantizer can be started: {error}") from error
        Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, job: dict[str, Any], on_line: Callable[[str], None] = lambda line: None) -> list[str]:
        """Run a job to its end; the lines of its log. On any failure the process is gone when this raises.

        Raises `EngineError` with llama.cpp's own words, `KeyboardInterrupt` when `cancel` was set.
        """
        try:
            return self._run(job, on_line)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process at once; again does nothing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(OSError):  # of what the process did not read any more
                pipe and pipe.close()

    def _run(self, job: dict[str, Any], on_line: Callable[[str], None]) -> list[str]:
        assert self._process.stdin and self._process.stdout
        with suppress(BrokenPipeError):  # it is gone, as the end of its output tells
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        lines: list[str] = []
        complaints: list[str] = []
        for text in self._process.stdout:
            answer = json.loads(text)
            if "result" in answer:
                if answer["result"]:
                    raise EngineError(f"llama.cpp cannot quantize it: {_words(complaints)}")
                return lines
            lines.append(answer["line"])
            if answer["level"] == _ERROR:
                complaints.append(answer["line"])
            on_line(answer["line"])
        if self._cancel.is_set():
            raise KeyboardInterrupt
        raise EngineError(f"llama.cpp's quantizer ended early, {self._ending()}", hint="the model may be damaged")

    def _watch(self) -> None:
        while self._process.poll() is None:
            if self._cancel.wait(_POLL):
                self._process.kill()
                return

    def _ending(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
        return f"{how}: {said[-1][:300]}" if said else how


def _words(complaints: list[str]) -> str:
    """The reason among the lines that report an error.

    >>> _words(["====", "llama_model_quantize: failed to quantize: no such type"])
    'no such type'
    """
    reasons = [_WORDS.sub("", line) for line in complaints if _WORDS.match(line)]
    said = reasons or [line.strip() for line in complaints if line.strip(" =")]
    return "; ".join(said[-2:]) or "it gives no reason"
