"""How much of a cache that many sequences share is taken: the cells of a common beginning count once.

Pure bookkeeping, exact to the cell, whichever sequence a beginning is shared with. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


class Cells:
    """`capacity` cells, and the sequences that hold them.

    >>> cells = Cells(100)
    >>> cells.hold(0, 60), cells.hold(1, 70, source=0, shared=50), cells.free
    (None, None, 20)
    >>> cells.only([0]), cells.remove(0), cells.free
    (10, None, 30)
    """

    def __init__(self, capacity: int) -> None:
        self._holders = np.zeros(capacity, np.int32)  # of each cell
        self._rows: dict[int, NDArray[np.intp]] = {}  # sequence to its cells, in the order of its tokens

    @property
    def free(self) -> int:
        """Cells that no sequence holds."""
        return int(np.count_nonzero(self._holders == 0))

    def only(self, sequences: Iterable[int]) -> int:
        """Cells that nothing but these sequences holds."""
        others = self._holders.copy()
        for sequence in sequences:
            others[self._rows[sequence]] -= 1
        return int(np.count_nonzero(self._holders)) - int(np.count_nonzero(others))

    def hold(self, sequence: int, length: int, *, source: int | None = None, shared: int = 0) -> None:
        """Take `length` cells for a new sequence; the first `shared` are those of `source`."""
        row = np.zeros(0, np.intp) if source is None else self._rows[source][:shared].copy()
        self._holders[row] += 1
        self._rows[sequence] = row
        self.extend(sequence, length)

    def extend(self, sequence: int, length: int) -> None:
        """Take more cells for a sequence, `length` in all; so many have to be free."""
        row = self._rows[sequence]
        taken = np.flatnonzero(self._holders == 0)[: length - len(row)]
        self._holders[taken] += 1
        self._rows[sequence] = np.concatenate([row, taken])

    def shorten(self, sequence: int, length: int) -> None:
        """Give back what a sequence holds beyond `length`."""
        row = self._rows[sequence]
        self._holders[row[length:]] -= 1
        self._rows[sequence] = row[:length]

    def remove(self, sequence: int) -> None:
        """Give back all that a sequence holds."""
        self.shorten(sequence, 0)
        del self._rows[sequence]


def shared_prefix(first: Tokens, second: Tokens) -> int:
    """Number of tokens with which both begin.

    >>> shared_prefix(np.array([1, 2, 3], np.int32), np.array([1, 2, 4, 5], np.int32))
    2
    """
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if different.size else length
