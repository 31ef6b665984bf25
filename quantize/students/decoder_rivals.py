"""What an extractive decoder has to tell a right answer from: the words that a reader finds likely beside it.

At run time each token is chosen among those that the offered answers go on with (`engines.paths`); so that is what
is learned. Knows nothing of models or of how tasks were made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from edge_sdk.choices import choices
from edge_sdk.prompt import NOT_FOUND, Prompt
from edge_sdk.readers.extract import Extract
from edge_sdk.readers.overlap import words_of
from edge_sdk.records import Hit

Rivals = tuple[tuple[int, ...], ...]
"""For each token of an answer the other tokens that it is to be told from."""
Read = Callable[[str, Sequence[str]], Extract]
"""What a reader finds in passages for a question: `Reader.read`."""


def other_answers(
    extract: Extract, hits: Sequence[Hit], prompt: Prompt, right: Collection[str], *, numbered: bool
) -> list[str]:
    """What is offered beside the `right` answers, and that there is none, where that is not the right one.

    At run time that is offered only where the reader doubts; but it hardly doubts what it has learned.
    """
    offered = [text for text, _ in choices(extract, hits, prompt, numbered=numbered)]
    same = [words_of(text) for text in right]
    return [text for text in dict.fromkeys([*offered, NOT_FOUND]) if words_of(text) not in same]


def rivals(right: Sequence[int], others: Sequence[Sequence[int]]) -> Rivals:
    """For each token of the right answer the other tokens with which answers go on that began as it did.

    >>> rivals([5, 7, 2], [[5, 7, 8, 2], [5, 9, 2], [6, 2]])
    ((6,), (9,), (8,))
    """
    found = []
    for at in range(len(right)):
        others = [each for each in others if len(each) > at and tuple(each[:at]) == tuple(right[:at])]
        found.append(tuple(dict.fromkeys(each[at] for each in others if each[at] != right[at])))
    return tuple(found)
