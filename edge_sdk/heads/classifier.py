"""A text to one of the labels that a head was fitted to, or to none: with probabilities, and why.

Scores are linear in the features, so every answer can be taken apart. Knows nothing of how a head was fitted or of
where it came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..encoders.embed import Encoder
from ..encoders.encoders import is_static, open_encoder
from ..errors import ModelDamagedError, ModelError
from .features import BothFeatures, Features
from .head_file import HeadWeights, read_head
from .vector_features import VectorFeatures
from .word_features import WordFeatures

Floats = NDArray[np.float32]

SIGNALS = {
    "score": "score of the best label",
    "lead": "its lead over the second best",
    "energy": "logarithm of the summed exponentials of all scores (Liu et al. 2020, arXiv:2010.03759)",
    "nearest": "largest cosine to an example",
    "agreement": "1 if the nearest example has the best label",
}
"""What probabilities are made of: nothing that tells one label from another."""
_REASONS, _NEAREST = 6, 3
_SLICE = 256  # texts


@dataclass(frozen=True, slots=True)
class Reason:
    """A part of the text, and how much of the best label's lead over the second best is its doing."""

    part: str
    weight: float


@dataclass(frozen=True, slots=True)
class Similar:
    """An example with its label and its cosine to the text."""

    text: str
    label: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The best label, the next best, the examples that are most alike, and reasons where they were asked for.

    `probability`: that `label` is right; `out_of_scope`: that none is, None where there was nothing to learn it
    from. Both are for texts of which the share named at fitting is out of scope.
    """

    label: str
    probability: float
    out_of_scope: float | None
    second: str
    nearest: tuple[Similar, ...]
    reasons: tuple[Reason, ...] = ()


class IntentHead:
    """A linear classifier of texts: by words, for which nothing else is needed, an encoder's vectors, or both."""

    def __init__(self, weights: HeadWeights, encoder: Encoder | None = None) -> None:
        """Use `open`; this takes what it has loaded."""
        self._head = weights
        self.labels, self.figures = weights.labels, weights.figures
        self._owners = np.array([label for _, label in weights.examples], np.int64)
        self.features = _features(weights, encoder)

    @classmethod
    def open(cls, folder: Path, shared: Callable[[], Encoder] | None = None) -> IntentHead:
        """Load `head.json` and `head.npz` of a folder, and the encoder beside them where there is one.

        `shared` loads the encoder of heads that have none of their own. Raises `ModelNotFoundError`,
        `ModelDamagedError`, and `ModelError` for another encoder than the one that the head was fitted with.
        """
        weights = read_head(folder)
        if weights.encoder is None:
            return cls(weights)
        return cls(weights, open_encoder(folder) if has_encoder(folder) else shared() if shared else None)

    def top_terms(self, label: str, count: int = 10) -> tuple[Reason, ...]:
        """The terms that speak most for a label, over those for all labels; none for a head on vectors alone.

        Raises `ModelError` for a label that it does not have.
        """
        if label not in self.labels:
            raise ModelError(f"the head has no label {label!r}", hint=f"it has {', '.join(self.labels[:5])}, ...")
        if self._head.vocabulary is None:
            return ()
        first = self._head.vectors.shape[1]
        weights = self._head.codes[first:].astype(np.float32) * self._head.scales[first:, None]
        lead = weights[:, self.labels.index(label)] - weights.mean(axis=1)
        terms = list(self._head.vocabulary.places)
        return tuple(Reason(terms[at], float(lead[at])) for at in np.argsort(-lead, kind="stable")[:count])

    def classify(self, text: str, *, explain: bool = False) -> Classification:
        """The label of a text. `explain` adds reasons, for which an encoder reads the text without each word."""
        return self.classify_all([text], explain=explain)[0]

    def classify_all(self, texts: Sequence[str], *, explain: bool = False) -> list[Classification]:
        """The labels of texts, in their order."""
        found: list[Classification] = []
        for start in range(0, len(texts), _SLICE):  # rows of words are long
            part = texts[start : start + _SLICE]
            found += map(self._one, part, self.features.rows(part), [explain] * len(part))
        return found

    def _one(self, text: str, row: Floats, explain: bool) -> Classification:
        scores, cosines = self.scores(row), self.features.cosines(row)
        measured = signals(scores, cosines, self._owners)
        right = self._head.right.estimate(measured).probability
        inside = None if self._head.inside is None else self._head.inside.estimate(measured).probability
        best, second = np.argsort(-scores, kind="stable")[:2].tolist()
        return Classification(
            label=self.labels[best],
            probability=right if inside is None else inside * right,
            out_of_scope=None if inside is None else 1 - inside,
            second=self.labels[second],
            nearest=tuple(self._similar(at, cosines) for at in np.argsort(-cosines, kind="stable")[:_NEAREST]),
            reasons=self.reasons(text, row, self.labels[best], self.labels[second]) if explain else (),
        )

    def scores(self, row: Floats) -> Floats:
        """Scores [labels] of one row of features."""
        used = np.flatnonzero(row)
        weights = self._head.codes[used].astype(np.float32)
        return np.asarray((row[used] * self._head.scales[used]) @ weights + self._head.intercepts)

    def reasons(
        self, text: str, row: Floats, label: str, other: str, *, count: int = _REASONS
    ) -> tuple[Reason, ...]:
        """What spoke most for one label rather than another, or against it, in a text with these features."""
        mine, others = (self._head.codes[:, self.labels.index(each)].astype(np.float32) for each in (label, other))
        parts = self.features.parts(text, row, self._head.scales * (mine - others))
        return tuple(Reason(*part) for part in sorted(parts, key=lambda part: -abs(part[1]))[:count])

    def _similar(self, at: int, cosines: Floats) -> Similar:
        text, label = self._head.examples[at]
        return Similar(text, self.labels[label], float(cosines[at]))


def has_encoder(folder: Path) -> bool:
    """Whether the folder of a head holds an encoder of its own."""
    return is_static(folder) or any(folder.glob("*.onnx"))


def signals(scores: Floats, cosines: Floats, owners: NDArray[np.int64]) -> dict[str, float]:
    """What probabilities are made of (`SIGNALS`): one text's scores, its cosines to examples, and their labels.

    >>> found = signals(np.array([3.0, 1.0]), np.array([0.5, 0.25]), np.array([0, 1]))
    >>> found["lead"], found["nearest"], found["agreement"]
    (2.0, 0.5, 1.0)
    """
    second, best = np.partition(scores, -2)[-2:].tolist()
    nearest = int(cosines.argmax())
    return {
        "score": best,
        "lead": best - second,
        "energy": best + math.log(float(np.exp(scores - best).sum())),
        "nearest": float(cosines[nearest]),
        "agreement": float(owners[nearest] == scores.argmax()),
    }


def _features(weights: HeadWeights, encoder: Encoder | None) -> Features:
    texts = [text for text, _ in weights.examples]
    words = None if weights.vocabulary is None else WordFeatures(weights.vocabulary, texts)
    if weights.encoder is None:
        assert words is not None  # `read_head` refuses a head without features
        return words
    vectors = VectorFeatures(_fitting(weights, encoder), weights.vectors)
    return vectors if words is None else BothFeatures(vectors, weights.vectors.shape[1], words)


def _fitting(weights: HeadWeights, encoder: Encoder | None) -> Encoder:
    if encoder is None or encoder.fingerprint != weights.encoder:
        found = "there is none" if encoder is None else f"this is {encoder.fingerprint[:16]}"
        raise ModelError(
            f"the head was fitted to the encoder {str(weights.encoder)[:16]}; {found}",
            hint="give the encoder that it was fitted with, or fit it again",
        )
    if encoder.dimension != weights.vectors.shape[1]:
        wrong = f"the head has vectors of {weights.vectors.shape[1]} dimensions, its encoder of {encoder.dimension}"
        raise ModelDamagedError(wrong, hint="run `edge head fit` again")
    return encoder
