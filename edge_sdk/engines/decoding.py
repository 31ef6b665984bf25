"""The tokens of one answer, one by one; where it quotes, several of them are evaluated together.

A drafted token is kept where the model would have chosen it, so a greedy answer is that of plain decoding. Knows
nothing of text, stop strings or cancelling: an answer may end at any token, and nothing of it has to be undone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .draft_length import DraftLength
from .llama import LlamaModel
from .llama_sampler import Sampler
from .prompt_lookup import PromptLookup

if TYPE_CHECKING:
    from kernels.logits import LogitsFigures

DOUBT = 0.25
_LONGEST = 15  # tokens of a draft


class Decoding:
    """An answer behind the prompt that `model` has evaluated; `lengths` is None for one without drafts.

    When a token has been given, `seen` is what it was chosen behind, as in plain decoding. The memory may hold more
    until `end`, which is to be called last.
    """

    def __init__(
        self, model: LlamaModel, sampler: Sampler, prompt: Sequence[int], lengths: DraftLength | None
    ) -> None:
        self._model, self._sampler, self._prompt = model, sampler, prompt
        self._lengths = lengths
        self._lookup: PromptLookup | None = None
        self._last: LogitsFigures | None = None
        self._draft: list[int] = []  # in the memory, behind `seen`
        self.drafted = self.accepted = 0

    def next(self, most: int) -> LogitsFigures:
        """The next token, as `chosen`, with its figures; at most so many may come, this one included."""
        last, lengths = self._last, self._lengths
        if last is None:
            if lengths is not None:
                lengths.begin()
            figures = self._sampler.choose()
        elif lengths is None:
            self._model.advance(last.chosen)
            figures = self._sampler.choose()
        else:
            figures = self._behind(last, most, lengths)
        self._last = figures
        return figures

    def end(self) -> None:
        """Forget what was evaluated and not given."""
        if self._draft:
            self._draft = []
            self._model.cut(len(self._model.seen))

    def _behind(self, last: LogitsFigures, most: int, lengths: DraftLength) -> LogitsFigures:
        """The token behind the last one, which a batch has evaluated already, or which is evaluated now."""
        token, model = last.chosen, self._model
        if self._lookup is None:  # not earlier: the first token should not wait for it
            self._lookup = PromptLookup(self._prompt)
        lookup = self._lookup
        for expected in lookup.draft(1):
            lengths.observe(lookup.match, expected == token and last.margin >= DOUBT)
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
        figures = self._sampler.choose()
        if figures.margin >= DOUBT:
            lengths.gain()
            return figures
        self._draft = []
        model.cut(len(model.seen) - 1)
        model.advance(token)
        return self._sampler.choose()

    def _next_draft(self, lookup: PromptLookup, lengths: DraftLength, most: int) -> list[int]:
        draft = lookup.draft(min(most, _LONGEST))
        ends = (at for at, token in enumerate(draft) if self._model.is_end(token))
        del draft[next(ends, len(draft)) :]  # no answer goes on behind it
        return draft[: lengths.choose(lookup.match, len(draft))]
