"""Scores of windows to what a reader found: spans in characters of the passages, compared over all of them.

Knows nothing of how scores are computed or of files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..model_files.tokenizer import Pieces
from .description import Answerability
from .overlap import expected, words_of
from .spans import Floats, Scored, best_spans, likely_spans, shared_log_total
from .windows import Window

_LIKELY = 16  # spans by whose words an answer is judged


@dataclass(frozen=True, slots=True)
class Span:
    """`text` is passage number `passage`, `[start:end]` in characters.

    `score` is the logarithm of its probability among all spans of all passages and "no answer", with the weight
    of its passage.
    """

    passage: int
    start: int
    end: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Extract:
    """What a reader made of a question; `best` is None only where no passage has a word.

    `best` is the likeliest span or one that shares words with it and is expected to say more of what is right;
    `others` say something else than either. `margin`: the likeliest less the best that says something else, in
    score. `support`: the likeliest less "no answer", as log-odds. `passages`: for each the log-odds, by the model's
    own head, that it holds an answer; -inf without words. `probability`: that the passages hold an answer, None
    without a calibration. `held`: the probability of the likely spans all of whose words `best` has. `likely`: the
    likeliest spans, best first, which may overlap.
    """

    best: Span | None
    others: tuple[Span, ...]
    margin: float
    support: float
    passages: tuple[float, ...]
    probability: float | None
    held: float = 0.0
    likely: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Scores:
    """The model's scores [tokens, 3] of every window: starts here, ends here, and at the first token: holds one."""

    texts: Sequence[str]
    pieces: Sequence[Pieces]
    windows: Sequence[Window]
    scores: Sequence[Floats]

    def extract(
        self, longest: int, passage_weight: float = 0.0, answerability: Answerability | None = None
    ) -> Extract:
        """The spans of at most `longest` tokens; see `Description` for the other two."""
        edges = [self._edges(window, each) for window, each in zip(self.windows, self.scores, strict=True)]
        nothing = [shared_log_total([each[:1, side] for each in self.scores]) for side in (0, 1)]
        totals = [shared_log_total([*(each[side] for each in edges), np.array([nothing[side]])]) for side in (0, 1)]
        own = self._passages()
        found, likely = list[Span](), dict[tuple[int, int, int], Span]()
        for window, (starts, ends) in zip(self.windows, edges, strict=True):
            less = sum(totals) - passage_weight * _log_probability(own[window.passage])
            found += [self._span(window, span, less) for span in best_spans(starts, ends, longest)]
            for each in likely_spans(starts, ends, longest, _LIKELY):
                span = self._span(window, each, less)
                place = span.passage, span.start, span.end
                if place not in likely or likely[place].score < span.score:  # windows overlap
                    likely[place] = span
        ranked = tuple(_different(sorted(found, key=lambda span: -span.score)))
        if not ranked:
            return Extract(None, (), 0.0, float("-inf"), own, None)
        likeliest, *others = ranked
        margin = likeliest.score - others[0].score if others else float("inf")
        support = likeliest.score - (sum(nothing) - sum(totals))
        probability = None if answerability is None else answerability.probability(support, max(own))
        around = sorted(likely.values(), key=lambda span: -span.score)[:_LIKELY]
        words = [words_of(span.text) for span in around]
        best = _expected_best(likeliest, around, words)
        different = tuple(span for span in others if _said(span) != _said(best))
        return Extract(
            best, different, margin, support, own, probability, _held(best, around, words), tuple(around)
        )

    def _span(self, window: Window, scored: Scored, less: float) -> Span:
        text, pieces = self.texts[window.passage], self.pieces[window.passage]
        start, end = pieces.starts[window.offset + scored.start], pieces.ends[window.offset + scored.end]
        return Span(window.passage, start, end, text[start:end], scored.score - less)

    def _edges(self, window: Window, scores: Floats) -> tuple[Floats, Floats]:
        """Scores of the passage's tokens as starts and as ends; -inf within words, which are never cut."""
        pieces = self.pieces[window.passage]
        text = slice(window.offset, window.offset + window.last - window.first)
        inside = scores[window.first : window.last]
        starts = np.where(pieces.leads[text], inside[:, 0], np.float32(-np.inf))
        ends = np.where(pieces.trails[text], inside[:, 1], np.float32(-np.inf))
        return starts, ends

    def _passages(self) -> tuple[float, ...]:
        """The best window of each passage, as the model's own head has it."""
        own = [float("-inf")] * len(self.texts)
        for window, each in zip(self.windows, self.scores, strict=True):
            own[window.passage] = max(own[window.passage], float(each[0, 2]))
        return tuple(own)


def _expected_best(likeliest: Span, around: Sequence[Span], words: Sequence[Counter[str]]) -> Span:
    """Of the spans that share text with the likeliest, the one whose words have the highest expected F1.

    Over all spans `around`, with their `words`, as they are likely; see `overlap`.
    """
    weights = np.exp([span.score - likeliest.score for span in around]).tolist()
    best, most = likeliest, 0.0
    for span, own in zip(around, words, strict=True):
        if span.passage == likeliest.passage and span.start < likeliest.end and likeliest.start < span.end:
            agreed = expected(own, words, weights)
            if agreed > most + 1e-9:  # of equals the likelier
                best, most = span, agreed
    return best


def _held(best: Span, around: Sequence[Span], words: Sequence[Counter[str]]) -> float:
    own = words_of(best.text)
    shares = (math.exp(min(span.score, 0.0)) for span, each in zip(around, words, strict=True) if each <= own)
    return min(1.0, sum(shares))


def _different(ranked: Sequence[Span]) -> Iterator[Span]:
    """The spans whose words no better one has, in the same order."""
    seen: set[str] = set()
    for span in ranked:
        if _said(span) not in seen:
            seen.add(_said(span))
            yield span


def _said(span: Span) -> str:
    return " ".join(span.text.casefold().split())


def _log_probability(odds: float) -> float:
    """The logarithm of the logistic function."""
    return -float(np.logaddexp(0.0, -odds))
