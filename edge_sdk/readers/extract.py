"""Scores of windows to what a reader found: spans in characters of the passages, compared over all of them.

Knows nothing of how scores are computed or of files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..model_files.tokenizer import Pieces
from .description import Answerability
from .spans import Floats, best_spans, shared_log_total
from .windows import Window


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

    `margin`: `best` less the best span that says something else, in score. `support`: `best` less "no answer", as
    log-odds. `passages`: for each the log-odds, by the model's own head, that it holds an answer; -inf without
    words. `probability`: that the passages hold an answer, None without a calibration.
    """

    best: Span | None
    others: tuple[Span, ...]
    margin: float
    support: float
    passages: tuple[float, ...]
    probability: float | None


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
        found: list[Span] = []
        for window, (starts, ends) in zip(self.windows, edges, strict=True):
            text, piece = self.texts[window.passage], self.pieces[window.passage]
            weight = passage_weight * _log_probability(own[window.passage])
            for span in best_spans(starts, ends, longest):
                start, end = piece.starts[window.offset + span.start], piece.ends[window.offset + span.end]
                score = span.score - sum(totals) + weight
                found.append(Span(window.passage, start, end, text[start:end], score))
        ranked = tuple(_different(sorted(found, key=lambda span: -span.score)))
        if not ranked:
            return Extract(None, (), 0.0, float("-inf"), own, None)
        best, *others = ranked
        margin = best.score - others[0].score if others else float("inf")
        support = best.score - (sum(nothing) - sum(totals))
        probability = None if answerability is None else answerability.probability(support, max(own))
        return Extract(best, tuple(others), margin, support, own, probability)

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


def _different(ranked: Sequence[Span]) -> Iterator[Span]:
    """The spans whose words no better one has, in the same order."""
    seen: set[str] = set()
    for span in ranked:
        words = " ".join(span.text.casefold().split())
        if words not in seen:
            seen.add(words)
            yield span


def _log_probability(odds: float) -> float:
    """The logarithm of the logistic function."""
    return -float(np.logaddexp(0.0, -odds))
