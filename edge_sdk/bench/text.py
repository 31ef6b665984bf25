"""Made-up text in which words are as frequent as in English, for measuring search without anyone's documents.

Knows nothing of what is measured, and means nothing.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from ..records import Chunk, ParsedDocument
from ..retrieval.fulltext import STOP_WORDS

WORDS = 120
"""Of a passage."""
_VOCABULARY = 40_000
_OFFSET = 10  # of Zipf's law as Mandelbrot had it: the word of rank r is as frequent as 1 / (r + offset)
_STOP_SHARE = 0.4  # of the words of a passage, and of a question
_REPEATED = 0.4  # of the other words of a passage: said again
_SYLLABLES = [consonant + vowel for consonant in "bdfghklmnprtvwz" for vowel in "aeiou"]


class MadeText:
    """Documents and questions, the same for the same seed.

    Four of ten words are stop words. Of the others the first, tenth, hundredth and thousandth most widespread stand
    in 41, 25, 4.5 and 0.5 % of the passages, of 120 words; in 6,922 passages of Wikipedia, of 78 words each, it is
    (by stem) 32, 12, 3.9 and 0.7 %. The passages that the terms of a question match, added up and as a share of all
    passages: 6 % in the median, 29 % for one question of ten; for 500 questions of SQuAD on those 7 and 34 %.

    >>> MadeText(seed=1).question(6)
    'bedope duze shall bonola delo very'
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._stop_words = np.array(sorted(STOP_WORDS))
        self._words = np.array([_word(rank) for rank in range(_VOCABULARY)])
        self._chances = np.cumsum(1 / (np.arange(_VOCABULARY) + _OFFSET))
        self._chances /= self._chances[-1]

    def document(self, name: str, passages: int) -> tuple[ParsedDocument, list[Chunk]]:
        """One of so many passages, all alike in length."""
        chunks: list[Chunk] = []
        start = 0
        for _ in range(passages):
            text = self._mixed(self._said(round(WORDS * (1 - _STOP_SHARE))), WORDS)
            chunks.append(Chunk(text, start, start + len(text), ""))
            start += len(text) + 2
        whole = "\n\n".join(chunk.text for chunk in chunks)
        digest = hashlib.sha256(whole.encode()).hexdigest()
        title = self._mixed(self._said(3), 3)
        return ParsedDocument(name, title, whole, (), digest, "text/plain"), chunks

    def question(self, words: int) -> str:
        """So many words, the telling ones as of one passage; like people, it prefers rare ones to common ones."""
        passage = self._said(round(WORDS * (1 - _STOP_SHARE)))
        pairs = self._random.choice(passage, (round(words * (1 - _STOP_SHARE)), 2))
        return self._mixed(np.max(pairs, axis=1), words)

    def _said(self, count: int) -> NDArray[np.int64]:
        """Ranks of words, some of them more than once: what a text has said, it says again."""
        fresh = np.searchsorted(self._chances, self._random.random(count - int(_REPEATED * count)))
        return np.concatenate([fresh, self._random.choice(fresh, int(_REPEATED * count))])

    def _mixed(self, ranks: NDArray[np.int64], length: int) -> str:
        """These words and stop words up to the length, in any order."""
        stop_words = self._random.choice(self._stop_words, length - len(ranks))
        return " ".join(self._random.permutation(np.concatenate([self._words[ranks], stop_words])).tolist())


def _word(rank: int) -> str:
    """A word of its own for each rank, of two syllables or three.

    >>> _word(0), _word(1), _word(5549), _word(5550)
    ('beba', 'bebe', 'zuzu', 'bebaba')
    """
    number, word = rank + len(_SYLLABLES), ""
    while number:
        number, last = divmod(number, len(_SYLLABLES))
        word = _SYLLABLES[last] + word
    return word
