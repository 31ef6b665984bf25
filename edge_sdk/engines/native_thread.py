"""One thread on which native code computes, whoever asks.

Ctrl-C then reaches the thread that waits and not the one inside the native call. And OpenMP keeps helper threads
for each thread that calls it: with those of two callers it takes the processor for overbooked and puts helpers to
sleep at every step, which cost a third of the decoding speed. Knows nothing of what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from typing import Any

_POLL = 0.02  # seconds between two looks at whether to stop

Job = Callable[[], bool]
_Jobs = SimpleQueue[tuple[object, Callable[[], object]] | None]
_Outcomes = SimpleQueue[tuple[object, Any]]


class NativeThread:
    """Runs jobs one after the other.

    >>> thread = NativeThread("example")
    >>> thread.run(lambda: 2 + 2 == 4)
    True
    >>> thread.end(lambda: True), thread.join()
    (None, None)
    """

    def __init__(self, name: str) -> None:
        self._jobs: _Jobs = SimpleQueue()
        self._outcomes: _Outcomes = SimpleQueue()
        self._thread = Thread(target=_work, args=(self._jobs, self._outcomes), name=name, daemon=True)
        self._thread.start()

    def run(self, job: Job, stop: Callable[[], None] | None = None, stopped: Callable[[], bool] = bool) -> bool:
        """What `job` returns or raises. A job may run another, which is a part of it then.

        When `stopped` becomes true, and when an exception comes up in the waiting thread, `stop` is called, which
        should make the job end early. Such an exception is raised when the job has ended, not before.
        """
        if self.current:
            return job()
        ticket = object()
        outcome: bool | BaseException | None = None
        raised: BaseException | None = None
        self._jobs.put((ticket, job))
        while outcome is None:
            try:
                whose, result = self._wait(stop, stopped)
                if whose is ticket:  # not one that an exception kept from being read
                    outcome = result
            except BaseException as error:
                raised = raised or error
                if stop:
                    stop()
        if raised is not None:
            raise raised
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _wait(
        self, stop: Callable[[], None] | None, stopped: Callable[[], bool]
    ) -> tuple[object, bool | BaseException]:
        while stop:
            try:
                return self._outcomes.get(timeout=_POLL)
            except Empty:
                if stopped():
                    stop()
        return self._outcomes.get()

    @property
    def current(self) -> bool:
        """Whether the caller is a job."""
        return current_thread() is self._thread

    def submit(self, job: Callable[[], object]) -> None:
        """Run a job after those that are still to run, which must not raise. Does not wait."""
        self._jobs.put((None, job))

    def end(self, last: Job) -> None:
        """Run `last` after the jobs that are still to run, then end. Does not wait."""
        self.submit(last)
        self._jobs.put(None)

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join()


def _work(jobs: _Jobs, outcomes: _Outcomes) -> None:
    while entry := jobs.get():
        ticket, job = entry
        try:
            outcome = job()
        except BaseException as error:
            outcome = error
        if ticket is not None:
            outcomes.put((ticket, outcome))
        del entry, job, outcome  # they would keep alive, until the next job, what this one has used
