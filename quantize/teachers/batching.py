"""Continuous batching: which tokens of which requests are evaluated together, and what is chosen behind them.

Each batch takes one token of every request that is being answered, and fills up with prompts of those to come. A
request that is done gives its sequence to the next one at once. Knows nothing of files, templates or memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_sdk.engines.engine import TextStream
from edge_sdk.engines.sampling import Sampler
from edge_sdk.errors import EngineError
from edge_sdk.kernel_faces import logits
from edge_sdk.records import FinishReason, GenerateOptions

from .cells import Cells, Tokens
from .sequences import SequenceContext, SequenceModel
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


@dataclass(slots=True, eq=False)
class _Running:
    """A prompt that has a sequence, and what has been chosen so far."""

    prompt: Prompt
    sequence: int
    evaluated: int  # tokens of the prompt
    sampler: Sampler | None
    stream: TextStream
    added: int = 0  # tokens of the prompt in the batch
    place: int | None = None  # in the batch, of the token whose logits are wanted
    text: str = ""
    chosen: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[TopLogits] = field(default_factory=list)
    ended: bool = False

    @property
    def missing(self) -> int:
        """Tokens of the prompt that are to be evaluated."""
        return len(self.prompt.tokens) - self.evaluated


class Batching:
    """Answers prompts, which come in sorted order, in the sequences of an empty context.

    `top` is how many tokens to tell at each place of an answer, 0 for none.
    """

    def __init__(
        self, model: SequenceModel, context: SequenceContext, prompts: Sequence[Prompt], *, top: int = 0
    ) -> None:
        self._model, self._context, self._top = model, context, top
        self._waiting = deque(prompts)
        self._running: list[_Running] = []  # in the order in which they began, which is the sorted one
        self._last: _Running | None = None  # begun last; its prompt stays in the cache also when it is done
        self._free = list(range(context.sequences))
        self._cells = Cells(context.cells)

    @property
    def pending(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._running or self._waiting)

    def step(self, stopped: Callable[[], bool]) -> list[Done] | None:
        """Evaluate one batch: what it brought to an end, or None where `stopped` became true."""
        self._fill()
        if not self._context.evaluate(stopped):
            return None
        done = []
        for running in self._running:
            running.evaluated += running.added
            if running.place is not None and (reason := self._choose(running, running.place)):
                done.append(self._end(running, reason))
            running.added, running.place = 0, None
        self._running = [running for running in self._running if not running.ended]
        return done

    # --- what is evaluated ------------------------------------------------------------------------------

    def _fill(self) -> None:
        context = self._context
        for running in self._running:
            if running.chosen:
                at, token = len(running.prompt.tokens) + len(running.chosen) - 1, running.chosen[-1]
                running.place = context.add(running.sequence, at, np.array([token], np.int32), wanted=True)
        for running in self._running:
            self._prefill(running)
        while context.room and (begun := self._begin()):
            self._prefill(begun)

    def _prefill(self, running: _Running) -> None:
        """Add as much of the prompt as the batch has room for."""
        if count := min(running.missing, self._context.room):
            part = running.prompt.tokens[running.evaluated : running.evaluated + count]
            whole = count == running.missing
            place = self._context.add(running.sequence, running.evaluated, part, wanted=whole)
            running.added, running.place = count, place if whole else None

    def _begin(self) -> _Running | None:
        """Give the next prompt a sequence; None where there is no prompt, sequence or room for it as yet."""
        last, context = self._last, self._context
        instead = last is not None and last.ended  # its sequence can be continued from what both begin with
        if not self._waiting or not (instead or self._free):
            return None
        prompt = self._waiting[0]
        shared = prompt.shared if last else 0
        if last and last.evaluated < shared:  # not computed yet
            return None
        if not self._cells.fits(prompt.cells, shared, instead=instead):
            return None
        self._waiting.popleft()
        if last and instead:
            sequence = last.sequence
            context.cut(sequence, shared)
            self._cells.replace_last(prompt.cells, shared)
        else:
            sequence = self._free.pop()
            if last:
                context.share(last.sequence, sequence, shared)
            self._cells.add(sequence, prompt.cells, shared)
        self._last = begun = _Running(
            prompt, sequence, shared, _sampler(prompt.request), TextStream(prompt.request.stop)
        )
        self._running.append(begun)
        return begun

    # --- what is chosen ---------------------------------------------------------------------------------

    def _choose(self, running: _Running, place: int) -> FinishReason | None:
        """Choose the next token of an answer; why the answer ends with it, if it does."""
        row, size = self._context.row(place), self._model.size
        try:
            figures = logits.measure_at(row, size)
        except ValueError as error:
            raise EngineError(f"the teacher fails: {error}", hint="its file may be damaged") from error
        chosen = figures.best
        if running.sampler:
            chosen = running.sampler.choose(np.ctypeslib.as_array(row, (size,)), running.chosen)
        running.chosen.append(chosen)
        running.logprobs.append(min(0.0, row[chosen] - figures.logsumexp))
        if self._top:
            running.top.append(top_of(np.ctypeslib.as_array(row, (size,)), figures.logsumexp, chosen, self._top))
        ended = self._model.is_end(chosen)
        running.text += running.stream.push(b"" if ended else self._model.piece(chosen))
        if ended or running.stream.stopped:
            return "stop"
        return "length" if len(running.chosen) == running.prompt.request.max_tokens else None

    def _end(self, running: _Running, reason: FinishReason) -> Done:
        """Make room for the next, and tell what has come of this one."""
        prompt, running.ended = running.prompt, True
        if running is self._last:
            self._context.cut(running.sequence, len(prompt.tokens))
            self._cells.shorten(running.sequence, len(prompt.tokens))
        else:
            self._context.cut(running.sequence, 0)
            self._cells.remove(running.sequence)
            self._free.append(running.sequence)
        reply = Reply(
            running.text + running.stream.finish(),
            reason,
            prompt_tokens=len(prompt.tokens),
            completion_tokens=len(running.chosen),
            logprobs=tuple(running.logprobs),
        )
        return Done(prompt, reply, joined(running.top) if self._top else None)


def _sampler(request: Request) -> Sampler | None:
    if request.temperature == 0:
        return None
    return Sampler(GenerateOptions(temperature=request.temperature, seed=request.seed))
