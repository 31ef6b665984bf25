"""The number of threads, against simulated machines on which other processes come and go."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_files import tiny_llama
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.engines.threads import ThreadPace

ONE = 0.0075  # seconds a token on one thread


def alone(threads: int) -> float:
    return ONE * (0.25 + 0.75 / threads)


def beside_a_busy_process(threads: int, cores: int = 2, slow: float = 8.0) -> float:
    return alone(threads) if threads < cores else slow * ONE


def spent(pace: ThreadPace, steps: int, machine: Callable[[int], float]) -> tuple[float, int]:
    """Seconds that all steps took, and how often the number changed."""
    total, changes = 0.0, 0
    for _ in range(steps):
        threads, seconds = pace.threads, 0.0
        if pace.unsure:
            pace.tried_one(seconds := machine(1))
        total += seconds
        seconds = machine(threads)
        total += seconds
        pace.took(seconds)
        changes += pace.threads != threads
    return total, changes


@pytest.mark.parametrize("most", [1, 2, 3, 4, 8])
def test_alone_all_threads_are_used_and_trying_one_costs_next_to_nothing(most: int) -> None:
    pace = ThreadPace(most)
    total, changes = spent(pace, 1000, alone)
    assert pace.threads == most
    assert changes == 0  # so that answers are the same each time
    assert total <= 1.01 * 1000 * alone(most)


@pytest.mark.parametrize("most", [2, 4, 8])
@pytest.mark.parametrize("warm", [0, 200])
@pytest.mark.parametrize("slow", [3.0, 8.0, 700.0])
def test_beside_a_busy_process_it_is_about_as_fast_as_fewer_threads(most: int, warm: int, slow: float) -> None:
    pace = ThreadPace(most)
    spent(pace, warm, alone)
    spent(pace, 10, lambda threads: beside_a_busy_process(threads, most, slow))  # until it is noticed
    total, _ = spent(pace, 4000, lambda threads: beside_a_busy_process(threads, most, slow))
    assert total <= 1.1 * 4000 * ONE


def test_it_comes_back_when_the_core_is_free_again() -> None:
    pace = ThreadPace(2)
    spent(pace, 100, alone)
    spent(pace, 300, beside_a_busy_process)
    assert pace.threads == 1
    spent(pace, 600, alone)
    assert pace.threads == 2
    assert spent(pace, 1000, alone)[1] == 0


def test_a_single_hiccup_changes_nothing_and_two_cost_a_few_slower_steps() -> None:
    pace = ThreadPace(2)
    spent(pace, 500, alone)
    pace.took(30 * ONE)
    assert pace.threads == 2
    pace.took(30 * ONE)
    assert pace.threads == 1
    total, _ = spent(pace, 500, alone)
    assert pace.threads == 2
    assert total <= 500 * alone(2) + 20 * ONE


def test_after_a_sleep_of_the_machine_it_recovers() -> None:
    pace = ThreadPace(2)
    pace.took(alone(2))
    spent(pace, 50, alone)
    pace.took(36_000.0)
    pace.took(36_000.0)
    spent(pace, 15_000, alone)
    assert pace.threads == 2


def test_two_threads_that_are_no_faster_are_not_tried_all_the_time() -> None:
    pace = ThreadPace(2)
    total, changes = spent(pace, 5000, lambda threads: ONE * (1.3 if threads == 2 else 1.0))
    assert total <= 1.1 * 5000 * ONE
    assert changes < 100


@given(
    most=st.sampled_from([2, 3, 4, 8]),
    seed=st.integers(0, 2**32),
    phases=st.lists(st.tuples(st.integers(1, 400), st.floats(0.5, 100.0)), min_size=1, max_size=12),
    noise=st.floats(0.0, 0.15),
)
def test_all_steps_together_are_never_much_slower_than_one_thread(
    most: int, seed: int, phases: list[tuple[int, float]], noise: float
) -> None:
    """In each phase the threads, more than one, are `slow` times as slow as one, or as fast as they should be."""
    pick, pace = random.Random(seed), ThreadPace(most)
    total = plain = worst = 0.0
    changes = steps = 0
    for length, slow in phases:
        busy = slow if slow > 1 else 0.0
        worst = max(worst, busy)

        def machine(threads: int, busy: float = busy) -> float:
            nonlocal plain
            wobble = pick.lognormvariate(0.0, noise)
            plain += ONE * wobble
            return (busy * ONE if busy and threads > 1 else alone(threads)) * wobble

        seconds, moved = spent(pace, length, machine)
        total, changes, steps = total + seconds, changes + moved, steps + length
    # The first losses: what is learnt before one thread has been tried, and an attempt on each number of threads.
    first = 4 * (3 + 2) * max(1.0, worst) * ONE + 20 * ONE
    assert total <= 1.17 * plain + first
    assert changes <= 4 + steps / 4  # no flapping


def spent_in_groups(pace: ThreadPace, steps: int, machine: Callable[[int], float], moment: float = 0.02) -> float:
    """As `spent`, where the steps that come within a moment are taken on one number of threads."""
    total, done = 0.0, 0
    while done < steps:
        if pace.unsure:
            total += spent(pace, 1, machine)[0]
            done += 1
            continue
        threads, times = pace.threads, list[float]()
        while not times or sum(times) + times[-1] <= moment:
            times.append(machine(threads))
        pace.took_together(times)
        total, done = total + sum(times), done + len(times)
    return total


@pytest.mark.parametrize("most", [2, 4, 8])
@pytest.mark.parametrize("quick", [1, 4, 15])
@pytest.mark.parametrize("slow", [2.0, 8.0])
def test_steps_in_groups_leave_a_number_of_threads_that_does_not_pay(most: int, quick: int, slow: float) -> None:
    def machine(threads: int) -> float:
        return beside_a_busy_process(threads, most, slow) / quick

    pace = ThreadPace(most)
    spent_in_groups(pace, 200 * quick, machine)
    assert spent_in_groups(pace, 4000, machine) <= 1.5 * 4000 * ONE / quick
    spent_in_groups(pace, 4000, lambda threads: alone(threads) / quick)
    assert pace.threads == most


def test_time_that_passes_with_prompts_brings_the_next_attempt_nearer() -> None:
    patient, answering = ThreadPace(2), ThreadPace(2)
    for pace in (patient, answering):
        spent(pace, 2000, beside_a_busy_process)
        while pace.threads == 2:
            pace.took(8 * ONE)
    for _ in range(4):
        patient.took(ONE)
        answering.passed(10.0)
        answering.took(ONE)
    assert (patient.threads, answering.threads) == (1, 2)


def test_the_token_that_is_tried_on_one_thread_leaves_no_trace(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from edge_sdk.engines.llama import LlamaModel

    path, rows = tiny_llama(tmp_path / "tiny.gguf"), []
    for yielding in (False, True):
        model = LlamaModel(path, context=256, threads=2, gpu_layers=0, yielding=yielding)
        model.prefill([5, 6, 7], lambda: False)
        for token in range(20, 30):
            model.advance(token)
        assert model.seen == [5, 6, 7, *range(20, 30)]
        rows.append(np.ctypeslib.as_array(model.row(), (model.size,)).copy())
        pace = model._pace
        assert (pace is not None and 1 in pace._times) == yielding
        model.close()
    assert np.array_equal(rows[0], rows[1])
