"""Given texts as paths of tokens, of which an answer takes one, branch by branch.

Knows nothing of models: what they find likely comes in as a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

MOST = 50.0
"""Nats of a lead, where it is counted as certain."""
_LEAST = -1e4  # a token that cannot be is still compared with others of its kind


class Step(NamedTuple):
    """A token, with the entropy of the branches where it was taken and its lead over the second best, in nats.

    Where there is one branch the entropy is 0 and the lead `MOST`, which it never exceeds.
    """

    token: int
    entropy: float
    margin: float


class Paths:
    """The texts that an answer may still become; each has a weight, what speaks for it beforehand, in nats.

    Where paths part, a branch is worth its token's log-probability and the weights of all paths behind it together:
    a product of experts, one of which knows the texts as wholes.

    >>> paths = Paths([((7, 8), -0.1), ((7, 9), -2.0), ((5, 9), -2.0)])
    >>> taken = []
    >>> while paths.open:
    ...     taken.append(paths.take(lambda token: -float(token)).token)
    >>> taken
    [7, 8]
    """

    def __init__(self, paths: Sequence[tuple[Sequence[int], float]]) -> None:
        """No path may be what another begins with: end each with a token that is in no text."""
        self._paths, self._at = [(tuple(tokens), weight) for tokens, weight in paths], 0

    @property
    def open(self) -> bool:
        """Whether tokens are still to come."""
        return any(len(tokens) > self._at for tokens, _ in self._paths)

    def take(self, logprob: Callable[[int], float]) -> Step:
        """The next token, by the model's log-probability of each that may follow."""
        branches: dict[int, list[float]] = {}
        for tokens, weight in self._paths:
            branches.setdefault(tokens[self._at], []).append(weight)
        worth = {token: max(logprob(token), _LEAST) + _together(weights) for token, weights in branches.items()}
        taken, total = max(worth, key=lambda token: worth[token]), _together(list(worth.values()))
        self._paths = [path for path in self._paths if path[0][self._at] == taken]
        self._at += 1
        shares = [each - total for each in worth.values()]
        second = max((each for token, each in worth.items() if token != taken), default=-math.inf)
        entropy = max(0.0, -sum(math.exp(share) * share for share in shares))
        return Step(taken, entropy, min(worth[taken] - second, MOST))


def _together(weights: Sequence[float]) -> float:
    most = max(weights)
    return most + math.log(sum(math.exp(weight - most) for weight in weights))
