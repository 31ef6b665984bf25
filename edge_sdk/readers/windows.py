"""A question and passages to sequences of tokens that a reader's model takes: `[CLS] question [SEP] passage [SEP]`.

A passage that does not fit becomes several windows that overlap. Training and reading cut texts here, so both see
the same. Knows nothing of models or scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import ConfigError, ModelDamagedError
from ..model_files.tokenizer import Pieces, Tokenizer

_FRAME = 3  # [CLS], and a [SEP] after each part
CHARACTERS_PER_TOKEN = 16
"""Natural text has about 4: what a question has beyond is cut before the tokenizer sees it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """In tokens: a window in all, a question at most, an answer at most, what neighbouring windows share."""

    window: int = 256
    question: int = 64
    answer: int = 30
    overlap: int = 64

    def __post_init__(self) -> None:
        """Raises `ConfigError` for limits under which some token of a passage would be in no window."""
        room = self.window - self.question - _FRAME
        if min(self.question, self.answer) < 1 or not 0 <= self.overlap < room:
            raise ConfigError(f"a reader cannot have {self}", hint="a window holds a question and new text")


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens for one run: `ids[first:last]` are tokens `offset`, `offset` + 1, ... of passage number `passage`."""

    passage: int
    ids: list[int]
    first: int
    offset: int

    @property
    def last(self) -> int:
        return len(self.ids) - 1

    @property
    def segments(self) -> list[int]:
        """0 for the tokens of the question, 1 for those of the passage, each with its `[SEP]`."""
        return [0] * self.first + [1] * (len(self.ids) - self.first)


class Windows:
    """Cuts texts for one tokenizer and its limits."""

    def __init__(self, tokenizer: Tokenizer, limits: Limits) -> None:
        """Raises `ModelDamagedError` where the tokenizer has no `[CLS]` and `[SEP]`."""
        begin, end = tokenizer.id("[CLS]"), tokenizer.id("[SEP]")
        if begin is None or end is None:
            raise ModelDamagedError("the tokenizer has no [CLS] and [SEP], which a reader's pairs are framed with")
        self.tokenizer, self.limits = tokenizer, limits
        self._begin, self._end = begin, end

    def question(self, text: str) -> list[int]:
        """Tokens of a question, the first `limits.question` of them."""
        longest = self.limits.question
        return self.tokenizer.pieces(text[: longest * CHARACTERS_PER_TOKEN]).ids[:longest]

    def cut(self, question: Sequence[int], passage: Pieces, number: int = 0) -> Iterator[Window]:
        """The windows of a passage, none where it has no token."""
        head = [self._begin, *question, self._end]
        room = self.limits.window - len(head) - 1
        for offset in range(0, len(passage.ids), room - self.limits.overlap):
            yield Window(number, [*head, *passage.ids[offset : offset + room], self._end], len(head), offset)
            if offset + room >= len(passage.ids):
                return
