"""What a head reads of a text: sentence vectors, words, or both side by side.

Knows nothing of labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_HALF = math.sqrt(0.5)


class Features(Protocol):
    """Texts as unit rows, compared with the examples of a head."""

    def rows(self, texts: Sequence[str]) -> Floats:
        """Shape [texts, features], each of length 1; zeros where nothing in a text is known."""

    def cosines(self, row: Floats) -> Floats:
        """Of a row to each example."""

    def parts(self, text: str, row: Floats, contrast: Floats) -> list[tuple[str, float]]:
        """What parts of the text make of `row @ contrast`."""


class BothFeatures:
    """Two kinds of features in one row, each with half of its square."""

    def __init__(self, first: Features, width: int, second: Features) -> None:
        """`width`: how many features `first` has."""
        self._first, self._width, self._second = first, width, second

    def rows(self, texts: Sequence[str]) -> Floats:
        """Shape [texts, features]; of length 1 where both know something of the text."""
        return np.asarray(np.hstack([self._first.rows(texts), self._second.rows(texts)]) * np.float32(_HALF))

    def cosines(self, row: Floats) -> Floats:
        """The mean of both."""
        first, second = row[: self._width], row[self._width :]
        return np.asarray((self._first.cosines(first) + self._second.cosines(second)) * np.float32(_HALF))

    def parts(self, text: str, row: Floats, contrast: Floats) -> list[tuple[str, float]]:
        """Those of both."""
        width, half = self._width, np.float32(_HALF)
        first = self._first.parts(text, row[:width] / half, contrast[:width] * half)
        return first + self._second.parts(text, row[width:], contrast[width:])
