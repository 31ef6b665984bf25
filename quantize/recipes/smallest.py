"""The smallest model that passes: the user says what an answer must be worth, the figures say who reaches it.

Knows nothing of where figures come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .evaluation import LOWER_IS_BETTER


@dataclass(frozen=True)
class Candidate:
    """A model, its bytes and the means of its figures, with the ends of their intervals that speak against it."""

    name: str
    bytes: int
    means: Mapping[str, float]
    worst: Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """Whether a model reaches the floor; `surely` where the worse ends of the intervals do, too.

    `short` says for each figure that is not reached what it is and what it should be.
    """

    name: str
    bytes: int
    passes: bool
    surely: bool
    short: tuple[str, ...]


def judge(candidate: Candidate, floor: Mapping[str, float]) -> Verdict:
    """Hold a model against a floor; what was not measured is not reached.

    For `evaluation.LOWER_IS_BETTER` the floor is the most that it may be.

    >>> judge(Candidate("a", 9, {"token_f1": 0.8, "milliseconds": 50.0}, {"token_f1": 0.7}), {"token_f1": 0.75})
    Verdict(name='a', bytes=9, passes=True, surely=False, short=())
    >>> judge(Candidate("a", 9, {"milliseconds": 50.0}, {}), {"milliseconds": 40.0}).short
    ('milliseconds is 50, the floor 40',)
    """
    short = []
    for name, bound in floor.items():
        value = candidate.means.get(name)
        if value is None:
            short.append(f"{name} was not measured")
        elif not _reaches(name, value, bound):
            short.append(f"{name} is {value:.3g}, the floor {bound:.3g}")
    surely = not short and all(
        _reaches(name, candidate.worst.get(name, candidate.means[name]), bound) for name, bound in floor.items()
    )
    return Verdict(candidate.name, candidate.bytes, not short, surely, tuple(short))


def smallest(verdicts: Mapping[str, Verdict] | list[Verdict]) -> Verdict | None:
    """The one with the fewest bytes that passes; None where none does."""
    every = verdicts.values() if isinstance(verdicts, Mapping) else verdicts
    passing = [verdict for verdict in every if verdict.passes]
    return min(passing, key=lambda verdict: (verdict.bytes, verdict.name), default=None)


def _reaches(name: str, value: float, bound: float) -> bool:
    return value <= bound if name in LOWER_IS_BETTER else value >= bound
