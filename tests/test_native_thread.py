"""Native work on a thread of its own: results, errors, stopping, and interrupts that wait for the work to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from threading import Event

import pytest

from edge_sdk.engines.native_thread import NativeThread


@pytest.fixture
def thread() -> Iterator[NativeThread]:
    made = NativeThread("test")
    yield made
    made.end(lambda: True)
    made.join()


def test_jobs_run_on_one_other_thread(thread: NativeThread) -> None:
    seen: list[int] = []
    for _ in range(3):
        assert thread.run(lambda: seen.append(threading.get_ident()) is None)
    assert len(set(seen)) == 1
    assert threading.get_ident() not in seen


def test_an_error_of_a_job_is_raised_by_whoever_asked(thread: NativeThread) -> None:
    def fail() -> bool:
        raise ZeroDivisionError("in the job")

    with pytest.raises(ZeroDivisionError, match="in the job"):
        thread.run(fail)
    assert thread.run(lambda: True)


def test_a_job_is_stopped_when_the_caller_wants(thread: NativeThread) -> None:
    stop = Event()
    assert thread.run(lambda: stop.wait(60), stop.set, lambda: True)


def test_an_interrupt_is_raised_when_the_job_has_ended(thread: NativeThread) -> None:
    stop, ended = Event(), Event()

    def job() -> bool:
        stop.wait(60)
        ended.set()
        return True

    def ask() -> bool:
        signal.raise_signal(signal.SIGINT)
        return False

    with pytest.raises(KeyboardInterrupt):
        thread.run(job, stop.set, ask)
    assert ended.is_set()
    assert thread.run(lambda: True)


def test_an_outcome_that_nobody_read_is_not_taken_for_the_next(thread: NativeThread) -> None:
    thread._jobs.put((object(), lambda: False))  # as after an exception between asking and waiting
    assert thread.run(lambda: True) is True


def test_a_job_may_run_another(thread: NativeThread) -> None:
    assert not thread.current
    assert thread.run(lambda: thread.current and thread.run(lambda: thread.current))


def test_a_job_that_nobody_waits_for_runs_before_the_next(thread: NativeThread) -> None:
    order: list[int] = []
    for number in range(3):
        thread.submit(lambda number=number: order.append(number))  # type: ignore[misc]
    assert thread.run(lambda: order == [0, 1, 2])
    assert thread._outcomes.empty()


def test_the_last_job_comes_after_all_others() -> None:
    thread, order = NativeThread("test"), list[str]()
    begun, go_on = Event(), Event()

    def slow() -> bool:
        begun.set()
        go_on.wait(60)
        order.append("slow")
        return True

    asking = threading.Thread(target=thread.run, args=(slow,))
    asking.start()
    begun.wait(60)
    thread.end(lambda: order.append("last") is None)
    go_on.set()
    thread.join()
    asking.join()
    assert order == ["slow", "last"]
