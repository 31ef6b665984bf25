"""`reader.json`: what a reader's folder says of its model beside the weights, read without trust.

Limits of texts, how scores of passages and spans are weighed, and how they become a probability that the passages
hold an answer. Knows nothing of how it was trained; `trained` is carried along.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ModelDamagedError, ModelNotFoundError
from .windows import Limits

FILE = "reader.json"
FORMAT = 1
_MOST_BYTES = 1 << 20
_MOST_TOKENS = 4096  # of a window; a table of positions has as many rows


@dataclass(frozen=True, slots=True)
class Answerability:
    """A logistic model: what turns the evidence of an `Extract` into the probability that there is an answer.

    >>> Answerability(0.0, 1.0, 0.0).probability(span=0.0, passage=5.0)
    0.5
    """

    bias: float
    span: float
    passage: float

    def probability(self, span: float, passage: float) -> float:
        """`span`: best span less no answer, `passage`: the best passage's own score; both in log-odds."""
        odds = self.bias + self.span * span + self.passage * passage
        return 0.5 * (1 + math.tanh(odds / 2))  # the logistic function without overflow


@dataclass(frozen=True, slots=True)
class Description:
    """`passage_weight`: how much a passage's own score, the log-probability that it answers, adds to its spans."""

    limits: Limits = field(default_factory=Limits)
    passage_weight: float = 0.0
    answerability: Answerability | None = None
    trained: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write `reader.json`; equal descriptions give equal bytes."""
        content = {"format": FORMAT, **asdict(self)}
        (folder / FILE).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Description:
        """Raises `ModelNotFoundError`, and `ModelDamagedError` naming what is wrong."""
        path = folder / FILE
        try:
            content = path.read_bytes()[: _MOST_BYTES + 1]
        except FileNotFoundError as error:
            raise ModelNotFoundError(f"there is no file {path}", hint="give the folder of a reader") from error
        except OSError as error:
            raise ModelNotFoundError(f"{path} cannot be read: {error.strerror}") from error
        try:
            if len(content) > _MOST_BYTES:
                raise ValueError("it is longer than any description")
            return cls._from(json.loads(content))
        except (ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ModelDamagedError(f"{path} is no reader's description: {what[:200]}") from error

    @classmethod
    def _from(cls, content: Any) -> Description:
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, this version reads {FORMAT}")
        numbers = {name: _whole(content["limits"], name) for name in ("window", "question", "answer", "overlap")}
        if numbers["window"] > _MOST_TOKENS:
            raise ValueError(f"a window of {numbers['window']} tokens is longer than {_MOST_TOKENS}")
        odds, trained = content["answerability"], content["trained"]
        if not isinstance(trained, dict):
            raise ValueError("`trained` is no JSON object")
        return cls(
            Limits(**numbers),
            _finite(content, "passage_weight"),
            None if odds is None else Answerability(*(_finite(odds, name) for name in ("bias", "span", "passage"))),
            trained,
        )


def _whole(values: Any, name: str) -> int:
    value = values[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"`{name}` is {value!r}, not a whole number")
    return value


def _finite(values: Any, name: str) -> float:
    value = values[name]
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1e6:
        raise ValueError(f"`{name}` is {value!r}, not a number")
    return float(value)
