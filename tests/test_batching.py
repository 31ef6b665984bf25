"""Which tokens come together: any order of arrivals, ends and interruptions on a made-up context that checks all.

The context keeps the tokens of each sequence as llama.cpp does, and what follows them is a function of all of them:
a token out of place changes the answer. Where sequences are apart, those evaluated together come in rising order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.engines.batching import Batching
from edge_sdk.errors import EngineError


def following(tokens: Sequence[int]) -> int:
    """The token after these."""
    state = 7
    for token in tokens:
        state = (state * 31 + token + 1) % 1009
    return state % 3


@dataclass(eq=False)
class Cell:
    token: int


class Context:
    """A `SequenceContext` whose memory is lists of cells."""

    apart = False

    def __init__(self, cells: int, sequences: int, batch: int) -> None:
        self.cells, self.sequences, self.batch = cells, sequences, batch
        self.held: list[list[Cell]] = []
        self.batches: list[list[tuple[int, int]]] = []  # sequence and number of tokens
        self.clear()

    def clear(self) -> None:
        self.held = [[] for _ in range(self.sequences)]
        self.added: list[tuple[int, int, list[int], bool]] = []
        self.rows: dict[int, int] = {}

    @property
    def room(self) -> int:
        return self.batch - sum(len(tokens) for _, _, tokens, _ in self.added)

    def cut(self, sequence: int, length: int) -> None:
        del self.held[sequence][length:]

    def share(self, source: int, target: int, length: int) -> None:
        assert not self.held[target] and len(self.held[source]) >= length
        self.held[target] = self.held[source][:length]

    def add(self, sequence: int, start: int, tokens: np.ndarray, *, wanted: bool) -> int:
        assert 0 < len(tokens) <= self.room
        self.added.append((sequence, start, tokens.tolist(), wanted))
        return self.batch - self.room - 1

    def evaluate(self, stopped: Callable[[], bool]) -> bool:
        added, place, self.rows = self.added, -1, {}
        self.added = []
        for sequence, start, tokens, wanted in added:
            row = self.held[sequence]
            assert len(row) == start, "positions are consecutive"
            row += [Cell(token) for token in tokens]
            place += len(tokens)
            if wanted:
                self.rows[place] = following([cell.token for cell in row])
        assert len({id(cell) for row in self.held for cell in row}) <= self.cells
        if stopped():
            return False
        self.batches.append([(sequence, len(tokens)) for sequence, _, tokens, _ in added])
        return True

    def compute(self) -> bool:
        return self.evaluate(bool)

    def row(self, place: int) -> int:
        return self.rows[place]


class Apart(Context):
    """With a buffer for each sequence. As in llama.cpp a copy takes the whole of one, when a batch is evaluated."""

    apart = True

    def clear(self) -> None:
        self.copies, self._due = 0, list[tuple[int, int]]()
        self._buffers = [np.full(self.cells // self.sequences, -1) for _ in range(self.sequences)]
        self._lengths = [0] * self.sequences
        super().clear()

    def cut(self, sequence: int, length: int) -> None:
        self._lengths[sequence] = min(self._lengths[sequence], length)

    def share(self, source: int, target: int, length: int) -> None:
        assert self._lengths[source] >= length and source != target
        self._due.append((source, target))
        self._lengths[target] = length
        self.copies += 1

    def evaluate(self, stopped: Callable[[], bool]) -> bool:
        for source, target in self._due:
            self._buffers[target][:] = self._buffers[source]
        added, place, self.rows = self.added, -1, {}
        self.added, self._due = [], []
        assert [sequence for sequence, *_ in added] == sorted(sequence for sequence, *_ in added), "in rising order"
        for sequence, start, tokens, wanted in added:
            assert self._lengths[sequence] == start, "positions are consecutive"
            end = self._lengths[sequence] = start + len(tokens)
            self._buffers[sequence][start:end] = tokens
            place += len(tokens)
            if wanted:
                self.rows[place] = following(self._buffers[sequence][:end].tolist())
        if stopped():
            return False
        self.batches.append([(sequence, len(tokens)) for sequence, _, tokens, _ in added])
        return True


@dataclass(eq=False)
class Asked:
    prompt: np.ndarray
    max_tokens: int
    until: int = 99  # ends with this token
    made: list[int] = field(default_factory=list)
    begun: int | None = None
    ended: bool = False
    log: list[Asked] = field(default_factory=list)

    def begin(self, cached: int) -> None:
        assert self.begun is None
        self.begun = cached
        self.log.append(self)

    def next(self, row: int) -> int | None:
        assert not self.ended
        self.made.append(row)
        self.ended = row == self.until or len(self.made) == self.max_tokens
        return None if self.ended else row

    def expected(self) -> list[int]:
        tokens, made = self.prompt.tolist(), list[int]()
        while len(made) < self.max_tokens and (not made or made[-1] != self.until):
            made.append(following(tokens + made))
        return made


def asked(prompt: Sequence[int], max_tokens: int = 4, **values: object) -> Asked:
    return Asked(np.array(prompt, np.int32), max_tokens, **values)  # type: ignore[arg-type]


def batching(context: Context, keep: int = 0) -> Batching[Asked]:
    return Batching(context, keep=keep)  # type: ignore[arg-type]


def finished(running: Batching[Asked], steps: int = 1_000) -> int:
    """Steps until nothing is left to do."""
    for count in range(steps):
        if not running.pending:
            return count
        assert running.step()
    raise AssertionError("it does not end")


PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=9)


def in_a_group(context: Context, count: int) -> Callable[[int, int, int, int], list[int]]:
    """Evaluates a token and up to `count` in all that follow; it does not know where an answer ends."""

    def evaluate(sequence: int, position: int, token: int, most: int) -> list[int]:
        found: list[int] = []
        while len(found) < min(count, most):
            place = context.add(sequence, position + len(found), np.array([token], np.int32), wanted=True)
            assert context.evaluate(lambda: False)
            token = context.row(place)
            found.append(token)
        return found

    return evaluate


def test_the_tokens_of_an_answer_that_is_alone_may_come_in_groups() -> None:
    for context in (Context(100, 2, 16), Apart(100, 2, 16)):
        running, groups = batching(context), 0
        first, second = asked([1, 2, 3], 20), asked([1, 2, 4], 20)
        running.add(first)
        while running.pending:
            size = running.follow(in_a_group(context, 4), Asked.next) or running.step()
            groups += size == 4
            if groups == 2 and second.made == []:
                running.add(second)
                assert running.follow(in_a_group(context, 4), Asked.next) == 0, "another waits"
                while not second.made:
                    running.step()
                assert running.follow(in_a_group(context, 4), Asked.next) == 0, "two are under way"
        assert (first.made, second.made) == (first.expected(), second.expected())
        assert groups > 2


@pytest.mark.parametrize("apart", [False, True])
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_any_schedule_gives_the_answers_of_one_after_the_other(data: st.DataObject, apart: bool) -> None:
    sequences = data.draw(st.integers(1, 4))
    batch = data.draw(st.integers(sequences, 12))
    context = (
        Apart(14 * sequences, sequences, batch)
        if apart
        else Context(data.draw(st.integers(14, 40)), sequences, batch)
    )
    running = batching(context, data.draw(st.integers(0, 30)))
    running._places.worth = data.draw(st.integers(1, 4)) if apart else 1  # prompts are short here
    log, everyone, dropped = list[Asked](), list[Asked](), set[int]()
    interrupted = False
    for _ in range(data.draw(st.integers(1, 25))):
        for _ in range(data.draw(st.integers(0, 2))):
            until = data.draw(st.sampled_from([2, 99]))
            everyone.append(asked(data.draw(PROMPTS), data.draw(st.integers(1, 6)), until=until, log=log))
            running.add(everyone[-1])
        if everyone and data.draw(st.integers(0, 5)) == 0:
            gone = data.draw(st.integers(0, len(everyone) - 1))
            dropped.add(gone)
            running.drop(everyone[gone])
        interrupted = data.draw(st.integers(0, 5)) == 0
        if data.draw(st.booleans()):
            running.follow(in_a_group(context, data.draw(st.integers(0, 5))), Asked.next)
        before = {each: len(each.made) for each in log if each.made and not each.ended}
        done = running.step(lambda: interrupted, data.draw(st.integers(1, 12)))  # noqa: B023
        for each, count in before.items():
            gone_on = len(each.made) == count + (done is not None)
            assert gone_on or everyone.index(each) in dropped, "each answer gets a token at every step"
    finished(running)
    assert log == [each for each in everyone if each in log], "first come first served"
    for number, each in enumerate(everyone):
        expected = each.expected()
        if number in dropped:
            assert each.made == expected[: len(each.made)]
        else:
            assert each.made == expected


def test_answers_that_are_apart_close_up_when_one_between_them_ends() -> None:
    context = Apart(400, 4, 64)
    running = batching(context)
    everyone = [asked([number] * 40, tokens) for number, tokens in enumerate((9, 3, 9, 5))]
    for each in everyone:
        running.add(each)
    finished(running)
    assert [each.made for each in everyone] == [each.expected() for each in everyone]
    for batch in context.batches:
        sequences = [sequence for sequence, _ in batch]
        assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
    assert context.copies == 3, "the fourth into the second's place; then the third, and what the fourth has left"


def test_apart_what_an_answer_leaves_is_copied_for_those_that_begin_alike() -> None:
    context, system = Apart(1_000, 4, 64), [1] * 40
    running = batching(context)
    first = asked([*system, 2], 1)
    running.add(first)
    finished(running)
    turn, other, short = asked([*system, 2, 3], 3), asked([*system, 4], 3), asked([1] * 20, 3)
    for each in (turn, other, short):
        running.add(each)
    finished(running)
    assert [each.begun for each in (turn, other, short)] == [41, 40, 0]
    assert [each.made for each in (turn, other, short)] == [each.expected() for each in (turn, other, short)]
    assert context.copies == 1, "the turn goes on where its beginning lies; for a short one a copy does not pay"


def test_apart_what_one_has_left_is_not_cut_for_another_while_there_is_room() -> None:
    context, system = Apart(1_000, 3, 64), [1] * 40
    running = batching(context)
    talks = [asked([*system, *[number] * 40], 2) for number in (2, 3)]
    turns = [asked([*system, *[number] * 40, 8], 2) for number in (2, 3)]
    for each in (*talks, *turns):
        running.add(each)
        finished(running)
    assert [each.begun for each in (*talks, *turns)] == [0, 40, 80, 80]
    assert all(each.made == each.expected() for each in (*talks, *turns))


def test_apart_what_one_has_left_is_copied_away_when_another_moves_into_its_place() -> None:
    context = Apart(1_600, 8, 64)
    running = batching(context)
    talks = [asked([number] * 40, tokens) for number, tokens in ((1, 30), (2, 2), (3, 30))]
    for each in talks:
        running.add(each)
    finished(running)
    turn = asked([2] * 40 + talks[1].made + [1], 2)
    running.add(turn)
    finished(running)
    assert turn.begun == 41 and turn.made == turn.expected()


def test_a_common_beginning_is_evaluated_once_also_when_all_come_at_once() -> None:
    context, system = Context(200, 4, 16), [1] * 40
    running = batching(context)
    everyone = [asked([*system, 2, number], 3) for number in (1, 2, 3)]
    for each in everyone:
        running.add(each)
    finished(running)
    assert [each.begun for each in everyone] == [0, 41, 41]
    assert sum(count for batch in context.batches for _, count in batch) == 42 + 1 + 1 + 3 * 2


def test_what_an_answer_leaves_is_the_beginning_of_the_next_turn() -> None:
    context = Context(100, 2, 16)
    running = batching(context, keep=50)
    first = asked([1, 2, 3, 4], 3)
    running.add(first)
    finished(running)
    turn = asked([1, 2, 3, 4, *first.made, 8, 9], 2)
    other = asked([1, 2, 9, 9], 2)
    for each in (turn, other):
        running.add(each)
        finished(running)
    assert (turn.begun, other.begun) == (4 + 2, 2)  # the last token of an answer is not evaluated
    assert (turn.made, other.made) == (turn.expected(), other.expected())


def test_what_is_kept_is_bounded_and_the_longest_unused_goes_first() -> None:
    context = Context(100, 4, 32)
    running = batching(context, keep=25)
    for first in (5, 6, 7):
        running.add(asked([first] * 10, 1))
        finished(running)
    again = [asked([first] * 10, 1) for first in (6, 5)]
    for each in again:
        running.add(each)
        finished(running)
    assert [each.begun for each in again] == [9, 0]


def test_prompts_are_evaluated_in_parts_beside_answers_and_in_turn() -> None:
    context = Context(300, 3, 64)
    running = batching(context)
    answer, long, short = asked([1], 30), asked([2] * 40, 1), asked([3] * 4, 1)
    running.add(answer)
    running.step()
    running.add(long)
    running.add(short)
    for _ in range(5):
        assert running.step(prompts=8) == 9
    assert long.ended and not short.begun and len(answer.made) == 6
    running.step(prompts=8)
    assert short.ended and len(answer.made) == 7


def test_dropped_answers_free_their_sequence_at_once() -> None:
    context = Context(100, 1, 8)
    running = batching(context)
    first, second, third = asked([1] * 20, 30), asked([2] * 20, 30), asked([3], 1)
    for each in (first, second, third):
        running.add(each)
    running.step()
    running.drop(second)
    running.drop(first)
    running.drop(first)
    assert running.running == 0
    assert running.step() == 1 and third.ended and not running.pending


def test_after_an_error_all_is_forgotten_and_the_waiting_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(30, 2, 8)
    running = batching(context, keep=30)
    everyone = [asked([number] * 5, 4) for number in range(3)]
    for each in everyone:
        running.add(each)
    running.step()

    def fail(stopped: object) -> bool:
        raise EngineError("no")

    with monkeypatch.context() as patched:
        patched.setattr(context, "evaluate", fail)
        with pytest.raises(EngineError):
            running.step(bool)
    assert running.clear() == everyone[:2]
    finished(running)
    assert everyone[2].made == everyone[2].expected()
