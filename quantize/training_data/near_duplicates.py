"""Texts that nearly repeat an earlier one, found among many without comparing each with each.

MinHash (Broder 1997) over runs of words, with banding as in locality-sensitive hashing (Leskovec, Rajaraman and
Ullman, Mining of Massive Datasets, chapter 3); what is proposed is compared exactly. Knows nothing of examples.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass, field
from math import ceil

import numpy as np
from numpy.typing import NDArray

SAME = 0.7
"""Jaccard similarity of word runs from which two texts are one."""
RUN = 3
"""Words of a run."""
_ROWS = 4  # hashes of a band
_MISSED = 0.001  # share of pairs exactly at the threshold that no band may propose

Shingles = frozenset[int]


def shingles(text: str, run: int = RUN) -> Shingles:
    """The runs of `run` words of a text as 32-bit hashes, case and punctuation aside; a shorter text is one run.

    >>> len(shingles("The Rhine rises in the Alps.")), shingles("the RHINE") == shingles("The Rhine!")
    (4, True)
    """
    words = re.findall(r"\w+", text.casefold()) or [text]
    runs = {" ".join(words[at : at + run]) for at in range(max(1, len(words) - run + 1))}
    return frozenset(
        int.from_bytes(hashlib.blake2b(one.encode("utf-8", "replace"), digest_size=4).digest(), "little")
        for one in runs
    )


def jaccard(one: Shingles, other: Shingles) -> float:
    """Size of the intersection over that of the union; neither is empty."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)


class MinHash:
    """Sketches of sets: two sketches agree at a place with the probability that is the sets' Jaccard similarity.

    The hashes are those of multiply-shift, strongly universal for 32 bits (Dietzfelbinger 1996).
    """

    def __init__(self, places: int, seed: int = 1) -> None:
        """`places` numbers make a sketch."""
        random = np.random.default_rng(seed)
        self._factors, self._offsets = random.integers(0, 1 << 64, (2, places), dtype=np.uint64)

    def sketch(self, members: Shingles) -> NDArray[np.uint32]:
        """The sketch [places] of a set that is not empty."""
        values = np.fromiter(members, np.uint64, len(members))
        products = values[:, None] * self._factors + self._offsets  # modulo 2^64
        return np.asarray((products >> np.uint64(32)).astype(np.uint32).min(axis=0))


@dataclass(slots=True)
class NearDuplicates:
    """The texts so far, each with a number; tells which of them a further text repeats.

    Enough bands that a pair at the threshold is missed once in a thousand; what is above it, less often. Memory is
    that of the texts' word runs. The answers follow from the texts and their order alone.

    >>> seen = NearDuplicates()
    >>> seen.add("The Rhine rises in the Swiss Alps and flows north.")
    0
    >>> seen.find("the Rhine rises in the Swiss Alps, and flows north"), seen.find("The Danube rises in Germany.")
    (0, None)
    """

    threshold: float = SAME
    run: int = RUN
    _bands: int = field(init=False)
    _hash: MinHash = field(init=False)
    _kept: list[Shingles] = field(init=False, default_factory=list)
    _buckets: defaultdict[bytes, list[int]] = field(init=False, default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"a threshold of {self.threshold} is not above 0 and at most 1")
        self._bands = bands(self.threshold)
        self._hash = MinHash(self._bands * _ROWS)

    def find(self, text: str) -> int | None:
        """The number of the first text that this one nearly repeats, or None."""
        return self._find(shingles(text, self.run))

    def add(self, text: str) -> int:
        """Remember a text; its number, counting from 0."""
        return self._add(shingles(text, self.run))

    def find_or_add(self, text: str) -> int | None:
        """What `find` says; a text that repeats nothing is remembered."""
        members = shingles(text, self.run)
        if (found := self._find(members)) is None:
            self._add(members)
        return found

    def _find(self, members: Shingles) -> int | None:
        proposed = {number for key in self._keys(members) for number in self._buckets.get(key, ())}
        return next((at for at in sorted(proposed) if jaccard(members, self._kept[at]) >= self.threshold), None)

    def _add(self, members: Shingles) -> int:
        number = len(self._kept)
        self._kept.append(members)
        for key in self._keys(members):
            self._buckets[key].append(number)
        return number

    def _keys(self, members: Shingles) -> list[bytes]:
        rows = self._hash.sketch(members).reshape(self._bands, _ROWS)
        return [band.to_bytes(2, "little") + row.tobytes() for band, row in enumerate(rows)]


def bands(threshold: float) -> int:
    """Bands of four hashes by which a pair at `threshold` is missed once in a thousand, between 1 and 512.

    >>> bands(0.7), bands(0.9)
    (26, 7)
    """
    together = threshold**_ROWS  # the probability that one band agrees
    return 1 if together >= 1 else min(512, ceil(np.log(_MISSED) / np.log1p(-together)))
