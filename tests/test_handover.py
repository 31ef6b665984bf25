"""Items in groups: all of them, in order, the first at once, and none held where the next is far off."""

from __future__ import annotations

import threading
import time
from queue import Empty

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.engines import handover
from edge_sdk.engines.handover import HandOver


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@given(st.lists(st.floats(1e-4, 0.2), max_size=40), st.floats(0, 0.1))
def test_all_come_in_order_and_none_is_held_but_for_the_next(steps: list[float], wait: float) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handover, "time", clock)
        handed = HandOver[int]()
        held_since: dict[int, float] = {}
        read = []
        for number, step in enumerate(steps):
            before = clock.now
            clock.now += step
            handed.put(number, wait)
            held_since[number] = clock.now
            while handed.ready:
                read.append(handed.get())
                # One that is held waits for the next, which is expected within `wait` and may be late.
                assert read[-1] == number or held_since[read[-1]] + wait >= before - 1e-9
        assert read[:1] == [0][: len(steps)], "the first is handed over at once"
        handed.put(len(steps))
        read += [handed.get() for _ in range(len(steps) + 1 - len(read))]
        assert read == list(range(len(steps) + 1))
        with pytest.raises(Empty):
            handed.get(timeout=0)


def test_steady_items_come_in_groups_of_about_the_time_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, groups = Clock(), []
    monkeypatch.setattr(handover, "time", clock)
    handed = HandOver[int]()
    for number in range(61):
        clock.now += 0.005
        handed.put(number, 0.02)
        group = []
        while handed.ready:
            group.append(handed.get())
        groups += [len(group)] if group else []
    assert groups[0] == 1
    assert set(groups[1:]) <= {3, 4}


def test_slow_items_are_handed_over_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(handover, "time", clock)
    handed = HandOver[int]()
    for number in range(9):
        clock.now += 0.03
        handed.put(number, 0.02)
        assert (handed.ready, handed.get()) == (True, number)


def test_a_reader_wakes_for_groups() -> None:
    handed, read = HandOver[int](), list[int]()
    reader = threading.Thread(target=lambda: read.extend(handed.get(20) for _ in range(4)))
    reader.start()
    for number in range(3):
        handed.put(number, 60.0)
    time.sleep(0.02)
    assert read == [0], "the others are held"
    handed.put(3)
    reader.join(20)
    assert read == [0, 1, 2, 3]
