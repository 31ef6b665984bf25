"""The calibration questions, as vectors: which were near a question, and how its local answers did there.

Vectors are kept in 8 bits, rows of unit length. Knows nothing of encoders.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..records import Neighbour

if TYPE_CHECKING:
    from collections.abc import Mapping

NEAREST = 10
_PRIOR = 4.0  # questions of average success that are added to those near


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Calibration questions, whether the local answer was right, and their vectors [n, d] (float32, length 1).

    The vectors follow from `codes` (int8), which are kept: rounding them a second time would not give the same.
    """

    questions: tuple[str, ...]
    right: NDArray[np.bool_]
    codes: NDArray[np.int8]
    vectors: NDArray[np.float32]

    @classmethod
    def of(cls, questions: Sequence[str], right: NDArray[np.bool_], codes: NDArray[np.int8]) -> Neighbours:
        """Neighbours with the vectors that these codes stand for."""
        return cls(tuple(questions), right, codes, unit_rows(codes.astype(np.float32)))

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self.codes.shape[1])

    def nearest(self, vector: NDArray[np.float32], k: int) -> list[Neighbour]:
        """The k nearest by cosine, the nearest first."""
        cosines = self._cosines(vector)
        order = np.argsort(-cosines, kind="stable")[:k]
        return [Neighbour(self.questions[at], bool(self.right[at]), float(cosines[at])) for at in order]

    def signals(self, vector: NDArray[np.float32], *, without: int | None = None) -> dict[str, float]:
        """How familiar a question is and how answers went near it; `without` leaves one row out, when fitting.

        `familiarity` is the largest cosine to a calibration question, `past_success` the share of right answers
        among the ten nearest, drawn towards the average.
        """
        cosines = self._cosines(vector)
        if without is not None:
            cosines[without] = -np.inf
        order = np.argsort(-cosines, kind="stable")[: min(NEAREST, len(cosines) - (without is not None))]
        if not len(order):
            return {}
        average = float(self.right.mean())
        success = (float(self.right[order].sum()) + _PRIOR * average) / (len(order) + _PRIOR)
        return {"familiarity": float(cosines[order[0]]), "past_success": success}

    def _cosines(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        # einsum and not BLAS: its threads spin, which costs far more than this product where a core is busy
        cosines: NDArray[np.float32] = np.einsum("nd,d->n", self.vectors, vector)
        return cosines

    def to_json(self) -> dict[str, Any]:
        """Texts, labels, and the vectors as base64 of int8 rows."""
        return {
            "questions": list(self.questions),
            "right": [bool(each) for each in self.right],
            "dimension": self.dimension,
            "codes": b64encode(self.codes.tobytes()).decode(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Neighbours:
        """What `to_json` gave; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        questions, right, dimension = value["questions"], value["right"], value["dimension"]
        if not (_are(str, questions) and _are(bool, right) and _are(int, [dimension]) and dimension >= 0):
            raise ValueError("questions, labels or the dimension have the wrong form")
        if len(right) != len(questions):
            raise ValueError(f"{len(right)} labels for {len(questions)} questions")
        codes = np.frombuffer(b64decode(value["codes"], validate=True), np.int8)
        return cls.of(questions, np.array(right, bool), codes.reshape(len(questions), dimension))


def gather(questions: Sequence[str], right: Sequence[bool], vectors: NDArray[np.float32]) -> Neighbours:
    """Neighbours of these questions, given unit vectors [n, d], as they will be when read from a file again."""
    codes = np.rint(np.clip(vectors, -1, 1) * 127).astype(np.int8)
    return Neighbours.of(questions, np.asarray(right, bool), codes)


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths, lengths, 1), np.float32)


def _are(kind: type, values: object) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)
