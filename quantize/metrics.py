"""Reference metrics for short answers and for ranking, each on one item; averaging is the caller's.

Answers are compared as SQuAD does (Rajpurkar et al. 2016, arXiv 1606.05250): lower case, no punctuation, no
articles, single spaces; the best of the accepted answers counts. Rankings are compared as trec_eval does.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import log2

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_RESAMPLES = 500  # of the bootstrap at a time
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case without punctuation and articles.

    >>> normalise("The  Rhine, in Basel!")
    'rhine in basel'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 when the normalised prediction is one of the normalised answers."""
    return _best(prediction, answers, lambda guess, gold: float(guess == gold))


def contains(prediction: str, answers: Sequence[str]) -> float:
    """1.0 when the prediction holds one of the answers as whole words.

    >>> contains("It was 1066, they say.", ["1066"]), contains("10662", ["1066"])
    (1.0, 0.0)
    """
    return _best(prediction, answers, lambda guess, gold: float(bool(gold) and f" {gold} " in f" {guess} "))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of word precision and recall, repeated words counted.

    >>> round(token_f1("the river Rhine", ["Rhine"]), 3)
    0.667
    """

    def overlap(guess: str, gold: str) -> float:
        guessed, wanted = guess.split(), gold.split()
        if not guessed or not wanted:
            return float(guessed == wanted)
        same = sum((Counter(guessed) & Counter(wanted)).values())
        return 2 * same / (len(guessed) + len(wanted))

    return _best(prediction, answers, overlap)


def recall_at(ranked: Sequence[str], relevant: Collection[str], depth: int) -> float:
    """Share of the relevant items that are among the first `depth`; 0 where nothing is relevant.

    >>> recall_at(["a", "b", "c"], {"b", "c", "d", "e"}, 2)
    0.25
    """
    return len(set(ranked[:depth]).intersection(relevant)) / len(relevant) if relevant else 0.0


def ndcg_at(ranked: Sequence[str], grades: Mapping[str, float], depth: int) -> float:
    """Normalised discounted cumulative gain (Järvelin and Kekäläinen, ACM TOIS 2002), the gain being the grade.

    `grades` holds what is relevant; the ideal ranking knows all of it. 0 where nothing is relevant.

    >>> round(ndcg_at(["a", "b", "c"], {"b": 1, "z": 1}, 10), 3)
    0.387
    """

    def gain(values: Sequence[float]) -> float:
        return sum(value / log2(place) for place, value in enumerate(values[:depth], 2))

    ideal = gain(sorted(grades.values(), reverse=True))
    return gain([grades.get(item, 0.0) for item in ranked]) / ideal if ideal else 0.0


def reciprocal_rank(ranked: Sequence[str], relevant: Collection[str]) -> float:
    """One over the place of the first relevant item; 0 when none was found."""
    return next((1 / place for place, item in enumerate(ranked, 1) if item in relevant), 0.0)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the 95 % interval that the bootstrap gives it."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], *, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean and its percentile bootstrap interval (Efron and Tibshirani 1993); equal seeds, equal intervals.

    One value an item that was drawn independently: a query, a question. To compare two systems give the
    differences item by item. Raises `ValueError` when there is no value.

    >>> bootstrap([0.5, 0.5, 0.5])
    Interval(mean=0.5, low=0.5, high=0.5)
    """
    if not len(values):
        raise ValueError("no value to resample")
    items = np.asarray(values, np.float64)
    random = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, _RESAMPLES):  # in blocks: all at once would take 80 kB an item
        drawn = random.integers(len(items), size=(min(_RESAMPLES, resamples - start), len(items)), dtype=np.int32)
        means.append(items[drawn].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float(items.mean()), float(low), float(high))


def _best(prediction: str, answers: Sequence[str], score: Callable[[str, str], float]) -> float:
    guess = normalise(prediction)
    return max((score(guess, normalise(answer)) for answer in answers), default=0.0)
