"""Drafts by lookup: against a search of everything, and on what an answer does."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.engines.prompt_lookup import PromptLookup

TOKENS = st.lists(st.integers(0, 3), max_size=40)  # few of them, so that much repeats


def last_place(tokens: Sequence[int], size: int) -> int | None:
    """Behind the last earlier occurrence of the last `size` tokens, by looking everywhere."""
    places = (at for at in range(len(tokens) - 1, size - 1, -1) if tokens[at - size : at] == tokens[-size:])
    return next(places, None) if len(tokens) >= size else None


@given(TOKENS, TOKENS)
def test_a_draft_is_what_stood_behind_the_longest_match(prompt: list[int], answer: list[int]) -> None:
    lookup, tokens, place, match = PromptLookup(prompt), list(prompt), 0, 0
    for token in answer:
        follows = match > 0 and tokens[place] == token
        place, match = (place + 1, match + 1) if follows else (0, 0)
        tokens.append(token)
        for size in (4, 3, 2):
            if not match and (found := last_place(tokens, size)):
                place, match = found, size
        lookup.append(token)
        assert (lookup.match, lookup.draft(5)) == (match, tokens[place : place + 5] if match else [])
        assert tokens[place - match : place] == tokens[len(tokens) - match :]


def test_a_quotation_is_followed_to_its_end() -> None:
    passage = list(range(100, 130))
    lookup = PromptLookup([1, 2, *passage, 3, 4])
    for token in passage[:3]:
        lookup.append(token)
    for at in range(3, 30):
        assert (lookup.match, lookup.draft(4)) == (at, [*passage, 3, 4, *passage][at : at + 4])
        lookup.append(passage[at])
    lookup.append(99)
    assert (lookup.match, lookup.draft(4)) == (0, [])


def test_the_place_followed_is_kept_though_another_came_later() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 8, 2, 3, 9, 9])
    for token in (1, 2, 3):
        lookup.append(token)
    assert lookup.draft(2) == [4, 5]
    for token in (7, 2, 3):
        lookup.append(token)
    assert lookup.draft(2) == [7, 2]  # the answer's own words are the latest
