"""Texts to sentence vectors of an encoder, and what each word of a text does to them.

Knows nothing of labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..encoders.embed import Encoder

Floats = NDArray[np.float32]

_WORD = re.compile(r"\S+")
_MOST_WORDS = 64  # of a text, left out in turn


class VectorFeatures:
    """Rows are an encoder's vectors; those of examples are kept as 8-bit codes of any scale."""

    def __init__(self, encoder: Encoder, codes: NDArray[np.int8]) -> None:
        self._encoder = encoder
        rows = codes.astype(np.float32)
        self._rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)

    def rows(self, texts: Sequence[str]) -> Floats:
        """Shape [texts, dimension], each of length 1."""
        return self._encoder.encode(texts)

    def cosines(self, row: Floats) -> Floats:
        """Of a row to each example."""
        return np.asarray(self._rows @ row)

    def parts(self, text: str, row: Floats, contrast: Floats) -> list[tuple[str, float]]:
        """What `row @ contrast` loses without each word (Zeiler and Fergus 2014); they need not add up to it."""
        words = [match.span() for match in _WORD.finditer(text)][:_MOST_WORDS]
        without = self.rows([text[:start] + text[end:] for start, end in words])
        lost = (row - without) @ contrast
        return [(text[start:end], float(part)) for (start, end), part in zip(words, lost, strict=True)]
