"""A teacher's requests in a batch: prompts in the order in which they share most, and what becomes of each.

Which tokens are evaluated together is the business of the engine's batching. Knows nothing of files, templates or
memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_sdk.engines.cells import Tokens
from edge_sdk.engines.engine import TextStream
from edge_sdk.engines.llama import LlamaModel
from edge_sdk.engines.sampling import Sampler
from edge_sdk.errors import EngineError
from edge_sdk.kernel_faces import logits
from edge_sdk.records import FinishReason, GenerateOptions

from .teacher import Reply, Request
from .top_logits import TopLogits, joined, top_of


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A request as tokens, the first `shared` of which are also those of the prompt before it in sorted order."""

    position: int
    request: Request
    tokens: Tokens
    shared: int

    @property
    def cells(self) -> int:
        """What prompt and answer may take; the last token of an answer is not evaluated."""
        return len(self.tokens) + self.request.max_tokens - 1


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A prompt with its reply, and what was likely at each place of it where that was asked for."""

    prompt: Prompt
    reply: Reply
    top: TopLogits | None


class Replying:
    """A prompt whose reply is being made, an `edge_sdk.engines.batching.Answer`; at its end it is among `done`.

    `top` is how many tokens to tell at each place of the reply, 0 for none.
    """

    def __init__(self, model: LlamaModel, asked: Prompt, done: list[Done], *, top: int = 0) -> None:
        self.prompt, self.max_tokens = asked.tokens, asked.request.max_tokens
        self._model, self._asked, self._done, self._most = model, asked, done, top
        self._sampler: Sampler | None = None
        self._text, self._stream = "", TextStream(asked.request.stop)
        self._chosen: list[int] = []
        self._logprobs: list[float] = []
        self._top: list[TopLogits] = []

    def begin(self, cached: int) -> None:
        """See `Answer.begin`."""
        request = self._asked.request
        if request.temperature:
            self._sampler = Sampler(GenerateOptions(temperature=request.temperature, seed=request.seed))

    def next(self, row: Any) -> int | None:
        """See `Answer.next`."""
        size = self._model.size
        try:
            figures = logits.measure_at(row, size)
        except ValueError as error:
            raise EngineError(f"the teacher fails: {error}", hint="its file may be damaged") from error
        chosen = figures.best
        if self._sampler:
            chosen = self._sampler.choose(np.ctypeslib.as_array(row, (size,)), self._chosen)
        self._chosen.append(chosen)
        self._logprobs.append(min(0.0, row[chosen] - figures.logsumexp))
        if self._most:
            self._top.append(top_of(np.ctypeslib.as_array(row, (size,)), figures.logsumexp, chosen, self._most))
        ended = self._model.is_end(chosen)
        self._text += self._stream.push(b"" if ended else self._model.piece(chosen))
        if ended or self._stream.stopped:
            self._end("stop")
        elif len(self._chosen) == self.max_tokens:
            self._end("length")
        else:
            return chosen
        return None

    def _end(self, reason: FinishReason) -> None:
        reply = Reply(
            self._text + self._stream.finish(),
            reason,
            prompt_tokens=len(self.prompt),
            completion_tokens=len(self._chosen),
            logprobs=tuple(self._logprobs),
        )
        self._done.append(Done(self._asked, reply, joined(self._top) if self._most else None))


def sorted_order(prompts: Sequence[Tokens]) -> list[int]:
    """Positions of prompts in the order of their tokens, so that those with a common beginning follow each other.

    >>> sorted_order([np.array([2], np.int32), np.array([1, 300], np.int32), np.array([1, 7], np.int32)])
    [2, 1, 0]
    """
    # Big-endian bytes compare as the tokens do, which are never negative.
    return sorted(range(len(prompts)), key=lambda position: prompts[position].astype(">i4").tobytes())


def most_needed(lengths: Sequence[int], common: int, sequences: int) -> int:
    """Cells with which any `sequences` of these have room, when all have their first `common` tokens in common.

    >>> most_needed([60, 70, 80], 50, 2)
    100
    """
    return common + sum(sorted((length - common for length in lengths), reverse=True)[:sequences])
