"""One worker process as its parent sees it: started, spoken to from any thread, and mourned when it ends.

It gets no variables of this process's environment but those in `_KEPT`, and no open files. Knows nothing of what an
engine is; `worker` is what runs in there.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, BinaryIO

from ..errors import EngineCrashedError, EngineError
from .messages import Message, MessageError, checked, error_from, error_values, frame, read_message
from .opening import Opening

_KEPT = (
    *("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT"),
)
_ALWAYS = {
    "GGML_NO_BACKTRACE": "1",  # llama.cpp would start a debugger
    "OPENBLAS_NUM_THREADS": "1",  # numpy would start threads before the worker has confined itself
    "PYTHONIOENCODING": "utf-8",
}
_LAST_WORDS = 200  # characters of what a worker has written to standard error
_UNREAD = 256  # messages of one request that may wait to be read
_GRACE = 2.0  # seconds to end by itself

Mail = Message | None  # None: there is nobody any more who could answer


@dataclass(frozen=True, slots=True)
class Ready:
    """What a worker says when it has opened its model."""

    name: str
    context: int
    confinement: tuple[str, ...]


class WorkerProcess:
    """A process that opens the model of `opening`, from now on until it ends or is stopped."""

    def __init__(self, opening: Opening, on_end: Callable[[WorkerProcess], None] = lambda process: None) -> None:
        """`on_end` is called in another thread, once, when it has ended."""
        self.crashed = False
        """Whether it ended without having said why."""
        self._name, self._on_end = opening.title, on_end
        self._lock = Lock()  # of what is told by its end
        self._boxes: dict[int, SimpleQueue[Mail]] = {}
        self._ending = ""  # how it ended
        self._numbers = itertools.count(1)
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()
        self.send(0, opening.values())
        self._child: subprocess.Popen[bytes] | None = None
        self._unwanted = False
        self._known = Event()  # that it is ready, or never will be
        self._ready: Ready | None = None
        self._refusal: Any = None  # the values of an error
        # This thread starts the child, for on Linux the child ends when the thread does that has started it.
        self._thread = Thread(target=self._attend, name="edge-worker", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Of the process, once it runs."""
        return self._child.pid if self._child else None

    def wait(self) -> Ready:
        """What the worker says when it has opened the model; raises what it raised, or `EngineCrashedError`."""
        self._known.wait()
        if self._ready is not None:
            return self._ready
        if self._refusal is not None:
            raise error_from(self._refusal)
        raise self.crash("while the model was loading")

    def call(self, *request: Any) -> Call:
        """Send a request. Raises `EngineCrashedError` where nobody is there any more."""
        number, box = next(self._numbers), SimpleQueue[Mail]()
        data = frame([number, *request])
        with self._lock:
            if self._ending:
                raise self.crash("before it was asked")
            self._boxes[number] = box
        self._outgoing.put(data)
        return Call(self, number, box)

    def send(self, *message: Any) -> None:
        """Hand a message to the thread that writes. Never waits, and may be called by a finalizer."""
        self._outgoing.put(frame([*message]))

    def forget(self, number: int) -> None:
        """Let go of a request; a generation stops. May be called by a finalizer, and again."""
        if self._boxes.pop(number, None) is not None:
            self.send(number, "stop")

    def kill(self) -> None:
        """End the process at once."""
        self._unwanted = True
        if self._child is not None:
            self._child.kill()

    def stop(self) -> None:
        """End the process and wait for it."""
        self._outgoing.put(None)
        self._thread.join(_GRACE)
        if self._thread.is_alive():
            self.kill()
            self._thread.join()

    def crash(self, when: str) -> EngineCrashedError:
        """The error of whoever waits for the worker that has ended."""
        return EngineCrashedError(self._name, self._ending, when)

    # --- the thread that attends to the process -----------------------------------------------------

    def _attend(self) -> None:
        try:
            child = self._child = _start()
        except OSError as error:
            self._refusal = error_values(EngineError(f"no worker process can be started: {error}"))
            self._ended("never began")
            return
        if self._unwanted:
            child.kill()
        assert child.stdin and child.stdout and child.stderr
        writer = Thread(target=_write, args=(child.stdin, self._outgoing), name="edge-worker-write", daemon=True)
        writer.start()
        wrong = ""
        try:
            while (message := read_message(child.stdout)) is not None:  # type: ignore[arg-type]
                self._deliver(message)
        except MessageError as error:
            wrong = f"it sent what is no message: {error}"
            child.kill()
        try:
            status = child.wait(_GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            status = child.wait()
        last = child.stderr.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        self._outgoing.put(None)
        writer.join()
        for pipe in (child.stdout, child.stderr):
            pipe.close()
        how = wrong or ", ".join([_named(status), *last])
        self._ended("".join(sign if sign.isprintable() else " " for sign in how)[:_LAST_WORDS])

    def _deliver(self, message: Message) -> None:
        number, kind = checked(int, message[0]), checked(str, message[1])
        if number:
            if (box := self._boxes.get(number)) is not None:
                box.put(message)
                if box.qsize() > _UNREAD:
                    raise MessageError("it sends more than it was asked for")
            return
        value = checked(dict, message[2] if len(message) > 2 else None)
        if kind == "ready":
            holds = tuple(checked(str, each) for each in checked(list, value.get("confinement")))
            self._ready = Ready(checked(str, value.get("name")), checked(int, value.get("context")), holds)
            self._known.set()
        else:  # said once `_ended`, so that nobody waits for a process that is still there
            error_from(value)
            self._refusal = value

    def _ended(self, how: str) -> None:
        self.crashed = self._refusal is None
        self._on_end(self)  # first, so that whoever learns of it here finds the next worker
        with self._lock:
            self._ending = how
            waiting = list(self._boxes.values())
        self._known.set()
        for box in waiting:
            box.put(None)


@dataclass(frozen=True, slots=True)
class Call:
    """A request that has been sent."""

    process: WorkerProcess
    number: int
    _box: SimpleQueue[Mail]

    def next(self, seconds: float | None = None) -> Message:
        """What comes next, without the number. Raises the worker's error, `EngineCrashedError`, or
        `queue.Empty` after so many seconds."""
        message = self._box.get(timeout=seconds)
        if message is None:
            raise self.process.crash("during a request")
        if message[1] == "error":
            raise error_from(message[2] if len(message) > 2 else None)
        return message[1:]

    def value(self) -> Any:
        """The answer to a simple request."""
        return (*self.next(), None)[1]

    def tell(self, *more: Any) -> None:
        """Say more to the request."""
        self.process.send(self.number, *more)

    def close(self) -> None:
        """Let go of it. May be called by a finalizer, and again."""
        self.process.forget(self.number)


def can_start() -> bool:
    """Whether a process with this Python can be started at all: not on phones, nor in a frozen program."""
    return bool(sys.executable) and not getattr(sys, "frozen", False) and sys.platform not in _NO_PROCESSES


_NO_PROCESSES = ("ios", "tvos", "watchos", "android", "emscripten", "wasi")


def worker_environment() -> dict[str, str]:
    """All variables that a worker gets: no keys, no proxies, no settings."""
    root = str(Path(__file__).resolve().parents[2])
    paths = dict.fromkeys([root, *(str(Path(entry).absolute()) for entry in sys.path if entry)])
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, **_ALWAYS, "PYTHONPATH": os.pathsep.join(paths)}


def _start() -> subprocess.Popen[bytes]:
    package = __package__ or "edge_sdk.engines"
    return subprocess.Popen(
        [sys.executable, "-P", "-B", "-m", f"{package}.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=worker_environment(),
        close_fds=True,
        start_new_session=True,  # Ctrl-C in the terminal is not for it
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same, on Windows
    )


def _write(file: BinaryIO, outgoing: SimpleQueue[bytes | None]) -> None:
    with suppress(OSError):  # it has ended, which its reader will see; closing writes what is still to be written
        with suppress(OSError):
            while (data := outgoing.get()) is not None:
                file.write(data)
                file.flush()
        file.close()


def _named(status: int) -> str:
    """How a process ended.

    >>> _named(3), _named(-11)
    ('exit status 3', 'SIGSEGV')
    """
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
