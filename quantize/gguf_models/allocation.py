"""Which type each tensor gets: the least divergence for a number of bytes.

To every tensor and type belongs a cost in KL divergence: how much the tensor's outputs change (`errors`) times how
much the model's answers move with them (`sensitivity`, measured for a group of tensors at a time). Divergence grows
with the square of a small change, so costs add up. Knows numbers and names; measures nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_sdk.errors import ConfigError

FORMAT = "edge-quantization-plan-1"


@dataclass(frozen=True, slots=True)
class Choice:
    """A type that a tensor could have: its bytes, and the divergence that it is expected to add."""

    type: str
    bytes: int
    divergence: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Tensor names to types. Those `rounded` are rounded for their outputs, and `tied` drops the output matrix, for
    which the embeddings stand in."""

    types: Mapping[str, str]
    rounded: Sequence[str] = ()
    tied: bool = False
    expected_divergence: float | None = None
    expected_bytes: int | None = None
    source: str = ""  # sha256 of the file that it was made for

    def save(self, path: Path) -> None:
        """Write it as JSON, to be read, edited and given back."""
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", "utf-8")

    @staticmethod
    def load(path: Path) -> Plan:
        """Raises `ConfigError` for what is no plan."""
        try:
            found = json.loads(path.read_text("utf-8"))
            if found.pop("format") != FORMAT:
                raise ValueError("it has another format")
            plan = Plan(**{**found, "rounded": tuple(found.get("rounded", ()))})
            if not all(isinstance(part, str) for pair in plan.types.items() for part in pair):
                raise ValueError("`types` must be names of tensors and of types")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path} is no quantization plan: {error}", hint="make one with --save-plan"
            ) from error
        return plan


def allocate(choices: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice]:
    """For each tensor one choice, with all bytes within `budget` and little divergence in all.

    The choices on a tensor's lower convex hull are the only ones that some exchange rate between bytes and
    divergence prefers (Shoham and Gersho, 1988). Bytes go where they buy most until the next step no longer fits,
    then to every smaller step that still does. Raises `ValueError` for a budget below `smallest`.

    >>> small, large = Choice("Q4_0", 10, 0.3), Choice("Q8_0", 20, 0.1)
    >>> chosen = allocate({"a": [small, large], "b": [small, Choice("Q8_0", 20, 0.29)]}, 30)
    >>> {name: choice.type for name, choice in chosen.items()}
    {'a': 'Q8_0', 'b': 'Q4_0'}
    """
    hulls = {name: _hull(options) for name, options in choices.items()}
    chosen = dict.fromkeys(hulls, 0)
    spent = sum(hull[0].bytes for hull in hulls.values())
    if spent > budget:
        raise ValueError(f"{budget} bytes are less than the {spent} of the smallest choices")
    steps = sorted(
        ((_rate(hull[at], hull[at + 1]), name, at) for name, hull in hulls.items() for at in range(len(hull) - 1)),
        key=lambda step: -step[0],
    )
    for _, name, at in steps:  # those of one tensor come in order, for a hull's rates fall
        extra = hulls[name][at + 1].bytes - hulls[name][at].bytes
        if chosen[name] == at and spent + extra <= budget:
            chosen[name], spent = at + 1, spent + extra
    return {name: hulls[name][at] for name, at in chosen.items()}


def smallest(choices: Mapping[str, Sequence[Choice]]) -> int:
    """Bytes below which no allocation goes."""
    return sum(min(choice.bytes for choice in options) for options in choices.values())


def sensitivities(
    groups: Mapping[str, Iterable[str]], errors: Mapping[str, float], added: Mapping[str, float]
) -> dict[str, float]:
    """Each tensor's divergence for an error of one.

    `errors` are those of the tensors in the probe that raised the divergence by `added` for each group of them.
    """
    found: dict[str, float] = {}
    for group, names in groups.items():
        members = list(names)
        total = sum(errors[name] for name in members)
        found |= {name: max(added[group], 0.0) / total if total else 0.0 for name in members}
    return found


def _rate(low: Choice, high: Choice) -> float:
    return (low.divergence - high.divergence) / (high.bytes - low.bytes)


def _hull(options: Sequence[Choice]) -> list[Choice]:
    """From the smallest on, each step buying less for a byte than the one before, all buying something."""
    hull: list[Choice] = []
    for choice in sorted(options, key=lambda each: (each.bytes, each.divergence)):
        if hull and choice.divergence >= hull[-1].divergence:
            continue
        while hull and choice.bytes == hull[-1].bytes:
            hull.pop()
        while len(hull) > 1 and _rate(hull[-2], hull[-1]) <= _rate(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull
