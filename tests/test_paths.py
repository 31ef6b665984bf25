"""Paths of tokens: one is taken to its end; where they part, what the model and what the weights say counts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.engines.paths import MOST, Paths

END = 99
TOKENS = st.lists(st.integers(0, 3), max_size=4).map(lambda tokens: (*tokens, END))
CHOICES = st.lists(st.tuples(TOKENS, st.floats(-50, 0)), min_size=1, max_size=12)


def walked(paths: Paths, logprob: dict[int, float]) -> tuple[int, ...]:
    taken = []
    while paths.open:
        step = paths.take(lambda token: logprob.get(token, -5.0))
        assert 0 <= step.margin <= MOST and 0 <= step.entropy < math.inf
        taken.append(step.token)
    return tuple(taken)


@given(CHOICES, st.dictionaries(st.integers(0, 3), st.floats(-30, 0)))
def test_what_is_taken_is_one_of_the_paths(
    choices: list[tuple[tuple[int, ...], float]], logprob: dict[int, float]
) -> None:
    assert walked(Paths(choices), logprob) in dict(choices)


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(-9, 0)), min_size=1, max_size=9))
def test_of_single_tokens_the_one_with_the_largest_product_is_taken(pairs: list[tuple[int, float]]) -> None:
    shares: dict[int, float] = {}
    for token, weight in pairs:
        shares[token] = shares.get(token, 0.0) + math.exp(weight)
    (taken, _) = walked(Paths([((token, END), weight) for token, weight in pairs]), {t: -t / 7 for t in shares})
    best = max(math.exp(-token / 7) * share for token, share in shares.items())
    assert math.exp(-taken / 7) * shares[taken] == pytest.approx(best)


def test_many_likely_paths_behind_a_branch_speak_for_it_together() -> None:
    one, many = ((1, END), -1.0), [((2, at, END), -1.5) for at in range(4)]
    assert walked(Paths([one, *many]), {1: -1.0, 2: -1.0})[0] == 2
    assert walked(Paths([one, many[0]]), {1: -1.0, 2: -1.0})[0] == 1


def test_how_close_a_choice_was_is_said() -> None:
    paths = Paths([((1, END), math.log(0.3)), ((2, END), math.log(0.1))])
    step = paths.take(lambda token: math.log(0.5))
    assert step.token == 1
    assert step.margin == pytest.approx(math.log(3))
    assert step.entropy == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert paths.take(lambda token: -1.0) == (END, 0.0, MOST)


def test_tokens_that_cannot_be_leave_the_choice_to_the_weights() -> None:
    paths = Paths([((1, END), -9.0), ((2, END), -1.0)])
    assert paths.take(lambda token: -math.inf).token == 2


def test_two_texts_of_the_same_tokens_are_one() -> None:
    assert walked(Paths([((1, END), -1.0), ((1, END), -2.0)]), {}) == (1, END)


@given(CHOICES, st.dictionaries(st.integers(0, 3), st.floats(-30, 0)), st.integers(0, 5))
def test_the_shares_of_all_paths_are_one_together_at_any_place(
    choices: list[tuple[tuple[int, ...], float]], logprob: dict[int, float], steps: int
) -> None:
    paths = Paths(choices)
    while paths.open and steps:
        paths.take(lambda token: logprob.get(token, -5.0))
        steps -= 1
    assert sum(paths.shares()) == pytest.approx(1.0)
    assert all(0 <= share <= 1 for share in paths.shares())


def test_before_the_first_token_the_weights_alone_are_the_shares() -> None:
    assert Paths([((1, END), math.log(3)), ((2, END), 0.0)]).shares() == pytest.approx((0.75, 0.25))


def test_a_path_has_the_shares_of_its_branches_and_one_left_behind_that_of_its_weight() -> None:
    paths = Paths([((1, 5, END), 0.0), ((1, 6, END), 0.0), ((2, 7, END), math.log(3)), ((2, 8, END), 0.0)])
    likely = {1: math.log(0.8), 2: math.log(0.1), 5: math.log(0.3), 6: math.log(0.1)}
    assert walked(paths, likely) == (1, 5, END)
    left = 0.1 * 4 / (0.8 * 2 + 0.1 * 4)  # of the branch that begins with 2
    assert paths.shares() == pytest.approx(((1 - left) * 0.75, (1 - left) * 0.25, left * 0.75, left * 0.25))
