"""Which sequence an answer gets, and what becomes of what ended answers have left.

Sequences share the cells of one buffer (`SharedPlaces`): a common beginning is held once, and any answer may be
long. Or each has a buffer of its own (`OwnPlaces`), where a token is compared with the cells of its own answer
alone, which is faster, and a beginning is copied. Knows nothing of waiting answers or of what is evaluated when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from .cells import Cells, Tokens
from .sequences import SequenceContext


@dataclass(slots=True, eq=False)
class Held:
    """A sequence: the tokens of an answer under way, or what an ended one has left."""

    sequence: int
    answer: Any  # None where it has ended
    prompt: int  # length of the prompt
    tokens: Tokens  # of the prompt and the answer, with room for those to come
    known: int  # so many are there
    evaluated: int
    added: int = 0  # tokens in the batch
    place: int = 0  # there, of the last one
    used: int = 0  # when it ended or was the beginning of another, as a count

    @property
    def prefilling(self) -> bool:
        """Whether tokens of the prompt are still to be evaluated."""
        return self.known <= self.prompt

    @property
    def reach(self) -> int:
        """Tokens that are evaluated, or will be before an answer to them is."""
        return self.known if self.prefilling else self.evaluated


class Places(Protocol):
    """The sequences of an empty context."""

    kept: list[Held]
    """What ended answers have left."""
    worth: int
    """Tokens from which on the beginning of an answer under way is that of another, too."""

    def take(self, length: int, source: Held | None, shared: int) -> tuple[int, int] | None:
        """A sequence of which `length` cells are certain, and how many tokens of `source` are there: `shared` or 0.

        None where there is none as yet; it may be one of those kept, which then is kept no more.
        """

    def end(self, held: Held) -> None:
        """An answer is no longer under way; what was evaluated stays for as long as there is room for it."""

    def arrange(self, running: Sequence[Held]) -> None:
        """Called before a batch is made, when no answer waits that could be given a sequence."""


class SharedPlaces:
    """See `Places`; what is kept takes `keep` cells at most."""

    worth = 1

    def __init__(self, context: SequenceContext, keep: int) -> None:
        self.kept: list[Held] = []
        self._context, self._keep = context, keep
        self._free, self._cells = list(range(context.sequences)), Cells(context.cells)
        self._clock = count(1)

    def take(self, length: int, source: Held | None, shared: int) -> tuple[int, int] | None:
        """See `Places.take`."""
        kept = source if source in self.kept else None
        others = [held.sequence for held in self.kept if held is not source]
        fits = length - shared <= self._cells.free + self._cells.only(others)
        # Where nothing is lost by it, what is there is gone on with.
        if fits and (self._free or others) and (kept is None or kept.evaluated > shared):
            while not self._free or length - shared > self._cells.free:
                self._release(but=source)
            return self._branch(source, shared, length), shared
        sequence = None if kept is None else self._continue(kept, shared, length)
        return None if sequence is None else (sequence, shared)

    def end(self, held: Held) -> None:
        """See `Places.end`."""
        self._cells.shorten(held.sequence, held.evaluated)
        held.used = next(self._clock)
        self.kept.append(held)
        while self.kept and self._cells.only(each.sequence for each in self.kept) > self._keep:
            self._release()

    def arrange(self, running: Sequence[Held]) -> None:
        """Nothing: any sequences can be evaluated together."""

    def _branch(self, source: Held | None, shared: int, length: int) -> int:
        """A new sequence, its beginning that of another."""
        sequence = self._free.pop()
        if source is None:
            self._cells.hold(sequence, length)
        else:
            source.used = next(self._clock)
            self._cells.hold(sequence, length, source=source.sequence, shared=shared)
            self._context.share(source.sequence, sequence, shared)
        return sequence

    def _continue(self, kept: Held, shared: int, length: int) -> int | None:
        """The sequence of an ended answer, cut to what is shared."""
        self._context.cut(kept.sequence, shared)
        self._cells.shorten(kept.sequence, shared)
        kept.known = kept.evaluated = shared
        while length - shared > self._cells.free:
            if not self._release(but=kept):
                return None
        self.kept.remove(kept)
        self._cells.extend(kept.sequence, length)
        return kept.sequence

    def _release(self, but: Held | None = None) -> bool:
        """Forget, of what ended answers have left, what was used the longest ago. False where there is nothing."""
        kept = [held for held in self.kept if held is not but]
        if not kept:
            return False
        oldest = min(kept, key=lambda held: held.used)
        self._context.cut(oldest.sequence, 0)
        self._cells.remove(oldest.sequence)
        self.kept.remove(oldest)
        self._free.append(oldest.sequence)
        return True


class OwnPlaces:
    """See `Places`. llama.cpp evaluates together what lies side by side, so answers under way leave no gap."""

    worth = 32
    """A copy moves a whole buffer, and a reset graph comes with it: about what so many tokens of a prompt take."""

    def __init__(self, context: SequenceContext) -> None:
        self.kept: list[Held] = []
        self._context, self._taken = context, set[int]()
        self._clock = count(1)

    def take(self, length: int, source: Held | None, shared: int) -> tuple[int, int] | None:
        """See `Places.take`; every sequence has the cells of the longest answer."""
        able = self._able()
        if not able:
            return None
        used = {held.sequence: held.used for held in self.kept}
        # An empty one, or that of the longest unused; where little is lost by it, what is there is gone on with.
        sequence = min(able, key=lambda each: used.get(each, 0))
        if source is not None and source.sequence in able:
            little = (
                source.evaluated - shared < self.worth
            )  # the end of an answer may be other tokens in the next turn
            sequence = source.sequence if little or len(able) == 1 else sequence
        self._taken.add(sequence)
        self._forget(sequence)
        if source is not None and source.sequence != sequence and shared >= self.worth:
            source.used = next(self._clock)
            self._context.share(source.sequence, sequence, shared)
            return sequence, shared
        there = shared if source is not None and source.sequence == sequence else 0
        self._context.cut(sequence, there)
        return sequence, there

    def end(self, held: Held) -> None:
        """See `Places.end`."""
        self._taken.remove(held.sequence)
        held.used = next(self._clock)
        self.kept.append(held)

    def arrange(self, running: Sequence[Held]) -> None:
        """Move the last ones into the gaps that ended ones have left, and what is kept there to an empty one."""
        while gap := self._gaps():
            last = max(running, key=lambda held: held.sequence)
            self._save(gap[0])
            self._forget(gap[0])
            self._context.share(last.sequence, gap[0], last.evaluated)
            self._context.cut(last.sequence, 0)
            self._taken ^= {gap[0], last.sequence}
            last.sequence = gap[0]

    def _save(self, sequence: int) -> None:
        """Copy what is kept there to a sequence that holds nothing, if there is one."""
        full = self._taken | {held.sequence for held in self.kept}
        empty = next((each for each in range(self._context.sequences) if each not in full), None)
        for held in self.kept:
            if held.sequence == sequence and held.evaluated >= self.worth and empty is not None:
                self._context.share(sequence, empty, held.evaluated)
                held.sequence = empty

    def _gaps(self) -> list[int]:
        taken = self._taken
        return [each for each in range(min(taken), max(taken)) if each not in taken] if taken else []

    def _able(self) -> list[int]:
        """The sequences beside the answers under way, or between them; all where there is none."""
        every, taken = range(self._context.sequences), self._taken
        near = range(min(taken) - 1, max(taken) + 2) if taken else every
        return [each for each in near if each in every and each not in taken]

    def _forget(self, sequence: int) -> None:
        self.kept[:] = [held for held in self.kept if held.sequence != sequence]
