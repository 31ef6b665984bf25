"""Texts to weighted words, pairs of words and pieces of words: features that a person can read.

TF-IDF with sub-linear counts (Manning, Raghavan and Schütze, Introduction to Information Retrieval, 6.4). Knows
nothing of labels.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

MOST_CHARACTERS = 2_000
"""Of a text: what a head is asked is a request, not a document."""
PIECE = "…"
"""Begins a piece of a word, so that none is taken for a word; `_` in it is where the word ends."""
_LENGTHS = (3, 4, 5)  # characters of a piece
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The terms that count, and how much each: the rarer, the more."""

    places: Mapping[str, int]
    rarities: Sequence[float]

    @classmethod
    def of(cls, texts: Sequence[str], *, most: int) -> Vocabulary:
        """The `most` commonest terms of the texts, in alphabetic order.

        >>> Vocabulary.of(["tea", "tea now"], most=2).places
        {'tea': 0, '…_te': 1}
        """
        counts = Counter(term for text in texts for term in set(terms(text)))
        common = sorted(counts, key=lambda term: (-counts[term], term))[:most]
        rarities = {term: math.log((1 + len(texts)) / (1 + counts[term])) + 1 for term in sorted(common)}
        return cls({term: place for place, term in enumerate(rarities)}, list(rarities.values()))

    def weigh(self, text: str) -> dict[str, float]:
        """The known terms of a text with their weights.

        The squares of the weights of words and pairs sum to one half, those of pieces to the other; where only one
        of the two has a known term, its squares sum to 1.
        """
        parts: tuple[dict[str, float], dict[str, float]] = ({}, {})
        for term, count in Counter(terms(text)).items():
            place = self.places.get(term)
            if place is not None:
                parts[term.startswith(PIECE)][term] = (1 + math.log(count)) * self.rarities[place]
        filled = [part for part in parts if part]
        weights: dict[str, float] = {}
        for part in filled:
            length = math.sqrt(len(filled) * math.fsum(weight * weight for weight in part.values()))
            weights |= {term: weight / length for term, weight in part.items()}
        return weights


class WordFeatures:
    """Rows of term weights, and their cosines to those of examples, which are kept without the zeros."""

    def __init__(self, vocabulary: Vocabulary, examples: Sequence[str]) -> None:
        self.vocabulary = vocabulary
        weighed = [vocabulary.weigh(text) for text in examples]
        self._places = np.array([vocabulary.places[term] for row in weighed for term in row], np.int64)
        self._weights = np.array([weight for row in weighed for weight in row.values()], np.float32)
        self._owners = np.repeat(np.arange(len(weighed)), [len(row) for row in weighed])
        self._count = len(weighed)

    def rows(self, texts: Sequence[str]) -> Floats:
        """Shape [texts, terms], each of length 1; a text without any known term gives zeros."""
        rows = np.zeros((len(texts), len(self.vocabulary.places)), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for term, weight in self.vocabulary.weigh(text).items():
                row[self.vocabulary.places[term]] = weight
        return rows

    def cosines(self, row: Floats) -> Floats:
        """Of a row to each example."""
        products = self._weights * row[self._places]
        return np.bincount(self._owners, products, self._count).astype(np.float32)

    def parts(self, text: str, row: Floats, contrast: Floats) -> list[tuple[str, float]]:
        """What each term adds to `row @ contrast`; all together they are it."""
        places = self.vocabulary.places
        return [(term, float(row[places[term]] * contrast[places[term]])) for term in self.vocabulary.weigh(text)]


def terms(text: str) -> Iterator[str]:
    """Words in lower case, pairs of neighbours, and the pieces of each word.

    >>> list(terms("I see"))
    ['i', '…_i_', 'see', '…_se', '…see', '…ee_', '…_see', '…see_', '…_see_', 'i see']
    """
    before = ""
    for word in _WORD.findall(text[:MOST_CHARACTERS].casefold()):
        yield word
        framed = f"_{word}_"
        for length in _LENGTHS:
            yield from (PIECE + framed[at : at + length] for at in range(len(framed) - length + 1))
        if before:
            yield f"{before} {word}"
        before = word
