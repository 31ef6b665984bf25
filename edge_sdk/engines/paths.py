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


class Path(NamedTuple):
    """A text's tokens, its number among those given, and what speaks for it beforehand, in nats."""

    number: int
    tokens: tuple[int, ...]
    weight: float


class Paths:
    """The texts that an answer may still become; each has a weight, what speaks for it beforehand, in nats.

    Where paths part, a branch is worth its token's log-probability and the weights of all paths behind it together:
    a product of experts, one of which knows the texts as wholes.

    >>> paths = Paths([((7, 8), -0.1), ((7, 9), -2.0), ((5, 9), -2.0)])
    >>> taken = []
    >>> while paths.open:
    ...     taken.append(paths.take(lambda token: -float(token)).token)
    >>> taken, [round(share, 2) for share in paths.shares()]
    ([7, 8], [0.48, 0.03, 0.49])
    """

    def __init__(self, paths: Sequence[tuple[Sequence[int], float]]) -> None:
        """No path may be what another begins with: end each with a token that is in no text."""
        self._paths = [Path(number, tuple(tokens), weight) for number, (tokens, weight) in enumerate(paths)]
        self._at, self._shares, self._ahead = 0, [0.0] * len(self._paths), 0.0

    @property
    def open(self) -> bool:
        """Whether tokens are still to come."""
        return any(len(path.tokens) > self._at for path in self._paths)

    def shares(self) -> tuple[float, ...]:
        """The probability of each path, as given, by the branches that were compared.

        Of a branch that was not taken the weights alone tell which of its paths it would have become.
        """
        found = list(self._shares)
        _divide(self._paths, self._ahead, found)
        return tuple(found)

    def take(self, logprob: Callable[[int], float]) -> Step:
        """The next token, by the model's log-probability of each that may follow."""
        branches: dict[int, list[Path]] = {}
        for path in self._paths:
            branches.setdefault(path.tokens[self._at], []).append(path)
        worth = {token: max(logprob(token), _LEAST) + _together(paths) for token, paths in branches.items()}
        taken, total = max(worth, key=lambda token: worth[token]), log_sum(list(worth.values()))
        shares = [each - total for each in worth.values()]
        for (token, paths), share in zip(branches.items(), shares, strict=True):
            if token != taken:
                _divide(paths, self._ahead + share, self._shares)
        self._paths, self._at, self._ahead = branches[taken], self._at + 1, self._ahead + worth[taken] - total
        second = max((each for token, each in worth.items() if token != taken), default=-math.inf)
        entropy = max(0.0, -sum(math.exp(share) * share for share in shares))
        return Step(taken, entropy, min(worth[taken] - second, MOST))


def _together(paths: Sequence[Path]) -> float:
    return log_sum([path.weight for path in paths])


def _divide(paths: Sequence[Path], among: float, shares: list[float]) -> None:
    """Give the paths their shares of a probability, whose logarithm is `among`."""
    total = _together(paths)
    for path in paths:
        shares[path.number] = math.exp(among + path.weight - total)


def log_sum(logarithms: Sequence[float]) -> float:
    """The logarithm of the sum of what has these logarithms, of which one at least is finite.

    >>> log_sum([-math.inf, 0.5])
    0.5
    """
    most = max(logarithms)
    return most + math.log(sum(math.exp(each - most) for each in logarithms))
