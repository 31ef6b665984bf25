"""Replies are asked for once, kept as they come, and paid for once, whenever the process is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import PIPE, Popen
from threading import Event

import pytest
from biller import Biller
from loopback import Exchange
from teachers import ScriptedTeacher, requests_of

from edge_sdk.errors import EdgeError, StoreDamagedError, StoreError
from quantize.teachers.kept import Kept
from quantize.teachers.teacher import Reply, Request


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "replies.db"


def test_what_was_asked_once_is_not_asked_again(path: Path) -> None:
    requests, first, second = requests_of("a", "b", "c"), ScriptedTeacher(), ScriptedTeacher()
    with Kept(path) as kept:
        replies = kept.ask(first, requests[:2])
    with Kept(path) as kept:
        again = kept.ask(second, requests)
    assert [reply and reply.text for reply in again] == ["A", "B", "C"]
    assert again[:2] == replies and second.asked == requests[2:]
    assert replies[0] == Reply("A", "stop", 3, 2, (-0.1, -1 / 3), 0.25)


def test_equal_requests_are_asked_once(path: Path) -> None:
    teacher = ScriptedTeacher()
    with Kept(path) as kept:
        replies = kept.ask(teacher, requests_of("a", "b", "a"))
    assert [reply and reply.text for reply in replies] == ["A", "B", "A"] and len(teacher.asked) == 2


def test_another_teacher_or_request_is_another_question(path: Path) -> None:
    other = ScriptedTeacher(str.lower)
    other.fingerprint = "another"
    (request,) = requests_of("Ab")
    sample = Request(request.messages, temperature=1.0, seed=1)
    with Kept(path) as kept:
        assert [reply and reply.text for reply in kept.ask(ScriptedTeacher(), [request, sample])] == ["AB", "AB"]
        assert [reply and reply.text for reply in kept.ask(other, [request])] == ["ab"]
        assert kept.summary().replies == 3 and kept.summary("another").replies == 1


def test_what_came_before_an_error_is_kept(path: Path) -> None:
    requests, teacher = requests_of("a", "b", "c"), ScriptedTeacher()
    with Kept(path) as kept:
        with pytest.raises(EdgeError, match="has left"):
            kept.ask(ScriptedTeacher(fails_after=2), requests)
        assert all(kept.ask(teacher, requests))
    assert teacher.asked == requests[:1]


def test_a_cancelled_run_tells_what_is_missing(path: Path) -> None:
    requests, cancel, seen = requests_of("a", "b", "c"), Event(), []

    def progress(done: float, total: float | None, detail: str) -> None:
        seen.append((done, total))
        if done == 1:
            cancel.set()

    with Kept(path) as kept:
        replies = kept.ask(ScriptedTeacher(), requests, progress, cancel)
    assert [reply is None for reply in replies] == [True, True, False]
    assert seen == [(0, 3), (1, 3)]


def test_no_requests_ask_nothing(path: Path) -> None:
    teacher = ScriptedTeacher()
    with Kept(path) as kept:
        assert kept.ask(teacher, []) == [] and kept.summary().replies == 0
    assert not teacher.asked


def test_the_summary_adds_up(path: Path) -> None:
    with Kept(path) as kept:
        kept.ask(ScriptedTeacher(), requests_of("a", "b"))
        summary = kept.summary()
    assert (summary.replies, summary.prompt_tokens, summary.completion_tokens, summary.cost) == (2, 6, 4, 0.5)
    assert summary.seconds > 0


def test_text_that_no_file_can_hold_is_the_same_now_and_later(path: Path) -> None:
    with Kept(path) as kept:
        requests = requests_of("\ud800 and \0", "é")
        assert kept.ask(ScriptedTeacher(str), requests) == kept.ask(ScriptedTeacher(str), requests)


# --- killed -----------------------------------------------------------------------------------------

AT_ONCE = 3
QUESTIONS = [f"question {number}" for number in range(24)]


class Labeller:
    """Runs a labeller against a biller, and kills it around the request that was chosen."""

    def __init__(self, path: Path, *, sabotage: bool = False) -> None:
        self._path, self._sabotage = path, sabotage
        self._known, self._pid, self._target, self._when, self._delay = Event(), 0, 0, "", 0.0
        self.biller = Biller(self._meanwhile)

    def __enter__(self) -> Labeller:
        program = Path(__file__).with_name("killed_labeller.py")
        self._program = Popen([sys.executable, str(program)], stdin=PIPE, stdout=PIPE, text=True)
        self.biller.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.biller.__exit__()
        self._program.communicate()

    def run(self, *, target: int = 0, when: str = "", delay: float = 0.0) -> int:
        """The labeller's exit status; it is killed before or after the reply to the `target`th request, if any."""
        self._known.clear()
        self._target, self._when, self._delay = target and target + len(self.biller.requests), when, delay
        order = {"path": str(self._path), "url": self.biller.url, "questions": QUESTIONS, "at_once": AT_ONCE}
        assert self._program.stdin and self._program.stdout
        self._program.stdin.write(json.dumps({**order, "sabotage": self._sabotage}) + "\n")
        self._program.stdin.flush()
        self._pid = int(self._program.stdout.readline().split()[1])
        self._known.set()
        status = int(self._program.stdout.readline().split()[1])
        self.biller.join()
        return status

    def kept(self) -> set[str]:
        with Kept(self._path) as kept:
            replies = kept.ask(Deaf(self.biller.url), requests_of(*QUESTIONS))
        return {question for question, reply in zip(QUESTIONS, replies, strict=True) if reply}

    def _meanwhile(self, number: int, when: str, exchange: Exchange) -> None:
        if number == self._target and when == self._when:
            self._known.wait(20)
            time.sleep(self._delay)
            os.kill(self._pid, signal.SIGKILL)


class Deaf(ScriptedTeacher):
    """Has the name of the biller's teacher, and answers nothing."""

    def __init__(self, url: str) -> None:
        super().__init__(fails_after=None)
        self.fingerprint = f"endpoint {url}/v1/chat/completions m"

    def replies(self, requests: Sequence[Request], cancel: Event | None = None) -> Iterator[tuple[int, Reply]]:
        return iter(())


def check_kills(path: Path, seed: int, *, sabotage: bool = False) -> None:
    """Kill a labeller at random points until it is done: what was lost and what was asked twice, each time."""
    pick = random.Random(seed)
    with Labeller(path, sabotage=sabotage) as labeller:
        billed = labeller.biller.billed
        repeated = 0
        while True:
            before, had = dict(billed), labeller.kept() if path.exists() else set()
            status = labeller.run(
                target=pick.randint(1, 12), when=pick.choice(["before", "after"]), delay=pick.choice([0, 0, 0.002])
            )
            kept = labeller.kept()
            assert had <= kept
            assert all(billed[question] == before[question] for question in had), "paid for twice"
            lost = [
                question
                for question in billed
                if billed[question] > before.get(question, 0) and question not in kept
            ]
            assert len(lost) <= AT_ONCE, f"{len(lost)} replies that were paid for are lost"
            repeated += len(lost)
            if not status:
                break
        assert labeller.run() == 0
        assert labeller.kept() == set(QUESTIONS)
        assert sum(billed.values()) <= len(QUESTIONS) + repeated
        assert len(labeller.biller.by_key) == len(QUESTIONS)  # a server that bills a key once has billed each once


def test_a_labeller_that_is_killed_loses_what_was_in_flight_and_pays_for_nothing_twice(path: Path) -> None:
    check_kills(path, seed=1)


@pytest.mark.campaign
def test_killed_at_hundreds_of_points(tmp_path: Path) -> None:
    for seed in range(100, 130):
        check_kills(tmp_path / f"{seed}.db", seed)


def test_sabotage_a_labeller_that_hoards_replies_is_caught(path: Path) -> None:
    with pytest.raises(AssertionError, match="are lost"):
        for seed in range(10):
            check_kills(path.with_name(f"{seed}.db"), seed, sabotage=True)


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + bytes(5000)])
def test_a_file_that_is_none_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreDamagedError, match=r"move it away and ask again"):
        Kept(path)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as sql:
        sql.execute("CREATE TABLE t (x)")
    sql.close()
    with pytest.raises(StoreError, match="another program"):
        Kept(path)


def test_damage_inside_is_found_when_the_file_is_opened(path: Path) -> None:
    with Kept(path) as kept:
        kept.ask(ScriptedTeacher(lambda text: text * 50), requests_of(*(f"question {n}" for n in range(200))))
    content = bytearray(path.read_bytes())
    for page in range(4, len(content) // 4096, 3):
        content[page * 4096 : page * 4096 + 64] = bytes(range(64))
    path.write_bytes(content)
    with pytest.raises(StoreDamagedError):
        Kept(path)


def test_a_row_that_makes_no_sense_is_damage(path: Path) -> None:
    with Kept(path) as kept:
        kept.ask(ScriptedTeacher(), requests_of("a"))
    with sqlite3.connect(path) as sql:
        sql.execute("UPDATE replies SET logprobs = x'010203'")
    sql.close()
    with Kept(path) as kept, pytest.raises(StoreDamagedError, match="no sense"):
        kept.ask(ScriptedTeacher(), requests_of("a"))


def test_a_path_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        Kept(tmp_path)
