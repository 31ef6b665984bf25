"""Chooses the next token from logits: greedy, or top-k, top-p and min-p in the order of llama.cpp.

Pure numpy, so an engine without native samplers behaves like the one that has them. It knows nothing of
tokens' text, of engines, or of the confidence signals, which come from the raw logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from ..records import GenerateOptions

PENALTY_WINDOW = 64  # the most recent tokens that `repeat_penalty` looks at, as in llama.cpp


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The tokens that may be drawn, most probable first, and their probabilities, which sum to 1."""

    tokens: NDArray[np.int64]
    probabilities: NDArray[np.float64]


class Sampler:
    """Draws tokens as `options` say. Equal options and logits give equal draws, on any machine.

    >>> sampler = Sampler(GenerateOptions(temperature=0.0))
    >>> sampler.choose(np.array([0.1, 2.0, 1.0], np.float32), history=[])
    1

    `options` have passed `engine.check_options`.
    """

    def __init__(self, options: GenerateOptions) -> None:
        self._options = options
        self._random = np.random.Generator(np.random.PCG64(options.seed % 2**64))

    def choose(self, logits: NDArray[np.float32], history: Sequence[int]) -> int:
        """The next token after `history`. Ties go to the lower id, so greedy is one answer, not several.

        `logits` has shape [vocabulary] and is left as it is. Raises `EngineError` when no logit is finite.
        """
        if self._options.repeat_penalty != 1.0:
            logits = penalised(logits, history[-PENALTY_WINDOW:], self._options.repeat_penalty)
        best = int(np.argmax(logits))  # the first NaN, where there is one
        if not np.isfinite(logits[best]):
            raise EngineError(f"the model gave {logits[best]} as a logit", hint="its file may be damaged")
        if self._options.temperature == 0.0:
            return best
        drawn = candidates(logits, self._options)
        edges = np.cumsum(drawn.probabilities)
        at = int(np.searchsorted(edges, self._random.random() * edges[-1], side="right"))
        return int(drawn.tokens[min(at, drawn.tokens.size - 1)])


def penalised(logits: NDArray[np.float32], recent: Sequence[int], penalty: float) -> NDArray[np.float32]:
    """Logits with each token of `recent` made less likely, once however often it occurs (CTRL, arXiv:1909.05858).

    >>> penalised(np.array([2.0, -2.0, 1.0], np.float32), [0, 1, 1], 2.0).tolist()
    [1.0, -4.0, 1.0]
    """
    seen = np.unique(np.asarray(recent, np.int64))
    seen = seen[(seen >= 0) & (seen < logits.size)]
    result = logits.copy()
    result[seen] = np.where(result[seen] > 0, result[seen] / penalty, result[seen] * penalty)
    return result


def candidates(logits: NDArray[np.float32], options: GenerateOptions) -> Candidates:
    """What `Sampler` draws from: top-k, then top-p, then min-p on the plain probabilities, then temperature.

    `top_k <= 0`, `top_p >= 1` and `min_p <= 0` leave everything in; at least the best token always stays.

    >>> options = GenerateOptions(temperature=1.0, top_k=2, top_p=1.0, min_p=0.0)
    >>> kept = candidates(np.log(np.array([0.1, 0.6, 0.3], np.float32)), options)
    >>> kept.tokens.tolist(), kept.probabilities.round(3).tolist()
    ([1, 2], [0.667, 0.333])
    """
    tokens = _best(logits, options.top_k)
    kept = logits[tokens].astype(np.float64)
    probabilities = _softmax(kept)
    stays = np.cumsum(probabilities) - probabilities < options.top_p  # the mass of the better ones is short of p
    if options.top_p >= 1.0:
        stays[:] = True  # rounding must not cut the tail
    stays &= probabilities >= options.min_p * probabilities[0]
    stays[0] = True
    tokens, kept = tokens[stays], kept[stays]
    return Candidates(tokens, _softmax(kept, options.temperature))


def _best(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest logits, largest first, ties by id; all of them when `count <= 0`."""
    tokens = np.arange(logits.size)
    if 0 < count < logits.size:
        least = np.partition(logits, logits.size - count)[logits.size - count]
        above, level = np.flatnonzero(logits > least), np.flatnonzero(logits == least)
        tokens = np.concatenate([above, level[: count - above.size]])
    return tokens[np.lexsort((tokens, -logits[tokens]))]


def _softmax(values: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities of logits that are sorted, largest first."""
    with np.errstate(over="ignore"):  # a temperature near 0 sends all but the best to minus infinity: as it should
        weights = np.exp((values - values[0]) / max(temperature, 1e-300))
    return np.asarray(weights / weights.sum())
