"""The tokens of one answer, one by one; where it quotes, several of them are evaluated together.

A drafted token is kept where the model would have chosen it, so a greedy answer is that of plain decoding. Batches
may be computed by other kernels than single tokens, with other last bits: no close decision is left to them.
Knows nothing of text, stop strings or cancelling: an answer may end at any token, and nothing has to be undone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .draft_length import DraftLength
from .llama import LlamaModel
from .llama_sampler import Sampler
from .prompt_lookup import PromptLookup

if TYPE_CHECKING:
    from kernels.logits import LogitsFigures

_LONGEST = 15  # tokens of a draft
_AT_FIRST = 0.5  # nats; the bound before anything is known
_AT_LEAST = 0.02
_ENOUGH = 8  # comparisons
_TIMES = 8.0  # the largest difference seen


class Trust:
    """From which margin on a row of a batch decides as that of a token evaluated alone would.

    Rows below it are evaluated again, alone, and what they differ by is what the bound is made of.

    >>> trust = Trust()
    >>> for _ in range(8):
    ...     trust.compare(0.30, 0.31)
    >>> round(trust.bound, 3)
    0.08
    """

    def __init__(self) -> None:
        self.bound = _AT_FIRST
        self._compared, self._largest = 0, 0.0

    def compare(self, together: float, alone: float) -> None:
        """The margin of a row, between the same two tokens: from a batch, and evaluated alone."""
        self._compared += 1
        self._largest = max(self._largest, abs(together - alone))
        if self._compared >= _ENOUGH:
            self.bound = max(_AT_LEAST, _TIMES * self._largest)


@dataclass(frozen=True, slots=True)
class Speculation:
    """What is learned of drafts and batches for as long as a model is loaded."""

    lengths: DraftLength = field(default_factory=DraftLength)
    trust: Trust = field(default_factory=Trust)


class Decoding:
    """An answer behind the prompt that `model` has evaluated; `speculation` is None without drafts.

    When a token has been given, `seen` is what it was chosen behind, as in plain decoding. The memory may hold more
    until `end`, which is to be called last.
    """

    def __init__(
        self, model: LlamaModel, sampler: Sampler, prompt: Sequence[int], speculation: Speculation | None
    ) -> None:
        self._model, self._sampler, self._prompt = model, sampler, prompt
        self._speculation = speculation
        self._lookup: PromptLookup | None = None
        self._last: LogitsFigures | None = None
        self._draft: list[int] = []  # in the memory, behind `seen`
        self.drafted = self.accepted = 0

    def next(self, most: int) -> LogitsFigures:
        """The next token, as `chosen`, with its figures; at most so many may come, this one included."""
        last, speculation = self._last, self._speculation
        if last is None:
            if speculation is not None:
                speculation.lengths.begin()
            figures = self._sampler.choose()
        elif speculation is None:
            self._model.advance(last.chosen)
            figures = self._sampler.choose()
        else:
            figures = self._behind(last, most, speculation.lengths, speculation.trust)
        self._last = figures
        return figures

    def end(self) -> None:
        """Forget what was evaluated and not given."""
        if self._draft:
            self._draft = []
            self._model.cut(len(self._model.seen))

    def _behind(self, last: LogitsFigures, most: int, lengths: DraftLength, trust: Trust) -> LogitsFigures:
        """The token behind the last one, which a batch has evaluated already, or which is evaluated now."""
        token, model = last.chosen, self._model
        if self._lookup is None:  # not earlier: the first token should not wait for it
            self._lookup = PromptLookup(self._prompt)
        lookup = self._lookup
        for expected in lookup.draft(1):
            lengths.observe(lookup.match, expected == token and last.margin >= trust.bound)
        lookup.append(token)
        if self._draft[:1] == [token]:
            model.keep(self._draft.pop(0))
            self.accepted += 1
        else:
            self.end()
            draft = self._next_draft(lookup, lengths, min(most, model.batch) - 1)
            started = time.perf_counter()
            model.advance(token, draft)
            seconds = time.perf_counter() - started
            if not draft:
                lengths.single(seconds)
                return self._sampler.choose()
            lengths.batch(1 + len(draft), seconds)
            self._draft = draft
            self.drafted += len(draft)
        together = self._sampler.choose()
        if together.margin >= trust.bound:
            lengths.gain()
            return together
        self._draft = []
        model.cut(len(model.seen) - 1)
        model.advance(token)
        alone = self._sampler.choose()
        trust.compare(together.margin, alone.margin if alone.best == together.best else -alone.margin)
        return alone

    def _next_draft(self, lookup: PromptLookup, lengths: DraftLength, most: int) -> list[int]:
        draft = lookup.draft(min(most, _LONGEST))
        ends = (at for at, token in enumerate(draft) if self._model.is_end(token))
        del draft[next(ends, len(draft)) :]  # no answer goes on behind it
        return draft[: lengths.choose(lookup.match, len(draft))]
