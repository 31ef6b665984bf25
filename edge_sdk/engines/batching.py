"""Continuous batching: which tokens of which answers are evaluated together.

Each batch takes one token of every answer under way and fills up with prompts, first come first served. An answer
that is done gives its sequence to the next one at once; what it leaves in the cache serves those that begin alike.
Knows nothing of text, of how a token is chosen, or of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from .cells import Cells, Tokens, shared_prefix
from .sequences import SequenceContext


class Answer(Protocol):
    """What is made of a prompt: told that it begins, then asked for one token after the other."""

    @property
    def prompt(self) -> Tokens:
        """At least one token."""

    @property
    def max_tokens(self) -> int:
        """After so many tokens, at the latest, it ends."""

    def begin(self, cached: int) -> None:
        """It has a sequence now, and `cached` tokens of its prompt are there already."""

    def next(self, row: Any) -> int | None:
        """The token that follows, chosen from its logits; None where the answer ends with it."""


A = TypeVar("A", bound=Answer)


@dataclass(slots=True, eq=False)
class _Held(Generic[A]):
    """A sequence: the tokens of an answer under way, or what an ended one has left."""

    sequence: int
    answer: A | None  # under way
    prompt: int  # length of the prompt
    tokens: Tokens  # of the prompt and the answer, with room for those to come
    known: int  # so many are there
    evaluated: int
    used: int  # when it began or was the beginning of another, as a count
    added: int = 0  # tokens in the batch
    place: int = 0  # there, of the last one

    @property
    def prefilling(self) -> bool:
        """Whether tokens of the prompt are still to be evaluated."""
        return self.known <= self.prompt

    @property
    def reach(self) -> int:
        """Tokens that are evaluated, or will be before an answer to them is."""
        return self.known if self.prefilling else self.evaluated


class Batching(Generic[A]):
    """Evaluates answers in the sequences of an empty context. One thread at a time.

    What ended answers leave stays in the cache, the latest of it, up to `keep` cells: until the room is wanted.
    """

    def __init__(self, context: SequenceContext, *, keep: int) -> None:
        self._context, self._keep = context, keep
        self._waiting: deque[A] = deque()
        self._running: list[_Held[A]] = []  # in the order in which they began
        self._kept: list[_Held[A]] = []
        self._free = list(range(context.sequences))
        self._cells, self._count = Cells(context.cells), 0
        context.clear()

    @property
    def pending(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._running or self._waiting)

    @property
    def running(self) -> int:
        """Answers that have a sequence."""
        return len(self._running)

    def evaluating(self) -> list[A]:
        """Answers with tokens in the batch that is being evaluated; any thread."""
        return [held.answer for held in self._running if held.added and held.answer]

    def add(self, answer: A) -> None:
        """Answer this too, after those that wait already. Alone it has to fit the context."""
        self._waiting.append(answer)

    def drop(self, answer: A) -> None:
        """Give an answer up; its sequence is free at once. Nothing happens where it has ended."""
        if answer in self._waiting:
            self._waiting.remove(answer)
        for held in self._running:
            if held.answer is answer:
                self._end(held)
                return

    def clear(self) -> list[A]:
        """Forget what the context holds; return the answers that were under way and are given up."""
        given_up = [held.answer for held in self._running if held.answer]
        self._context.clear()
        self._running.clear()
        self._kept.clear()
        self._free, self._cells = list(range(self._context.sequences)), Cells(self._context.cells)
        return given_up

    def step(self, stopped: Callable[[], bool] | None = None, prompts: int | None = None) -> int | None:
        """Evaluate one batch, with up to `prompts` tokens of prompts in it; return the number of its tokens.

        None where `stopped` became true before its end: then it is as if it had not begun. Without `stopped` this
        has to be the thread that computes (see `SequenceContext.run`). After an `EngineError` only `clear` is left,
        and where `Answer.next` raises, too.
        """
        self._fill(self._context.batch if prompts is None else prompts)
        batch = [held for held in self._running if held.added]
        if not batch:
            return 0
        if not (self._context.evaluate(stopped) if stopped else self._context.compute()):
            for held in batch:
                held.added = 0
                self._context.cut(held.sequence, held.evaluated)  # whatever the interrupted evaluation has left
            return None
        size = 0
        for held in batch:
            size += held.added
            held.evaluated, held.added = held.evaluated + held.added, 0
            if held.evaluated == held.known:
                self._choose(held)
        return size

    def _choose(self, held: _Held[A]) -> None:
        assert held.answer
        token = held.answer.next(self._context.row(held.place))
        if token is None:
            self._end(held)
        else:
            held.tokens[held.known] = token
            held.known += 1

    # --- what is evaluated ------------------------------------------------------------------------------

    def _fill(self, prompts: int) -> None:
        for held in self._running:
            if not held.prefilling:
                self._add(held, 1)
        for held in self._running:
            if held.prefilling:
                prompts -= self._add(held, prompts)
        while prompts > 0 and self._context.room and (begun := self._begin()):
            prompts -= self._add(begun, prompts)

    def _add(self, held: _Held[A], most: int) -> int:
        """Put tokens of an answer or its prompt into the batch, as many as there is room for; return how many."""
        start = held.evaluated
        held.added = count = min(held.known - start, self._context.room, most)
        if count:
            whole = start + count == held.known
            held.place = self._context.add(held.sequence, start, held.tokens[start : start + count], wanted=whole)
        return count

    def _begin(self) -> _Held[A] | None:
        """Give the next answer a sequence; None where there is none, or no sequence or room for it as yet."""
        if not self._waiting or not (self._free or self._kept):
            return None
        answer = self._waiting[0]
        source, shared = self._beginning(answer.prompt)
        if source is not None and source.evaluated < shared:  # it is being computed: wait for it
            return None
        sequence = self._place(answer, source, shared)
        if sequence is None:
            return None
        self._waiting.popleft()
        tokens = np.zeros(len(answer.prompt) + answer.max_tokens, np.int32)
        tokens[: len(answer.prompt)] = answer.prompt
        self._count += 1
        begun = _Held(sequence, answer, len(answer.prompt), tokens, len(answer.prompt), shared, self._count)
        self._running.append(begun)
        answer.begin(shared)
        return begun

    def _beginning(self, prompt: Tokens) -> tuple[_Held[A] | None, int]:
        """The sequence that begins most like a prompt, or will when its own is evaluated, and how far it does."""
        best: _Held[A] | None = None
        most = 0
        for held in (*self._running, *self._kept):
            # The last token of a prompt is always evaluated: an answer starts from its logits.
            shared = shared_prefix(held.tokens[: held.reach], prompt[:-1])
            if shared > most or (best is not None and shared == most and held.evaluated > best.evaluated):
                best, most = held, shared
        return best, most

    # --- room -------------------------------------------------------------------------------------------

    def _place(self, answer: A, source: _Held[A] | None, shared: int) -> int | None:
        """A sequence that begins with what is shared and has room for the rest; None where there is none as yet."""
        length = len(answer.prompt) + answer.max_tokens - 1  # the last token of an answer is not evaluated
        kept = source if source in self._kept else None
        others = [held.sequence for held in self._kept if held is not source]
        fits = length - shared <= self._cells.free + self._cells.only(others)
        # Where nothing is lost by it, what is there is gone on with.
        if fits and (self._free or others) and (kept is None or kept.evaluated > shared):
            while not self._free or length - shared > self._cells.free:
                self._release(but=source)
            return self._branch(source, shared, length)
        return None if kept is None else self._continue(kept, shared, length)

    def _branch(self, source: _Held[A] | None, shared: int, length: int) -> int:
        """A new sequence, its beginning that of another."""
        sequence = self._free.pop()
        if source is None:
            self._cells.hold(sequence, length)
        else:
            self._count += 1
            source.used = self._count
            self._cells.hold(sequence, length, source=source.sequence, shared=shared)
            self._context.share(source.sequence, sequence, shared)
        return sequence

    def _continue(self, kept: _Held[A], shared: int, length: int) -> int | None:
        """The sequence of an ended answer, cut to what is shared."""
        self._context.cut(kept.sequence, shared)
        self._cells.shorten(kept.sequence, shared)
        kept.known = kept.evaluated = shared
        while length - shared > self._cells.free:
            if not self._release(but=kept):
                return None
        self._kept.remove(kept)
        self._cells.extend(kept.sequence, length)
        return kept.sequence

    def _end(self, held: _Held[A]) -> None:
        """Make room for the next; what was evaluated stays for as long as there is room for it."""
        self._running.remove(held)
        held.answer, held.known, held.added = None, held.evaluated, 0
        self._cells.shorten(held.sequence, held.evaluated)
        self._kept.append(held)
        while self._kept and self._cells.only(held.sequence for held in self._kept) > self._keep:
            self._release()

    def _release(self, but: _Held[A] | None = None) -> bool:
        """Forget, of what ended answers have left, what was used the longest ago. False where there is nothing."""
        kept = [held for held in self._kept if held is not but]
        if not kept:
            return False
        oldest = min(kept, key=lambda held: held.used)
        self._context.cut(oldest.sequence, 0)
        self._cells.remove(oldest.sequence)
        self._kept.remove(oldest)
        self._free.append(oldest.sequence)
        return True
