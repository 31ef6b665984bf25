"""Of retrieved passages the sentences that bear on the question, to a token budget: the prompt gets shorter.

The time to the first token is proportional to what a model is sent. Sentences are ranked by the question's words in
them, rare ones more, by their vectors, and by what a reader found there. Nothing is rewritten; knows nothing of
prompts or models.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from .records import Hit
from .retrieval.fulltext import STOP_WORDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .readers.extract import Span

    Encode = Callable[[Sequence[str]], NDArray[np.float32]]

RULE = "sentences by words and vectors, 1"
"""Names how they are chosen; to be changed with it, as calibrations depend on it."""
COMPARED = 12
"""Sentences whose vectors are computed: some 2 ms each on one thread."""
WORDS, PASSAGE, READER = 0.5, 0.5, 0.1
"""What all of the question's words in a sentence, and its passage's score, count for, where a cosine of 1 counts
for 1; and e times the probability that a reader's spans in it have, from `FAINT` on.

Share of 500 questions of SQuAD whose answer is in the text chosen (8 passages retrieved, which have it for .978):

    tokens                                  30    60    80   100   120   150   200   250   400   480
    whole passages, the best ones                           .862  .862  .862  .864  .880  .942  .956
    sentences by words                                            .878  .912  .922  .948
    by words and vectors                  .796  .828  .874  .900  .914  .926  .946  .954
    and the reader of assistant.edge 1.3  .860  .892  .912  .926  .932  .944  .956
    by late interaction (token states)                            .916  .932  .950  .952

Weights near these differ by less than .01. Vectors of all 37 sentences that there are in the mean, instead of the
`COMPARED` best by words and passage, gain nothing. A part of its neighbours' scores for each sentence, for context,
cost up to .03 below 200 tokens.
"""
FAINT = 0.01
"""Probability up to which what a reader found in a sentence counts for little."""
_STEM = 5  # letters by which two words count as the same, as in `route`
_LONGEST = 300  # characters; a longer "sentence" is a list, a table or code, and its lines stand for themselves
_WORD = re.compile(r"[^\W_]+")
_END = re.compile(r"[.!?…][\"')\]»”’]*(?:\[\d+\])*\s+(?![a-z\s])|[。！？]+\s*|\n\s*\n\s*")
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|No|Nos|vs|cf|al|Fig|Eq|Gen|Col|Lt|Sgt|Capt|Rev|Hon|Jr|Sr|ca|approx|e\.g|i\.e"
    r"|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)|(?:\b[A-Z]\.)*\b[A-Z])\.$"
)
_LINE = re.compile(r"[^\n]+")


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Sentences of a passage: `hit.passage.text[start:end]` for each of the spans, in order."""

    hit: Hit
    spans: tuple[tuple[int, int], ...]

    @property
    def text(self) -> str:
        """The sentences as they stand, and between those that do not follow each other a blank."""
        text = self.hit.passage.text
        parts = [text[start:end] for start, end in self.spans]
        between = [text[end:start] for (_, end), (start, _) in pairwise(self.spans)]
        gaps = ["\n" if "\n" in gap else " " for gap in between]
        return "".join(word for pair in zip(parts, [*gaps, ""], strict=True) for word in pair)


def choose(
    question: str,
    hits: Sequence[Hit],
    tokens: int,
    *,
    count: Callable[[str], int],
    encode: Encode | None = None,
    likely: Sequence[Span] = (),
) -> list[Excerpt]:
    """The sentences of `hits` that bear most on the question, as many as fit, in the order of the hits.

    A sentence counts for its words, its vector, its passage's score, and the probability of the `likely` spans that
    a reader found in it; one that does not fit is passed over for others, and the very best one is in, however
    long. `count` gives the tokens of a text; `encode` the vectors of texts, each of length 1, without which words
    and passages decide.

    >>> from edge_sdk.records import Passage
    >>> text = "It rained. The tower was built by Eiffel. It is in Paris."
    >>> hit = Hit(Passage(1, "d", "", "", text, 0, len(text)), 1.0)
    >>> choose("Who built the tower?", [hit], 7, count=lambda text: len(text.split()))[0].text
    'The tower was built by Eiffel.'
    """
    places = [(number, *span) for number, hit in enumerate(hits) for span in sentences(hit.passage.text)]
    texts = [hits[number].passage.text[start:end] for number, start, end in places]
    if not texts:
        return []
    shares = _by_words(question, texts)
    held = _held(places, likely)
    scores = [
        WORDS * share + PASSAGE * hits[number].score + READER * math.log1p(found / FAINT)
        for share, (number, _, _), found in zip(shares, places, held, strict=True)
    ]
    ranked = sorted(range(len(texts)), key=lambda at: -scores[at])
    if encode is not None:
        first = ranked[:COMPARED]
        vectors = encode([question, *(texts[at] for at in first)])
        cosines = dict(zip(first, (vectors[1:] @ vectors[0]).tolist(), strict=True))
        ranked = [*sorted(first, key=lambda at: -scores[at] - cosines[at]), *ranked[COMPARED:]]
    left, taken = tokens, set[int]()
    for at in ranked:
        size = count(texts[at])
        if size <= left or not taken:
            taken.add(at)
            left -= size
    return [
        Excerpt(hit, spans)
        for number, hit in enumerate(hits)
        if (
            spans := tuple((start, end) for at, (n, start, end) in enumerate(places) if n == number and at in taken)
        )
    ]


def _held(places: Sequence[tuple[int, int, int]], likely: Sequence[Span]) -> list[float]:
    """The probability of the spans that begin in each place (passage, start, end); places are in order."""
    held = [0.0] * len(places)
    for span in likely:
        at = bisect_right(places, (span.passage, span.start), key=lambda place: place[:2]) - 1
        if at >= 0 and places[at][0] == span.passage and span.start < places[at][2]:
            held[at] += math.exp(min(span.score, 0.0))
    return held


def _by_words(question: str, texts: Sequence[str]) -> list[float]:
    """Of the question's words the share that each text has, each word by how few of the texts have it."""
    having = [_stems(text) for text in texts]
    spread = Counter(stem for stems in having for stem in stems)
    weights = {stem: math.log1p(len(texts) / spread[stem]) for stem in _stems(question) if stem in spread}
    total = sum(weights.values()) or 1.0
    return [sum(weight for stem, weight in weights.items() if stem in stems) / total for stems in having]


def _stems(text: str) -> frozenset[str]:
    return frozenset(word[:_STEM] for word in _WORD.findall(text.casefold()) if word not in STOP_WORDS)


def sentences(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence, without blanks around it; lines, where there are no sentences.

    >>> text = 'J. Smith of the U.S. Army came, i.e. he won. "Yes!" Then it rained.'
    >>> [text[start:end] for start, end in sentences(text)]
    ['J. Smith of the U.S. Army came, i.e. he won.', '"Yes!"', 'Then it rained.']
    """
    found: list[tuple[int, int]] = []
    start = 0
    for border in _END.finditer(text):
        if text[border.start()] == "." and _ABBREVIATION.search(text, start, border.start() + 1):
            continue
        found += _stripped(text, start, border.end())
        start = border.end()
    return found + _stripped(text, start, len(text))


def _stripped(text: str, start: int, end: int) -> list[tuple[int, int]]:
    part = text[start:end]
    first, last = start + len(part) - len(part.lstrip()), start + len(part.rstrip())
    if last - first <= _LONGEST:
        return [(first, last)] if first < last else []
    return [
        (line.start() + len(line[0]) - len(line[0].lstrip()), line.start() + len(line[0].rstrip()))
        for line in _LINE.finditer(text, first, last)
        if line[0].strip()
    ]
