"""An engine whose model runs in a worker process, without keys or network; implements `engine.Engine`.

When native code crashes there, the one request that ran fails with `EngineCrashedError`, and a new worker is
started at once. Knows nothing of pipes and processes (`worker_process`) nor of what runs in there (`worker`).
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from queue import Empty
from threading import Event, Lock
from types import TracebackType
from typing import Any, Self

from ..errors import EngineCrashedError, EngineError
from ..records import GenerateOptions, GenerationResult, Message, Token
from .engine import Generation, check_options
from .messages import MessageError, checked, result_from, token_from
from .opening import Opening
from .worker_process import Call, WorkerProcess, can_start

_AHEAD = 32  # tokens that a worker computes before they are asked for
_POLL = 0.02  # seconds between two looks at whether to cancel
_PATIENCE = 10.0  # seconds for a cancelled generation to end before its process is ended
_LONGEST = 60.0  # seconds for a worker to take a request, or to answer one that is no generation
_CRASHES, _WITHIN = 3, 60.0  # so many in so many seconds, without a token between, and it is left alone


class IsolatedEngine:
    """A model in a process of its own, from any thread: as many generations at once as the engine in there runs.

    A worker that has crashed is started anew in the background, and requests wait until it has loaded the model;
    after three crashes within a minute without a token between them, they fail until the minute has passed.

    >>> engine = IsolatedEngine(Opening(Path("model.gguf")))  # doctest: +SKIP
    >>> for token in engine.generate("Once upon a time", GenerateOptions()):  # doctest: +SKIP
    ...     print(token.text, end="")
    """

    def __init__(self, opening: Opening) -> None:
        """Start a worker that opens the model, and wait for it.

        Raises what opening it raises, `EngineCrashedError` where that crashes, and `EngineError` where no process
        can be started.
        """
        if not can_start():
            raise EngineError("this Python cannot start a worker process", hint="use the model without isolation")
        self._opening, self._name = opening, opening.title
        self._file = _identity(opening.path)
        self._lock = Lock()  # of which worker there is
        self._crashes: deque[float] = deque(maxlen=_CRASHES)  # when; emptied by every token
        self._closed = Event()
        self._slot = _Slot()
        weakref.finalize(self, self._slot.kill)
        self._opened = False
        process = self._slot.process = self._started()
        try:
            self._facts = process.wait()
        except BaseException:
            self.close()
            raise
        self._opened = True
        self._name = self._facts.name

    @property
    def name(self) -> str:
        """The model's name as the user knows it."""
        return self._name

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model file, hexadecimal; with an adapter, of that and the adapter's together."""
        return self._opening.fingerprint()

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may take together."""
        return self._facts.context

    @property
    def confinement(self) -> tuple[str, ...]:
        """What the worker has given up, as far as the system could be made to enforce it; for people to read."""
        return self._facts.confinement

    @property
    def pid(self) -> int | None:
        """Of the worker that runs now, if one does."""
        process = self._slot.process
        return None if process is None else process.pid

    def count(self, text: str) -> int:
        """Exact number of tokens that `generate` would evaluate for `text` as the whole prompt."""
        return int(self._ask(int, "count", text))

    def render(self, messages: Sequence[Message]) -> str:
        """The model's chat template applied, ending where the assistant's turn begins; see `Engine.render`."""
        return str(self._ask(str, "render", [[message.role, message.content] for message in messages]))

    def generate(self, prompt: str, options: GenerateOptions, cancel: Event | None = None) -> Generation:
        """Start generating; see `Engine.generate`. The worker may be a few tokens ahead of what is asked for."""
        check_options(options)
        call = self._worker().call("generate", prompt, asdict(options))
        tokens = self._run(call, cancel)
        weakref.finalize(tokens, call.close).atexit = False  # it may be dropped before its first token
        try:
            with self._trusting(call):
                if not self._answered(call, cancel):
                    call.close()
                    return Generation(_cancelled_at_once())
        except BaseException:
            call.close()
            raise
        return Generation(tokens)

    def close(self) -> None:
        """End the worker; a running generation ends with `EngineError`. Again does nothing."""
        with self._lock:
            self._closed.set()
            process, self._slot.process = self._slot.process, None
        if process is not None:
            process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- requests -----------------------------------------------------------------------------------

    def _ask(self, kind: type, *request: Any) -> Any:
        call = self._worker().call(*request)
        try:
            with self._trusting(call):
                return checked(kind, *self._answered(call))
        finally:
            call.close()

    def _answered(self, call: Call, cancel: Event | None = None) -> list[Any]:
        """What the worker answers at once, as the one element; none where it is cancelled before that.

        One that does not answer is at something that never ends: its process is ended.
        """
        deadline = time.monotonic() + _LONGEST
        while True:
            left = deadline - time.monotonic()
            try:
                _, *value = call.next(max(0.0, min(left, left if cancel is None else _POLL)))
                return value or [None]
            except Empty:
                if cancel is not None and cancel.is_set():
                    return []
                if left <= 0:
                    call.process.kill()
                    ending = f"it did not answer within {_LONGEST:g} s"
                    raise EngineCrashedError(self._name, ending, "during a request") from None

    def _run(self, call: Call, cancel: Event | None) -> Generator[Token, None, GenerationResult]:
        produced = 0
        call.tell("more", _AHEAD)
        try:
            while True:
                with self._trusting(call):
                    if cancel is not None and cancel.is_set():
                        return self._cancelled(call, produced)
                    try:
                        kind, value = call.next(None if cancel is None else _POLL)
                    except Empty:
                        continue
                    if kind == "end":
                        return result_from(value)
                    tokens = [token_from(each) for each in checked(list, value)]
                self._crashes.clear()
                for at, token in enumerate(tokens):
                    if at and cancel is not None and cancel.is_set():
                        return self._cancelled(call, produced, len(tokens) - at)
                    produced += 1
                    if produced % (_AHEAD // 2) == 0:
                        call.tell("more", _AHEAD // 2)
                    yield token
        finally:
            call.close()

    def _cancelled(self, call: Call, produced: int, unread: int = 0) -> GenerationResult:
        """How a generation ends that is to stop now: what it has computed beyond `produced` tokens is dropped."""
        call.tell("stop")
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                kind, value = call.next(max(0.0, deadline - time.monotonic()))
            except Empty:
                call.process.kill()
                ending = f"it did not stop within {_PATIENCE:g} s"
                raise EngineCrashedError(self._name, ending, "when it was cancelled") from None
            if kind == "end":
                result = result_from(value)
                return replace(result, finish_reason="cancelled", completion_tokens=produced) if unread else result
            unread += len(value)

    @contextmanager
    def _trusting(self, call: Call) -> Iterator[None]:
        """Turns what the worker may not send, and the end of an engine that was closed, into errors of the tree."""
        try:
            yield
        except (MessageError, ValueError) as error:
            call.process.kill()
            ending = f"it sent what is no answer: {error}"
            raise EngineCrashedError(self._name, ending, "during a request") from error
        except EngineCrashedError:
            self._check_open()
            raise

    # --- the worker ---------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise EngineError(f"{self._name} is closed")

    def _worker(self) -> WorkerProcess:
        """A worker that has loaded the model; started now where there is none."""
        with self._lock:
            self._check_open()
            process = self._slot.process
            if process is None:
                if (pause := self._pause()) > 0:
                    ending = f"{_CRASHES} times within a minute"
                    hint = f"it is left alone for {pause:.0f} s; use another model if it happens again"
                    raise EngineCrashedError(self._name, ending, "again and again", hint=hint)
                process = self._slot.process = self._started()
        try:
            self._facts = process.wait()
        except EngineCrashedError:
            self._check_open()
            raise
        return process

    def _started(self) -> WorkerProcess:
        if _identity(self._opening.path) != self._file:
            raise EngineError(f"the file of {self._name} has changed since it was opened", hint="open it again")
        on_end = weakref.WeakMethod(self._ended)

        def ended(process: WorkerProcess) -> None:
            if (method := on_end()) is not None:
                method(process)

        return WorkerProcess(self._opening, ended)

    def _ended(self, process: WorkerProcess) -> None:
        """A worker has ended, whatever it was at: the next one loads the model while nobody waits for it yet."""
        with self._lock:
            if self._closed.is_set() or process is not self._slot.process:
                return
            self._slot.process = None
            if not (process.crashed and self._opened):
                return
            self._crashes.append(time.monotonic())
            if self._pause() > 0:
                return
            try:
                self._slot.process = self._started()
            except EngineError:  # the next request tries again and tells
                return

    def _pause(self) -> float:
        """Seconds for which no worker is started, 0 or less for none."""
        crashes = list(self._crashes)  # another request's tokens may empty it now
        return crashes[0] + _WITHIN - time.monotonic() if len(crashes) == _CRASHES else 0.0


def _cancelled_at_once() -> Generator[Token, None, GenerationResult]:
    yield from ()
    return GenerationResult("cancelled", 0, 0, 0, 0.0, 0.0)


@dataclass(slots=True)
class _Slot:
    """The worker of an engine, within reach of what ends it when the engine is dropped."""

    process: WorkerProcess | None = None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()


def _identity(path: Path) -> tuple[int, ...]:
    """What changes when a file does; nothing for one that is not there."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
