"""How much of a cache that many sequences share is taken: the cells of a common beginning count once.

Pure bookkeeping, exact to the cell. Sequences come in the sorted order of their tokens, so none of those before
shares more with a new one than the last does. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


@dataclass(slots=True)
class _Held:
    """A sequence with the cells kept for it, the first `shared` of which are also those of the one before it."""

    sequence: int
    length: int
    shared: int


class Cells:
    """`capacity` cells, and the sequences that hold them.

    >>> cells = Cells(100)
    >>> cells.add(0, 60, 0), cells.add(1, 70, 50), cells.used
    (None, None, 80)
    >>> cells.fits(70, 50), cells.fits(71, 50)
    (True, False)
    >>> cells.remove(0), cells.used
    (None, 70)
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._held: list[_Held] = []

    @property
    def used(self) -> int:
        """Cells taken."""
        return sum(held.length - held.shared for held in self._held)

    def fits(self, length: int, shared: int, *, instead: bool = False) -> bool:
        """Whether a sequence that shares so much with the last one has room; `instead` of that one, if so."""
        used = self.used
        if instead:
            last = self._held[-1]
            used, shared = used - last.length + last.shared, min(shared, last.shared)
        return used + length - shared <= self.capacity

    def add(self, sequence: int, length: int, shared: int) -> None:
        """Take `length` cells for a sequence, of which it shares some with the one added last."""
        self._held.append(_Held(sequence, length, shared))

    def replace_last(self, length: int, shared: int) -> None:
        """Take `length` cells for the sequence added last, of which it keeps those that it shares with itself."""
        last = self._held[-1]
        last.length, last.shared = length, min(shared, last.shared)

    def shorten(self, sequence: int, length: int) -> None:
        """Give back what a sequence holds beyond `length`, which is no less than what others share with it."""
        self._held[self._place(sequence)].length = length

    def remove(self, sequence: int) -> None:
        """Give back what a sequence holds alone."""
        place = self._place(sequence)
        gone = self._held.pop(place)
        if place < len(self._held):
            following = self._held[place]
            following.shared = min(following.shared, gone.shared)

    def _place(self, sequence: int) -> int:
        return next(place for place, held in enumerate(self._held) if held.sequence == sequence)


def shared_prefix(first: Tokens, second: Tokens) -> int:
    """Number of tokens with which both begin.

    >>> shared_prefix(np.array([1, 2, 3], np.int32), np.array([1, 2, 4, 5], np.int32))
    2
    """
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if different.size else length


def sorted_order(prompts: Sequence[Tokens]) -> list[int]:
    """Positions of prompts in the order of their tokens, so that those with a common beginning follow each other.

    >>> sorted_order([np.array([2], np.int32), np.array([1, 300], np.int32), np.array([1, 7], np.int32)])
    [2, 1, 0]
    """
    # Big-endian bytes compare as the tokens do, which are never negative.
    return sorted(range(len(prompts)), key=lambda position: prompts[position].astype(">i4").tobytes())


def most_needed(lengths: Sequence[int], common: int, sequences: int) -> int:
    """Cells with which any `sequences` of these have room, when all have their first `common` tokens in common.

    >>> most_needed([60, 70, 80], 50, 2)
    100
    """
    return common + sum(sorted((length - common for length in lengths), reverse=True)[:sequences])
