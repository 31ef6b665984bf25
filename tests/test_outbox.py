from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge_sdk.errors import (
    BudgetError,
    ConfigError,
    EdgeError,
    OfflineError,
    RemoteError,
    RemoteProtocolError,
    RemoteRejectedError,
    RemoteUnreachableError,
)
from edge_sdk.fallback import outbox as outbox_module
from edge_sdk.fallback.outbox import LIFETIME, Outbox, Payload, Queued
from edge_sdk.records import Message, RemoteReply
from edge_sdk.storage.database import Database
from edge_sdk.storage.store import Store

PAYLOAD = Payload(
    (Message("system", "Be brief."), Message("user", "Who is NAME_1?")), 64, {"question": 14}, {"NAME": 1}
)
REPLY = RemoteReply("A poet.", "m", "stop", 9, 3, 1.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Database]:
    with Store.open(tmp_path / "s.db") as store:
        yield store.database


@pytest.fixture
def box(file: Database, clock: Clock) -> Outbox:
    return Outbox(file, clock)


class Sender:
    """Each question takes the next of the ends; the last one repeats."""

    def __init__(self, *ends: RemoteReply | BaseException) -> None:
        self._ends, self.sent = list(ends), list[Queued]()

    def __call__(self, item: Queued) -> RemoteReply:
        self.sent.append(item)
        end = self._ends.pop(0) if len(self._ends) > 1 else self._ends[0]
        if isinstance(end, BaseException):
            raise end
        return end


def allow(item: Queued) -> None:
    return None


def put(box: Outbox, number: int = 1) -> list[str]:
    return [box.put(PAYLOAD, policy="policy 1") for _ in range(number)]


def states(box: Outbox) -> list[str]:
    return [item.state for item in box.questions()]


def test_a_question_comes_back_as_it_was_put_and_is_sent_with_its_own_key(box: Outbox, clock: Clock) -> None:
    first, second = put(box, 2)
    item = box.questions()[0]
    assert (item.id, item.payload, item.policy, item.state) == (first, PAYLOAD, "policy 1", "queued")
    assert item.expires_at == clock.now + LIFETIME
    sender = Sender(REPLY)
    assert [(item.id, item.state, item.result) for item in box.flush(sender, allow)] == [
        (first, "answered", "A poet."),
        (second, "answered", "A poet."),
    ]
    assert len({item.idempotency_key for item in sender.sent}) == 2
    assert list(box.flush(sender, allow)) == []


def test_a_question_is_marked_before_it_is_sent(box: Outbox) -> None:
    put(box)
    seen: list[str] = []

    def send(item: Queued) -> RemoteReply:
        seen.extend(states(box))
        assert list(box.flush(Sender(REPLY), allow)) == [], "another process finds nothing to send"
        return REPLY

    assert [item.state for item in box.flush(send, allow)] == ["answered"]
    assert seen == ["sending"]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (RemoteProtocolError("cut off"), "unknown"),
        (RemoteRejectedError("broke", status=500), "unknown"),
        (RemoteError("something"), "unknown"),
        (RemoteRejectedError("too long", status=400), "failed"),
        (RemoteRejectedError("busy", status=429), "queued"),
        (RemoteRejectedError("wrong key", status=401), "queued"),
        (RemoteUnreachableError("no route"), "queued"),
        (BudgetError("nothing left"), "queued"),
        (OfflineError("offline"), "queued"),
    ],
)
def test_only_a_question_that_certainly_was_not_served_is_tried_again(
    box: Outbox, clock: Clock, error: EdgeError, state: str
) -> None:
    put(box)
    (ended,) = box.flush(Sender(error), allow)
    assert (ended.state, ended.result) == (state, str(error))
    clock.now += 61
    again = Sender(REPLY)
    list(box.flush(again, allow))
    assert len(again.sent) == (state == "queued")


def test_an_interrupted_call_is_never_sent_again(box: Outbox, clock: Clock) -> None:
    put(box)
    with pytest.raises(KeyboardInterrupt):
        list(box.flush(Sender(KeyboardInterrupt()), allow))
    clock.now += 3600
    assert list(box.flush(Sender(REPLY), allow, at_once=True)) == []
    assert states(box) == ["unknown"]


def test_what_a_dead_process_was_sending_is_never_sent_again(box: Outbox, file: Database, clock: Clock) -> None:
    (id,) = put(box)
    assert box._claim(id, at_once=False) is not None  # and the process dies
    clock.now += 3600
    sender = Sender(REPLY)
    assert list(box.flush(sender, allow, at_once=True)) == sender.sent == []
    assert states(box) == ["unknown"]


def test_tries_are_further_and_further_apart(box: Outbox, clock: Clock) -> None:
    put(box)
    pauses = []
    for _ in range(11):
        (ended,) = box.flush(Sender(RemoteRejectedError("busy", status=429)), allow)
        pauses.append(ended.next_try_at - clock.now)
        clock.now = ended.next_try_at - 1
        assert list(box.flush(Sender(REPLY), allow)) == []
        clock.now = ended.next_try_at
    assert pauses[:4] == [60, 120, 240, 480]
    assert pauses[-1] == pauses[-2] == 6 * 3600
    (ended,) = box.flush(Sender(REPLY), allow)
    assert (ended.state, ended.attempts) == ("answered", 12)


@pytest.mark.parametrize(
    "error",
    [RemoteUnreachableError("no route"), BudgetError("none left"), OfflineError("no"), ConfigError("no key")],
)
def test_what_would_stop_the_next_one_too_ends_the_flush(box: Outbox, error: EdgeError) -> None:
    put(box, 3)
    sender = Sender(error)
    assert len(list(box.flush(sender, allow))) == len(sender.sent) == 1
    assert [item.attempts for item in box.questions()] == [1, 0, 0]


def test_at_once_does_not_wait(box: Outbox) -> None:
    put(box)
    list(box.flush(Sender(RemoteUnreachableError("no route")), allow))
    assert list(box.flush(Sender(REPLY), allow)) == []
    assert [item.state for item in box.flush(Sender(REPLY), allow, at_once=True)] == ["answered"]


def refuse(item: Queued) -> str:
    return "the privacy mode is local_only"


def broken(item: Queued) -> str:
    raise RuntimeError("the policy file is gone")


@pytest.mark.parametrize("check", [refuse, broken])
def test_the_policy_is_asked_again_and_one_that_fails_lets_nothing_out(
    box: Outbox, check: Callable[[Queued], str]
) -> None:
    put(box, 2)
    sender = Sender(REPLY)
    ended = list(box.flush(sender, check))
    assert [item.state for item in ended] == ["queued", "queued"]
    assert all("local_only" in item.result or "nothing was sent" in item.result for item in ended)
    assert sender.sent == []


def test_a_question_that_is_too_old_is_dropped_with_its_text(box: Outbox, file: Database, clock: Clock) -> None:
    put(box)
    clock.now += LIFETIME
    sender = Sender(REPLY)
    assert list(box.flush(sender, allow, at_once=True)) == sender.sent == []
    (item,) = box.questions()
    assert (item.state, item.payload) == ("expired", None)
    with file.reading() as sql:
        assert sql.execute("SELECT payload FROM outbox").fetchall() == [("",)]


def test_a_cut_reply_is_no_answer(box: Outbox) -> None:
    put(box)
    (ended,) = box.flush(Sender(replace(REPLY, finish_reason="cancelled")), allow)
    assert (ended.state, ended.result) == ("unknown", "cancelled")


def test_questions_are_dropped_one_by_one_all_or_when_they_are_over(box: Outbox) -> None:
    first, second, third = put(box, 3)
    assert box.drop([first, "missing"]) == 1
    list(box.flush(Sender(REPLY, RemoteUnreachableError("no route")), allow))
    assert states(box) == ["answered", "queued"]
    assert box.purge() == 1
    assert [item.id for item in box.questions()] == [third]
    assert second != third
    assert box.drop() == 1
    assert box.questions() == []


def test_a_question_dropped_while_it_is_sent_does_not_come_back(box: Outbox) -> None:
    put(box)

    def send(item: Queued) -> RemoteReply:
        box.drop()
        return REPLY

    list(box.flush(send, allow))
    assert box.questions() == []


def test_a_payload_that_cannot_be_read_is_not_sent(box: Outbox, file: Database) -> None:
    put(box, 2)
    with file.writing() as sql:
        sql.execute("UPDATE outbox SET payload = '{\"messages\": 3}' WHERE rowid = 1")
    sender = Sender(REPLY)
    list(box.flush(sender, allow))
    assert states(box) == ["failed", "answered"]
    assert len(sender.sent) == 1


def test_a_full_outbox_takes_no_more(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "MOST", 2)
    put(box, 2)
    with pytest.raises(RemoteError, match="2 questions wait"):
        put(box)
