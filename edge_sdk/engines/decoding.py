"""The tokens of one answer, one by one; where it quotes, several of them are evaluated together.

A drafted token is kept where the model would have chosen it, so a greedy answer is that of plain decoding, as long
as a batch says of a token what the token says alone. Where llama.cpp computes the two in other ways logits are off
by tenths; that is found out as batches are used, and then there are no drafts. Knows nothing of text, stop strings
or cancelling: an answer may end at any token, and nothing has to be undone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .draft_length import DraftLength
from .handover import MOMENT
from .llama import LlamaModel
from .llama_sampler import Sampler
from .prompt_lookup import PromptLookup

if TYPE_CHECKING:
    from kernels.logits import LogitsFigures

_LONGEST = 15  # tokens of a draft
_CLOSE = 0.02  # nats; between tokens that are closer no batch decides
_SAME = 1e-3  # nats by which figures of one token may differ
_BLOCK = 256  # llama.cpp looks at so many cells or a multiple
_ANY = 4096


class Trust:
    """Which batches may be believed, by their size, the cells of the memory that they look at, and the threads.

    One that may not rules out larger ones and those that look at more: Q4_K has other kernels for four or for eight
    tokens and more, and several threads share out a single token's attention over 512 cells and more of 16 bits.

    >>> trust = Trust()
    >>> [(trust.is_due(4, 300, 2), trust.use(4, 300, 2))[0] for _ in range(4)], trust.largest(900, 2)
    ([True, True, False, False], 4096)
    >>> trust.doubt(8, 600, 2), trust.largest(900, 2), trust.largest(300, 2), trust.largest(900, 1)
    (None, 7, 4096, 4096)
    """

    def __init__(self) -> None:
        self._uses: dict[tuple[int, int, int], int] = {}
        self._doubted: list[tuple[int, int, int]] = []

    def largest(self, cells: int, threads: int) -> int:
        """The largest batch that may be believed, or may turn out to be."""
        blocks = cells // _BLOCK
        doubted = (size for size, least, by in self._doubted if blocks >= least and threads == by)
        return min(doubted, default=_ANY + 1) - 1

    def is_due(self, size: int, cells: int, threads: int) -> bool:
        """Whether a batch is to be checked."""
        uses = self._uses.get((size, cells // _BLOCK, threads), 0)
        return uses < 2 or uses % 16 == 0

    def use(self, size: int, cells: int, threads: int) -> None:
        """A batch is evaluated, and checked if that was due."""
        key = (size, cells // _BLOCK, threads)
        self._uses[key] = self._uses.get(key, 0) + 1

    def doubt(self, size: int, cells: int, threads: int) -> None:
        """A batch has said something else."""
        self._doubted.append((size, cells // _BLOCK, threads))

    @staticmethod
    def agree(together: LogitsFigures, alone: LogitsFigures) -> bool:
        """Whether a row of a batch is that of the token alone."""
        margin = alone.margin if together.best == alone.best else -alone.margin
        return abs(together.margin - margin) <= _SAME and abs(together.logsumexp - alone.logsumexp) <= _SAME


@dataclass(frozen=True, slots=True)
class Speculation:
    """What is learned of drafts and batches for as long as a model is loaded."""

    lengths: DraftLength = field(default_factory=DraftLength)
    trust: Trust = field(default_factory=Trust)


class Decoding:
    """An answer behind the prompt that `model` has evaluated; `speculation` is None without drafts.

    When a token has been given, `seen` is what it was chosen behind, or begins with that: without drafts greedy
    tokens are chosen in groups, those of a moment. The memory may hold more until `end`, which is to be called last
    and told how many tokens were wanted.
    """

    def __init__(
        self, model: LlamaModel, sampler: Sampler, prompt: Sequence[int], speculation: Speculation | None
    ) -> None:
        self._model, self._sampler, self._prompt = model, sampler, prompt
        self._start = len(model.seen)
        self._speculation = speculation
        self._lookup: PromptLookup | None = None
        self._last: LogitsFigures | None = None
        self._draft: list[int] = []  # in the memory, behind `seen`
        self._alone = False  # whether the row of the last token seen was made by it alone
        self._ahead: deque[LogitsFigures] = deque()  # those of tokens that were chosen beyond the last one given
        self.drafted = self.accepted = 0

    @property
    def at_hand(self) -> bool:
        """Whether the next token has been chosen already."""
        return bool(self._ahead)

    def next(self, most: int) -> LogitsFigures:
        """The next token, as `chosen`, with its figures; at most so many may come, this one included."""
        last, speculation = self._last, self._speculation
        if self._ahead:
            figures = self._ahead.popleft()
        elif last is None:
            if speculation is not None:
                speculation.lengths.begin()
            figures = self._sampler.choose()
        elif speculation is None:
            figures = self._plain(last.chosen, most)
        else:
            figures = self._behind(last, most, speculation.lengths, speculation.trust)
        self._last = figures
        return figures

    def end(self, given: int) -> None:
        """Forget what was evaluated, but for the tokens that were given; the last of these was not."""
        length = self._start + max(0, given - 1)
        self._ahead.clear()
        if self._draft or length < len(self._model.seen):
            self._draft = []
            self._model.cut(length)

    def _plain(self, token: int, most: int) -> LogitsFigures:
        if self._sampler.greedy and self._model.forgets:
            self._ahead += self._model.advance_greedily(token, most, MOMENT)
        if self._ahead:
            return self._ahead.popleft()
        self._model.advance(token)
        return self._sampler.choose()

    def _behind(self, last: LogitsFigures, most: int, lengths: DraftLength, trust: Trust) -> LogitsFigures:
        """The token behind the last one, which a batch has evaluated already, or which is evaluated now."""
        token, model = last.chosen, self._model
        if self._lookup is None:  # not earlier: the first token should not wait for it
            self._lookup = PromptLookup(self._prompt)
        lookup = self._lookup
        for expected in lookup.draft(1):
            lengths.observe(lookup.match, expected == token and last.margin >= _CLOSE)
        lookup.append(token)
        if self._draft[:1] == [token]:
            model.keep(self._draft.pop(0))
            self.accepted += 1
            return self._believed(token, lengths)
        if self._draft:
            self._draft = []
            model.cut(len(model.seen))
        tokens = [token, *self._next_draft(lookup, most, lengths, trust)]
        seen = len(model.seen)
        where = len(tokens), seen + len(tokens), model.threads
        check = len(tokens) > 1 and trust.is_due(*where)
        comparable = self._alone and seen // _BLOCK == (seen + len(tokens)) // _BLOCK
        if len(tokens) == 1 or (check and not comparable):
            return self._single(token, lengths)
        trust.use(*where)
        if check:  # the batch begins one token earlier, with one that has been evaluated alone
            tokens = [model.seen[-1], *tokens[:-1]]
            model.cut(len(model.seen) - 1)
        started = time.perf_counter()
        model.advance(tokens[0], tokens[1:])
        self._draft = tokens[1:]
        if check and not trust.agree(self._sampler.choose(), last):
            trust.doubt(*where)
            self._draft = []
            model.cut(len(model.seen) - 1)
            model.advance(tokens[0])
            lengths.batch(len(tokens), time.perf_counter() - started)
            return self._single(token, lengths)
        lengths.batch(len(tokens), time.perf_counter() - started)
        if check:
            model.keep(self._draft.pop(0))
        self.drafted += len(self._draft)
        return self._believed(token, lengths)

    def _believed(self, token: int, lengths: DraftLength) -> LogitsFigures:
        """What a batch says behind `token`, the last one seen, unless that is too close."""
        figures = self._sampler.choose()
        if figures.margin >= _CLOSE:
            lengths.gain()
            self._alone = False
            return figures
        self._draft = []
        self._model.cut(len(self._model.seen) - 1)
        return self._single(token, lengths)

    def _single(self, token: int, lengths: DraftLength) -> LogitsFigures:
        started = time.perf_counter()
        self._model.advance(token)
        lengths.single(time.perf_counter() - started)
        self._alone = True
        return self._sampler.choose()

    def _next_draft(self, lookup: PromptLookup, most: int, lengths: DraftLength, trust: Trust) -> list[int]:
        """What to verify behind the last token, if anything, when so many tokens may come."""
        if not lookup.match:
            return []
        model = self._model
        largest = min(most, model.batch, trust.largest(len(model.seen) + 1 + _LONGEST, model.threads))
        draft = lookup.draft(min(largest - 1, _LONGEST))
        ends = (at for at, token in enumerate(draft) if model.is_end(token))
        del draft[next(ends, len(draft)) :]  # no answer goes on behind it
        return draft[: lengths.choose(lookup.match, len(draft))]
