"""`edge head fit`: a classifier of texts from a handful of examples a label, with probabilities that hold.

Scores are fitted by multinomial logistic regression. What a probability is worth is learned from examples that
the scores have not seen: each fold under the scores of the others, and texts that have none of the labels, or where
there are none of these, the examples of labels that were left out. Knows nothing of how a head is used.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.confidence.logistic import Logistic
from edge_sdk.encoders.embed import Encoder
from edge_sdk.errors import ConfigError
from edge_sdk.heads.classifier import signals
from edge_sdk.heads.features import BothFeatures, Features
from edge_sdk.heads.head_file import LONGEST, HeadWeights, write_head
from edge_sdk.heads.vector_features import VectorFeatures
from edge_sdk.heads.word_features import Vocabulary, WordFeatures
from edge_sdk.hub.partial import OUT, storage_errors
from edge_sdk.storage.vectors import quantize_rows

from ..collection import Update, read_jsonl
from ..fit import fit
from ..pack import encoder_files
from .softmax_regression import Floats, Integers, fit_softmax

OUT_OF_SCOPE = "oos"
"""The label of texts that have none, unless another is named."""
MOST_TERMS = 20_000
MOST_EXAMPLES = 5_000
"""Above, a handful has become a data set: fitting words takes the cube of the examples."""
SHARE = 0.1
"""Of texts that have none of the labels, where no example says how many to expect."""
FOLDS = 5
_SIGNS = {"score": 0, "lead": 1, "energy": 0, "nearest": 1, "agreement": 1}


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and its label; None for a text that has none of the labels."""

    text: str
    label: str | None


def read_labelled(path: Path, *, out_of_scope: str = OUT_OF_SCOPE) -> list[Labelled]:
    """The rows {text, label} of a JSON-lines file. Raises `ConfigError` naming the row."""
    found = []
    for number, row in enumerate(read_jsonl(path), 1):
        text, label = row.get("text"), row.get("label")
        if not isinstance(text, str) or not isinstance(label, str) or not text.strip() or not label.strip():
            raise ConfigError(f"row {number} of {path} is no example", hint="it needs a text and a label")
        found.append(Labelled(text, None if label == out_of_scope else label))
    return found


def fit_head(
    examples: Sequence[Labelled],
    out: Path,
    *,
    encoder: Encoder | None = None,
    words: bool = False,
    carry: Path | None = None,
    share: float | None = None,
    seed: int = 0,
    progress: Update = lambda done, total, detail: None,
) -> dict[str, Any]:
    """Make the folder `out` with a head; the JSON document of the command.

    It reads the vectors of `encoder`, with `words` or without, and words alone where there is none. `carry` is the
    folder of the encoder, which then goes with the head. `share` of the texts that it will see have none of the
    labels: by default as many as of the examples, or `SHARE` where all of these have one. Nothing is at `out`
    before all is done. Raises `ConfigError` when `out` exists, for fewer than two labels, fewer than two examples
    of one, and above `MOST_EXAMPLES`.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already", hint="give a folder that is not there yet")
    examples = list(dict.fromkeys(examples))
    inside = [each for each in examples if each.label is not None]
    if share is None:
        share = 1 - len(inside) / len(examples) if len(inside) < len(examples) else SHARE
    if not 0 < share < 1:
        raise ConfigError(f"the share of texts out of scope is {share}", hint="give one between 0 and 1")
    outside = [each.text for each in examples if each.label is None]
    labels = _check(inside)
    places = {label: place for place, label in enumerate(labels)}
    owners = np.array([places[str(each.label)] for each in inside], np.int64)
    texts = [each.text for each in inside]
    started = time.perf_counter()
    progress(0, FOLDS + 1, "features")
    vocabulary = Vocabulary.of(texts, most=MOST_TERMS) if words or encoder is None else None
    features = _features(encoder, vocabulary)
    rows, others = features.rows(texts), features.rows(outside)
    judged = Judged.cross_fitted(rows, owners, others, len(labels), share, seed, progress)
    weights, intercepts = fit_softmax(rows, owners, len(labels))
    codes, scales = quantize_rows(weights)
    figures = {"examples": len(texts), "out_of_scope": len(outside), "labels": len(labels), "share": share}
    figures |= judged.figures
    head = HeadWeights(
        labels=labels,
        codes=codes,
        scales=scales,
        intercepts=intercepts.astype(np.float32),
        right=judged.right,
        inside=judged.inside,
        examples=tuple(zip(texts, owners.tolist(), strict=True)),
        vectors=quantize_rows(rows[:, : 0 if encoder is None else encoder.dimension])[0],
        vocabulary=vocabulary,
        encoder=None if encoder is None else encoder.fingerprint,
        figures=figures,
    )
    _write(out, head, carry)
    size = sum(file.stat().st_size for file in out.iterdir())
    return {"kind": head.kind, **figures, "bytes": size, "seconds": time.perf_counter() - started}


def _features(encoder: Encoder | None, vocabulary: Vocabulary | None) -> Features:
    """What is read of a text, compared with nothing yet."""
    words = None if vocabulary is None else WordFeatures(vocabulary, [])
    if encoder is None:
        assert words is not None
        return words
    vectors = VectorFeatures(encoder, np.zeros((0, encoder.dimension), np.int8))
    return vectors if words is None else BothFeatures(vectors, encoder.dimension, words)


@dataclass(frozen=True, slots=True)
class Judged:
    """What scores are worth on texts that they were not fitted to."""

    right: Logistic
    inside: Logistic | None
    figures: dict[str, Any]

    @classmethod
    def cross_fitted(
        cls, rows: Floats, owners: Integers, others: Floats, count: int, share: float, seed: int, progress: Update
    ) -> Judged:
        """Every example under the scores of the other folds; `others` [n, features] have none of the labels."""
        random = np.random.default_rng(seed)
        folds, strangers = _folds(owners, count, random), np.arange(len(others)) % FOLDS
        known, right, unknown = [], [], []
        for fold in range(FOLDS):
            progress(fold + 1, FOLDS + 1, "judging scores")
            kept = folds != fold
            held = _Scored.by(
                rows[kept], owners[kept], np.concatenate([rows[~kept], others[strangers == fold]]), count
            )
            size = int((~kept).sum())
            known += held.signals[:size]
            right += (held.best[:size] == owners[~kept]).tolist()
            unknown += held.signals[size:]
        if not unknown:
            unknown = list(_left_out(rows, owners, count, random))
        figures = {"cross_validated_accuracy": float(np.mean(right))}
        if not unknown:
            return cls(_probability(known, right), None, figures)
        inside = _probability([*known, *unknown], [True] * len(known) + [False] * len(unknown))
        odds = math.log((1 - share) / share) - math.log(len(known) / len(unknown))
        return cls(_probability(known, right), _shifted(inside, odds), figures)


@dataclass(frozen=True, slots=True)
class _Scored:
    """The signals of texts and their best labels, under scores fitted to others."""

    signals: list[dict[str, float]]
    best: Integers

    @classmethod
    def by(cls, rows: Floats, owners: Integers, asked: Floats, count: int) -> _Scored:
        weights, intercepts = fit_softmax(rows, owners, count)
        scores, cosines = asked @ weights + intercepts, asked @ rows.T
        found = [signals(*each, owners) for each in zip(scores, cosines, strict=True)]
        return cls(found, scores.argmax(axis=1))


def _left_out(
    rows: Floats, owners: Integers, count: int, random: np.random.Generator
) -> Iterator[dict[str, float]]:
    """The signals of all examples, each under scores that know nothing of its label; none for few labels."""
    groups = random.permutation(count) % min(FOLDS, count)
    for group in range(groups.max() + 1):
        kept = groups[owners] != group
        left = np.unique(owners[kept])
        if len(left) >= 2:
            yield from _Scored.by(rows[kept], np.searchsorted(left, owners[kept]), rows[~kept], len(left)).signals


def _probability(measured: Sequence[dict[str, float]], true: Sequence[bool]) -> Logistic:
    try:
        return fit(measured, true, _SIGNS).model
    except ValueError:  # too few of one kind to learn from: the share, with one of each kind added
        share = (sum(true) + 1) / (len(true) + 2)
        return Logistic(float(np.log(share / (1 - share))), {})


def _shifted(model: Logistic, odds: float) -> Logistic:
    """The same for texts of which more or fewer are in scope than of those that it was fitted to."""
    if model.steps is None:
        return replace(model, intercept=model.intercept + odds)
    return replace(model, steps=replace(model.steps, values=tuple(each + odds for each in model.steps.values)))


def _folds(owners: Integers, count: int, random: np.random.Generator) -> Integers:
    """A fold for each example, those of a label spread evenly."""
    folds = np.empty(len(owners), np.int64)
    for label in range(count):
        mine = random.permutation(np.flatnonzero(owners == label))
        folds[mine] = (np.arange(len(mine)) + label) % FOLDS
    return folds


def _check(examples: Sequence[Labelled]) -> tuple[str, ...]:
    """The labels, sorted."""
    counts: dict[str, int] = {}
    for each in examples:
        counts[str(each.label)] = counts.get(str(each.label), 0) + 1
    few = sorted(label for label, count in counts.items() if count < 2)
    if len(counts) < 2 or few:
        what = f"the label {few[0]!r} has one example" if few else f"there are {len(counts)} labels"
        raise ConfigError(what, hint="give two labels or more, each with two examples or more; ten are good")
    if long := [each for each in examples if len(each.text) > LONGEST or len(str(each.label)) > LONGEST]:
        raise ConfigError(f"the example {long[0].text[:40]!r} has more than {LONGEST:,} characters", hint="cut it")
    if len(examples) > MOST_EXAMPLES:
        raise ConfigError(
            f"{len(examples):,} examples are more than {MOST_EXAMPLES:,}", hint="give fewer of each label"
        )
    return tuple(sorted(counts))


def _write(out: Path, head: HeadWeights, carry: Path | None) -> None:
    """All files in a folder beside `out`, which then gets its name."""
    with storage_errors(out, instead=OUT):
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            for path in [] if carry is None else encoder_files(carry):
                shutil.copyfile(path, part / path.name)
            write_head(part, head)
            part.chmod(0o755)  # a temporary folder is its owner's alone
            part.rename(out)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
