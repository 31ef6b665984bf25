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
    """Calibration questions, their vectors [n, d] (float32, length 1) and whether the local answer was right."""

    questions: tuple[str, ...]
    right: NDArray[np.bool_]
    vectors: NDArray[np.float32]

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
        codes = np.rint(self.vectors * 127).astype(np.int8)
        return {
            "questions": list(self.questions),
            "right": [bool(each) for each in self.right],
            "dimension": self.vectors.shape[1],
            "codes": b64encode(codes.tobytes()).decode(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Neighbours:
        """What `to_json` gave; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        questions = tuple(str(each) for each in value["questions"])
        codes = np.frombuffer(b64decode(value["codes"], validate=True), np.int8)
        vectors = codes.reshape(len(questions), int(value["dimension"])).astype(np.float32)
        right = np.array([bool(each) for each in value["right"]], bool)
        if len(right) != len(questions):
            raise ValueError("as many labels as questions")
        return cls(questions, right, unit_rows(vectors))


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1, as they are after a round trip through 8 bits; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths, lengths, 1), np.float32)


def gather(questions: Sequence[str], right: Sequence[bool], vectors: NDArray[np.float32]) -> Neighbours:
    """Neighbours of these questions, with vectors as they will be when they are read from a file again."""
    exact = Neighbours(tuple(questions), np.asarray(right, bool), np.asarray(vectors, np.float32))
    return Neighbours.from_json(exact.to_json())
