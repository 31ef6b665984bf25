"""Reference metrics for short answers and for ranking, each on one item; averaging is the caller's.

Answers are compared as SQuAD does (Rajpurkar et al. 2016, arXiv 1606.05250): lower case, no punctuation, no
articles, single spaces; the best of the accepted answers counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
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


def recall_at(ranked: Sequence[str], relevant: str, depth: int) -> float:
    """1.0 when the one relevant item is among the first `depth`."""
    return float(relevant in ranked[:depth])


def _best(prediction: str, answers: Sequence[str], score: Callable[[str, str], float]) -> float:
    guess = normalise(prediction)
    return max((score(guess, normalise(answer)) for answer in answers), default=0.0)
