"""Answers that say nearly the same: how good each can be expected to be, by how likely the others are.

Where a model is unsure of the ends of an answer, the likeliest one is often a part of the right one. So it is
better to give the one whose words have the highest expected agreement with what may be right (minimum Bayes risk:
Kumar and Byrne, HLT-NAACL 2004). Knows nothing of models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"\w+")


def words_of(text: str) -> Counter[str]:
    """The words that are compared, without case and order."""
    return Counter(_WORD.findall(text.casefold()))


def shared_f1(one: Counter[str], other: Counter[str]) -> float:
    """F1 of the words of two texts; 1 where both have none.

    >>> shared_f1(words_of("the tower"), words_of("The Eiffel tower"))
    0.8
    """
    both = one.total() + other.total()
    return 2 * (one & other).total() / both if both else 1.0


def expected(
    one: Counter[str], others: Sequence[Counter[str]], shares: Sequence[float], *, holding: float = 0.0
) -> float:
    """The agreement of `one` with what is right, where that is each of the `others` with the probability `shares`.

    Agreement is F1 and, for a share of `holding`, whether it has all words of the other.

    >>> short, long = words_of("Eiffel"), words_of("Gustave Eiffel")
    >>> [round(expected(one, [short, long], [0.55, 0.45], holding=0.2), 2) for one in (short, long)]
    [0.79, 0.85]
    """
    return sum(
        share * ((1 - holding) * shared_f1(one, other) + holding * (other <= one))
        for share, other in zip(shares, others, strict=True)
    )
