"""Items that are made before they are asked for: all, in order, never too many, and errors where they belong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.engines.ahead import Ahead
from edge_sdk.engines.native_thread import NativeThread


@pytest.fixture(scope="module")
def thread() -> Iterator[NativeThread]:
    made = NativeThread("test")
    yield made
    made.end(lambda: True)
    made.join()


class Numbers:
    """Makes 0, 1, 2 ... and says that `count - 1` is the last; at `fails` it fails. `made` counts them."""

    def __init__(self, count: int, fails: int = -1, seconds: float = 0.0) -> None:
        self.count, self.fails, self.seconds, self.made = count, fails, seconds, 0

    def __call__(self) -> tuple[int, bool]:
        time.sleep(self.seconds)
        number = self.made
        if number == self.fails:
            raise ZeroDivisionError(number)
        self.made += 1
        return number, self.made < self.count


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(0, 3),
    st.floats(0, 0.001),
    st.lists(st.floats(0, 0.001), min_size=30, max_size=30),
)
def test_all_come_in_order_and_few_are_made_too_early(
    thread: NativeThread, count: int, most: int, making: float, reading: list[float]
) -> None:
    numbers = Numbers(count, seconds=making)
    ahead = Ahead(thread.submit, numbers, most=most)
    for expected in range(count):
        assert ahead.get() == expected
        time.sleep(reading[expected])
        assert numbers.made <= expected + 2 + most - (most == 0)
    assert numbers.made == count


def test_nothing_is_made_before_the_first_is_asked_for(thread: NativeThread) -> None:
    numbers = Numbers(3)
    Ahead(thread.submit, numbers, most=1)
    thread.run(lambda: True)
    assert numbers.made == 0


@pytest.mark.parametrize("most", [0, 1, 2])
def test_an_error_comes_after_what_was_made_before_it(thread: NativeThread, most: int) -> None:
    ahead = Ahead(thread.submit, Numbers(9, fails=3), most=most)
    assert [ahead.get() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        ahead.get()


def test_nothing_is_begun_once_it_is_stopped(thread: NativeThread) -> None:
    numbers = Numbers(99, seconds=0.005)
    ahead = Ahead(thread.submit, numbers, most=1)
    ahead.get()
    ahead.stop()
    thread.run(lambda: True)
    made = numbers.made
    thread.run(lambda: True)
    assert numbers.made == made <= 3


def test_a_job_that_cannot_be_given_is_an_error_of_the_reader() -> None:
    def refuse(job: object) -> None:
        raise RuntimeError("closed")

    with pytest.raises(RuntimeError, match="closed"):
        Ahead(refuse, Numbers(3), most=1).get()


def test_the_maker_does_not_wait_for_a_quick_reader(thread: NativeThread) -> None:
    jobs: list[object] = []

    def submit(job: object) -> None:
        jobs.append(job)
        thread.submit(job)  # type: ignore[arg-type]

    numbers, read = Numbers(50), [threading.Event() for _ in range(50)]

    def make() -> tuple[int, bool]:
        if numbers.made:
            assert read[numbers.made - 1].wait(60)
        return numbers()

    ahead = Ahead(submit, make, most=1)
    for expected in range(50):
        assert ahead.get() == expected
        read[expected].set()
    assert len(jobs) == 1
