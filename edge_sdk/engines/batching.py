"""Continuous batching: which tokens of which answers are evaluated together.

Each batch takes one token of every answer under way and fills up with prompts, first come first served. An answer
that is done gives its sequence to the next one at once; what it leaves in the cache serves those that begin alike.
Knows nothing of text, of how a token is chosen, or of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from .cells import Tokens, shared_prefix
from .places import Held, OwnPlaces, Places, SharedPlaces
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
T = TypeVar("T")


class Batching(Generic[A]):
    """Evaluates answers in the sequences of an empty context. One thread at a time.

    What ended answers leave stays in the cache, the latest of it: until the room is wanted and, where sequences
    share their cells, in `keep` of them at most.
    """

    def __init__(self, context: SequenceContext, *, keep: int) -> None:
        self._context, self._keep = context, keep
        self._waiting: deque[A] = deque()
        self._running: list[Held] = []  # in the order in which they began
        self._places = self._emptied()

    def _emptied(self) -> Places:
        self._context.clear()
        return OwnPlaces(self._context) if self._context.apart else SharedPlaces(self._context, self._keep)

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
        self._running.clear()
        self._places = self._emptied()
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

    def follow(
        self, evaluate: Callable[[int, int, int, int], Sequence[T]], take: Callable[[A, T], int | None]
    ) -> int:
        """Several tokens of the one answer under way, where no other is or waits; the number of those evaluated.

        `evaluate` is given its sequence, the position of its last token and that token, and how many may come. It
        evaluates that token and some of those that it chooses behind it, and returns what it found behind each;
        `take` is to that what `Answer.next` is to logits. 0 where there is something for `step` to do.
        """
        if len(self._running) != 1 or self._waiting or self._running[0].prefilling:
            return 0
        (held,) = self._running
        held.added = 1
        last = int(held.tokens[held.evaluated])
        found = evaluate(held.sequence, held.evaluated, last, len(held.tokens) - held.known)
        held.added = 0
        for each in found:
            held.evaluated += 1
            if not self._add(held, take(held.answer, each)):
                self._context.cut(held.sequence, held.evaluated)  # what was evaluated beyond its end
                break
        return len(found)

    def _choose(self, held: Held) -> None:
        assert held.answer
        self._add(held, held.answer.next(self._context.row(held.place)))

    def _add(self, held: Held, token: int | None) -> bool:
        """Whether the answer goes on, with a token that was chosen."""
        if token is None:
            self._end(held)
            return False
        held.tokens[held.known] = token
        held.known += 1
        return True

    # --- what is evaluated ------------------------------------------------------------------------------

    def _fill(self, prompts: int) -> None:
        """Make the batch: a token of each answer, then prompts, in the order in which they began."""
        room = self._context.batch
        for held in self._running:
            if not held.prefilling:
                held.added = 1
                room -= 1
        for held in self._running:
            if held.prefilling:
                held.added = min(held.known - held.evaluated, room, prompts)
                room, prompts = room - held.added, prompts - held.added
        while prompts > 0 and room and (begun := self._begin()):
            begun.added = min(begun.known - begun.evaluated, room, prompts)
            room, prompts = room - begun.added, prompts - begun.added
        if not self._waiting:
            self._places.arrange(self._running)
        for held in sorted(self._running, key=lambda held: held.sequence):
            if held.added:
                start, end = held.evaluated, held.evaluated + held.added
                tokens, wanted = held.tokens[start:end], end == held.known
                held.place = self._context.add(held.sequence, start, tokens, wanted=wanted)

    def _begin(self) -> Held | None:
        """Give the next answer a sequence; None where there is none, or no sequence or room for it as yet."""
        if not self._waiting:
            return None
        answer = self._waiting[0]
        source, shared = self._beginning(answer.prompt)
        if source is not None and source.evaluated < shared:  # it is being computed: wait for it
            return None
        size = len(answer.prompt)
        # The last token of an answer is not evaluated.
        taken = self._places.take(size + answer.max_tokens - 1, source, shared)
        if taken is None:
            return None
        sequence, shared = taken
        self._waiting.popleft()
        tokens = np.zeros(size + answer.max_tokens, np.int32)
        tokens[:size] = answer.prompt
        begun = Held(sequence, answer, size, tokens, known=size, evaluated=shared)
        self._running.append(begun)
        answer.begin(shared)
        return begun

    def _beginning(self, prompt: Tokens) -> tuple[Held | None, int]:
        """The sequence that begins most like a prompt, or will when its own is evaluated, and how far it does."""
        best: Held | None = None
        most = 0
        for held in (*self._running, *self._places.kept):
            # The last token of a prompt is always evaluated: an answer starts from its logits.
            shared = shared_prefix(held.tokens[: held.reach], prompt[:-1])
            if held.answer is not None and shared < self._places.worth:
                continue
            if shared > most or (best is not None and shared == most and held.evaluated > best.evaluated):
                best, most = held, shared
        return best, most

    def _end(self, held: Held) -> None:
        """Make room for the next."""
        self._running.remove(held)
        held.answer, held.known, held.added = None, held.evaluated, 0
        self._places.end(held)
