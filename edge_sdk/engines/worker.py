"""The process that runs one language model for `isolated`: messages on standard input and on standard output.

Run as `python -m edge_sdk.engines.worker`. It gives up network, files and other processes before it opens the
model, and ends when its input does. Knows nothing of keys, documents and settings.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Lock, Semaphore, Thread
from typing import BinaryIO

from ..records import Message as Turn
from ..records import Token
from .confinement import confine
from .engine import Engine, Generation
from .messages import (
    Message,
    error_values,
    frame,
    options_from,
    read_message,
    result_values,
    token_values,
)
from .opening import Opening

Send = Callable[[Message], None]

# Seconds for which the tokens of a quick model are gathered into one message, where the engine does not hand them
# over in groups: the app that reads it needs a core, and where the model computes on all of them, it waits.
_GATHER = 0.015


def main() -> int:
    """Serve until the input ends; 0 where the model was opened, 1 else."""
    reading, writing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # nothing that native code prints may mix with the messages
    if hasattr(os, "set_blocking"):
        os.set_blocking(2, False)  # nobody reads that before the end
    send, opening = _sender(writing), read_message(reading)
    if opening is None:
        return 0
    try:
        wanted = Opening.from_values(opening[1])
        _import_engine(wanted)
        holds = confine(wanted.files)
        requests: SimpleQueue[Message] = SimpleQueue()
        served = _Served(send)
        Thread(target=_listen, args=(reading, requests, served), daemon=True).start()
        engine = wanted.open()
    except Exception as error:
        send([0, "error", error_values(error)])
        return 1
    send([0, "ready", {"name": engine.name, "context": engine.context, "confinement": holds}])
    while True:
        _answer(engine, requests.get(), served, send)


def _import_engine(opening: Opening) -> None:
    """Load the packages that the engine needs while their files may still be read."""
    if opening.form == "onnx":
        from . import engine_onnx  # noqa: F401
    else:
        from . import batch_engine, engine_gguf, llama_library  # noqa: F401

        llama_library.library()


def _sender(file: BinaryIO) -> Send:
    lock = Lock()

    def send(message: Message) -> None:
        data = memoryview(frame(message))
        with lock:
            while data:
                data = data[file.write(data) :]

    return send


def _listen(reading: BinaryIO, requests: SimpleQueue[Message], served: _Served) -> None:
    """What is about a running generation is done at once, whatever the model is at; the rest waits its turn."""
    try:
        while (message := read_message(reading)) is not None:
            match message:
                case [int(number), "more", int(count)]:
                    served.more(number, count)
                case [int(number), "stop"]:
                    served.stop(number)
                case _:
                    requests.put(message)
    finally:
        os._exit(0)  # the app has gone, or has closed the model; native code may still be at work


def _answer(engine: Engine, message: Message, served: _Served, send: Send) -> None:
    number = message[0]
    try:
        match message[1:]:
            case ["count", text]:
                send([number, "done", engine.count(text)])
            case ["render", turns]:
                send([number, "done", engine.render([Turn(role, content) for role, content in turns])])
            case ["generate", prompt, options]:
                cancel = Event()
                generation = engine.generate(prompt, options_from(options), cancel)
                served.add(number, _Run(generation, cancel))
                send([number, "done", None])
            case _:
                raise ValueError(f"there is no such request: {message[1:2]}")
    except Exception as error:
        send([number, "error", error_values(error)])


class _Run:
    """A generation, and how many of its tokens are wanted so far."""

    def __init__(self, generation: Generation, cancel: Event) -> None:
        self.generation, self.cancel = generation, cancel
        self.wanted = Semaphore(0)
        self.thread: Thread | None = None


class _Served:
    """The generations of this process, each in a thread of its own once its first token is wanted."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._runs: dict[int, _Run] = {}

    def add(self, number: int, run: _Run) -> None:
        self._runs[number] = run

    def more(self, number: int, count: int) -> None:
        if (run := self._runs.get(number)) is None:
            return  # it has ended
        run.wanted.release(count)
        if run.thread is None:
            stopped = [each for each in list(self._runs.values()) if each.thread and each.cancel.is_set()]
            run.thread = Thread(target=self._produce, args=(number, run, stopped), daemon=True)
            run.thread.start()

    def stop(self, number: int) -> None:
        if (run := self._runs.get(number)) is None:
            return
        run.cancel.set()
        run.wanted.release()
        if run.thread is None:
            self._runs.pop(number)

    def _produce(self, number: int, run: _Run, stopped: list[_Run]) -> None:
        for each in stopped:  # they leave the engine within a token or a group of them
            if each.thread is not None:
                each.thread.join()
        last: Message
        try:
            self._stream(number, run)
            last = [number, "end", result_values(run.generation.result)]
        except Exception as error:
            last = [number, "error", error_values(error)]
        self._runs.pop(number)
        self._send(last)

    def _stream(self, number: int, run: _Run) -> None:
        held: list[Token] = []
        sent = -math.inf  # the first goes out at once, also where the machine's clock has only begun
        try:
            while True:
                if not run.cancel.is_set() and not run.wanted.acquire(blocking=False):
                    self._flush(number, held)
                    run.wanted.acquire()
                token = next(run.generation, None)
                if token is None:
                    return
                held.append(token)
                if not run.generation.ready and (now := time.monotonic()) - sent >= _GATHER:
                    sent = now
                    self._flush(number, held)
        finally:
            self._flush(number, held)

    def _flush(self, number: int, held: list[Token]) -> None:
        if held:
            self._send([number, "tokens", [token_values(token) for token in held]])
            held.clear()


if __name__ == "__main__":
    threading.current_thread().name = "edge-worker"
    sys.exit(main())
