"""The arithmetic of ranking: scores of two kinds made one, and feedback from the passages that lead.

Knows nothing of the store, of encoders or of where scores come from; words are those of `fulltext`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .fulltext import STOP_WORDS

Scores = NDArray[np.float64]

SHARPNESS = 4.0
"""How fast a passage's say in the feedback falls with its score: one at 0.75 of the best has 1/e of its say."""
_STEM = 5  # letters by which two words count as the same; in `route`, too
_ROUNDING = 1e-6  # of cosines: what differs by less is equal, not to be stretched
_WORD = re.compile(r"[^\W_]{2,}")


def fuse(bm25: Scores, cosines: Scores | None) -> Scores:
    """One score between 0 and 1 for each candidate [n], from its BM25 (0: not found) and its cosine (NaN: none).

    The mean of the two, each on a scale of its own list: BM25 from 0 to the best, cosines from the worst candidate
    to the best. Scores say by how much a passage is ahead, which ranks do not (Bruch, Gai and Ingber,
    arXiv:2210.11934). Without cosines BM25 alone.

    >>> fuse(np.array([8.0, 2.0, 0.0]), np.array([0.75, 0.25, 0.5])).tolist()
    [1.0, 0.125, 0.25]
    """
    by_text = bm25 / (bm25.max(initial=0.0) or 1.0)
    return by_text if cosines is None else (by_text + _stretched(cosines)) / 2


def feed_back(scores: Scores, spaces: Sequence[NDArray[np.float32]]) -> Scores:
    """The scores [n], each averaged with how much its candidate is like the leading ones (0 to 1).

    Relevance feedback after Rocchio (1971) with nobody to judge: in each of the `spaces` (matrices [n, d], rows of
    length 1) the direction from the centre of all candidates to that of the leading ones, each of which has a say
    by its score, is what these have and the others have not. A passage far ahead has nearly all the say, so a
    question with one right passage keeps that in front.

    >>> feed_back(np.array([1.0, 0.2, 0.1]), [np.eye(2, dtype=np.float32)[[0, 1, 0]]]).round(2).tolist()
    [1.0, 0.1, 0.55]
    """
    if not len(scores) or not spaces:
        return scores
    say = np.exp(SHARPNESS * (scores - scores.max()))
    say = say / say.sum() - 1 / len(say)
    # einsum and not BLAS: its threads spin, which costs far more than these products where a core is busy
    likeness = sum(np.einsum("nd,d->n", rows, np.einsum("n,nd->d", say, rows)) for rows in spaces)
    return (scores + _stretched(np.asarray(likeness, np.float64))) / 2


def word_vectors(texts: Sequence[str]) -> NDArray[np.float32]:
    """The words of each text as a vector of length 1 [n, w]: (1 + log tf) idf, the idf being that among `texts`.

    A word is its first five letters, without stop words; one that a single text has says nothing about another and
    is left out. A text without any word left has zeros.

    >>> word_vectors(["invented tea", "the inventors", "tea", "milk"]).round(1)
    array([[0.7, 0.7],
           [1. , 0. ],
           [0. , 1. ],
           [0. , 0. ]], dtype=float32)
    """
    vocabulary: dict[str, int] = {}
    words = [
        [
            vocabulary.setdefault(word[:_STEM], len(vocabulary))
            for word in _WORD.findall(text.casefold())
            if word not in STOP_WORDS
        ]
        for text in texts
    ]
    shape = len(texts), len(vocabulary)
    cells = [row * shape[1] + column for row, columns in enumerate(words) for column in columns]
    counts = np.bincount(np.array(cells, np.int64), minlength=shape[0] * shape[1]).reshape(shape)
    having = (counts > 0).sum(axis=0)
    counts = counts[:, having > 1]
    idf = np.log1p(len(texts) / having[having > 1]).astype(np.float32)
    weights = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), np.float32(0)) * idf
    lengths = np.linalg.norm(weights, axis=1, keepdims=True)
    return np.asarray(weights / np.where(lengths > 0, lengths, 1), np.float32)


def best_first(scores: Scores, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions by score, equal scores in the order of the ids."""
    return np.lexsort((ids, -scores))


def _stretched(values: Scores) -> Scores:
    """From 0 for the least to 1 for the greatest; NaN counts as the least, and all are 1 where all are equal."""
    if np.isnan(values).all():
        return np.zeros_like(values)
    least, greatest = np.nanmin(values), np.nanmax(values)
    if greatest - least < _ROUNDING:
        return np.ones_like(values)
    return (np.nan_to_num(values, nan=least) - least) / (greatest - least)
