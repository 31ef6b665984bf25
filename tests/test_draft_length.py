"""When drafts pay: simulated answers, whose plain decoding takes a second a token."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.engines.draft_length import DraftLength

COSTS = {4: 1.8, 8: 2.9, 16: 4.3}


def decode(lengths: DraftLength, matches: Sequence[bool], costs: dict[int, float] = COSTS) -> tuple[float, int]:
    """Seconds and batches for an answer; `matches` says whether each token is what a draft would say."""
    lengths.begin()
    seconds, batches, at, match = 0.0, 0, 0, 0
    while at < len(matches):
        length = lengths.choose(match, len(matches) - at - 1)
        cost = costs[length + 1] if length else 1.0
        seconds += cost
        if length:
            batches += 1
            lengths.batch(length + 1, cost)
        else:
            lengths.single(1.0)
        for place in range(length + 1):
            right = matches[at]
            if match:
                lengths.observe(match, right)
            match = match + 1 if right else 2 if match == 0 else 0
            at += 1
            if length:
                lengths.gain()
            if not right or place == length or at == len(matches):
                break
    return seconds, batches


def test_quotations_come_sooner() -> None:
    lengths = DraftLength()
    answers = [decode(lengths, [True] * 60)[0] for _ in range(5)]
    assert answers[0] < 60 / 1.5
    assert max(answers[1:]) < 60 / 1.9


def test_what_never_repeats_is_decoded_plainly() -> None:
    lengths = DraftLength()
    assert sum(decode(lengths, [False] * 60)[1] for _ in range(20)) == 0


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=80), min_size=1, max_size=8))
def test_an_answer_loses_little_whatever_it_says(answers: list[list[bool]]) -> None:
    lengths = DraftLength(share=0.015, grant=1.0)
    for matches in answers:
        seconds, _ = decode(lengths, matches)
        assert seconds <= 1.015 * len(matches) + 1.0 + (max(COSTS.values()) - 1)  # the last batch may be a miss


@pytest.mark.parametrize("right", [0.3, 0.5, 0.7, 0.9])
def test_in_the_long_run_nothing_is_lost(right: float) -> None:
    pick, lengths, seconds = random.Random(4), DraftLength(), 0.0
    for _ in range(100):
        seconds += decode(lengths, [pick.random() < right for _ in range(50)])[0]
    assert seconds < 5000 * 1.02


def test_batches_that_are_slow_here_are_given_up_and_tried_again() -> None:
    lengths = DraftLength()
    slow = [decode(lengths, [True] * 60, {4: 5.0, 8: 9.0, 16: 17.0}) for _ in range(20)]
    assert sum(batches for _, batches in slow) <= 40
    assert sum(seconds for seconds, _ in slow) < 1.02 * 20 * 60
    seconds = [decode(lengths, [True] * 60)[0] for _ in range(10)]
    assert min(seconds[-3:]) < 60 / 1.5  # the machine is quick again


def test_no_draft_before_single_tokens_are_known() -> None:
    lengths = DraftLength()
    lengths.begin()
    assert lengths.choose(9, 99) == 0
