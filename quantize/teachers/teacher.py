"""What a teacher is: it takes requests and gives replies, in any order, each as soon as it is there.

Knows nothing of where replies are kept, of what they are for, or of how a teacher computes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from threading import Event
from typing import Protocol

from edge_sdk.records import FinishReason, Message


@dataclass(frozen=True)
class Request:
    """One prompt. Greedy at temperature 0; else `seed` tells samples of one prompt apart."""

    messages: tuple[Message, ...]
    max_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """The sha256 of everything above: equal requests to one teacher have equal replies."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `logprobs` has one natural logarithm a token, or is empty where the teacher tells none.

    `cost` is money, where prices are known.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    logprobs: tuple[float, ...] = ()
    cost: float = 0.0


class Teacher(Protocol):
    """A model that can be asked many things at once."""

    @property
    def fingerprint(self) -> str:
        """Names the model and all that decides its replies; those with another one are not used again."""

    def replies(self, requests: Sequence[Request], cancel: Event | None = None) -> Iterator[tuple[int, Reply]]:
        """The position of a request and its reply, in the order in which they are done.

        Stops without an error once `cancel` is set: what is missing was not answered. Raises `EdgeError`.
        """
