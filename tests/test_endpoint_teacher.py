"""A server as a teacher: many requests at once, each billed once, within a rate and a budget."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier, Event

import loopback
import pytest
from biller import Biller, reply
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Exchange, Loopback
from teachers import requests_of

from edge_sdk.errors import (
    BudgetError,
    ConfigError,
    OfflineError,
    RemoteRejectedError,
    RemoteTimeoutError,
    RemoteUnreachableError,
)
from edge_sdk.fallback import ledger
from edge_sdk.fallback.budget import Budget, Prices, Spent
from edge_sdk.records import Message
from quantize.teachers.endpoint_teacher import EndpointTeacher
from quantize.teachers.kept import Kept
from quantize.teachers.rate import Rate, Window
from quantize.teachers.teacher import Reply, Request

PRICES = Prices.parse("1000/10000")  # a thousandth a token in, a hundredth out


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    with Kept(tmp_path / "replies.db") as kept:
        yield kept


def spent(kept: Kept) -> Spent:
    with kept.ledger.reading() as sql:
        return ledger.spent(sql, 0.0)


def test_a_reply_has_text_counts_logprobs_and_cost(kept: Kept) -> None:
    with Biller() as server:
        teacher = EndpointTeacher(server.url, "m", ledger=kept.ledger, prices=PRICES, key=lambda: "sk-1")
        found = dict(teacher.replies(requests_of("a", "b")))
    assert found == {at: Reply(text, "stop", 20, 2, (-0.25, -0.25), 0.04) for at, text in enumerate("AB")}
    assert spent(kept) == Spent(80_000, 44, 2)
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer sk-1"}


def test_what_decides_a_reply_is_sent(kept: Kept) -> None:
    request = Request((Message("user", "a"),), max_tokens=7, temperature=0.5, seed=3, stop=("\n",))
    with Biller() as server:
        list(EndpointTeacher(server.url, "m", ledger=kept.ledger).replies([request]))
        list(EndpointTeacher(server.url, "m", ledger=kept.ledger, logprobs=False).replies(requests_of("a")))
    sampled, greedy = (request.json for request in server.requests)
    assert (sampled["max_tokens"], sampled["temperature"], sampled["seed"]) == (7, 0.5, 3)
    assert sampled["stop"] == ["\n"] and sampled["logprobs"] is True
    assert not {"seed", "stop", "logprobs"} & greedy.keys()


def test_as_many_requests_as_wanted_are_under_way_and_no_more(kept: Kept) -> None:
    together = Barrier(4, timeout=20)
    with Biller(lambda number, when, exchange: together.wait() and None if when == "before" else None) as server:
        teacher = EndpointTeacher(server.url, "m", ledger=kept.ledger, concurrency=4)
        found = dict(teacher.replies(requests_of(*map(str, range(12)))))
    assert len(found) == 12 and server.most_at_once == 4 and set(server.billed.values()) == {1}


def test_no_request_is_sent_before_the_one_whose_place_it_takes_was_taken_up(kept: Kept) -> None:
    with Biller() as server:
        teacher = EndpointTeacher(server.url, "m", ledger=kept.ledger, concurrency=2)
        for taken, _ in enumerate(teacher.replies(requests_of(*map(str, range(8)))), 1):
            server.join()
            assert len(server.requests) <= taken + 1


# --- failures ---------------------------------------------------------------------------------------


def scripted(*behaviours: loopback.Behaviour) -> Loopback:
    return Loopback(*behaviours)


def served(exchange: Exchange) -> None:
    exchange.send(reply("served"))


def test_what_was_not_served_is_asked_again_after_the_pause_that_the_server_wants(kept: Kept) -> None:
    with scripted(
        loopback.answer(429, "{}", Retry_After="0"), loopback.answer(503, "{}", Retry_After="1"), served
    ) as server:
        teacher = EndpointTeacher(server.url, "m", ledger=kept.ledger, concurrency=1)
        found = dict(teacher.replies(requests_of("a")))
    assert found[0].text == "served" and len(server.requests) == 3 and not teacher.failures
    assert spent(kept).calls == 1


def test_a_server_that_wants_more_patience_than_there_is_ends_the_run(kept: Kept) -> None:
    with scripted(loopback.answer(429, '{"error": "slow down"}', Retry_After="3000")) as server:
        teacher = EndpointTeacher(server.url, "m", ledger=kept.ledger, concurrency=1)
        assert list(teacher.replies(requests_of("a"))) == []
    assert isinstance(teacher.failures[0].error, RemoteRejectedError) and "slow down" in str(
        teacher.failures[0].error
    )


@pytest.mark.parametrize(
    "broken", [loopback.answer(500, "{}"), loopback.reset(loopback.head(), loopback.delta("par"))]
)
def test_what_may_have_been_billed_is_asked_again_only_of_a_server_that_bills_once(
    kept: Kept, broken: Callable[[Exchange], None]
) -> None:
    with scripted(broken, served) as server:
        teacher = EndpointTeacher(server.url, "m", ledger=kept.ledger)
        assert list(teacher.replies(requests_of("a"))) == [] and len(server.requests) == 1
        assert teacher.failures[0].request == requests_of("a")[0]
    with scripted(broken, served) as server:
        teacher = EndpointTeacher(server.url, "m", ledger=kept.ledger, idempotent=True)
        assert dict(teacher.replies(requests_of("a")))[0].text == "served"
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert len(keys) == 2 and len(set(keys)) == 1


def test_one_bad_request_does_not_stop_the_others(kept: Kept) -> None:
    def refuse(exchange: Exchange) -> None:
        bad = exchange.request.json["messages"][-1]["content"] == "bad"
        (loopback.answer(400, '{"error": {"message": "too long"}}') if bad else served)(exchange)

    with scripted(refuse) as server:
        teacher = EndpointTeacher(server.url, "m", ledger=kept.ledger)
        found = dict(teacher.replies(requests_of("a", "bad", "c")))
    assert sorted(found) == [0, 2] and "too long" in str(teacher.failures[0].error)
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [401, 404])
def test_a_server_that_will_serve_nothing_is_asked_no_more(kept: Kept, status: int) -> None:
    with scripted(loopback.answer(status, "{}")) as server:
        teacher = EndpointTeacher(server.url, "m", ledger=kept.ledger, concurrency=1)
        with pytest.raises(RemoteRejectedError, match=str(status)):
            list(teacher.replies(requests_of(*map(str, range(9)))))
    assert len(server.requests) == 1 and spent(kept).calls == 0


def test_the_fifth_failure_in_a_row_ends_the_run(kept: Kept) -> None:
    with scripted(loopback.answer(400, "{}")) as server:
        teacher = EndpointTeacher(server.url, "m", ledger=kept.ledger, concurrency=1)
        with pytest.raises(RemoteRejectedError):
            list(teacher.replies(requests_of(*map(str, range(9)))))
    assert len(server.requests) == 5 == len(teacher.failures)


def test_a_server_that_is_not_there_is_an_error(kept: Kept) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    teacher = EndpointTeacher(f"http://127.0.0.1:{port}", "m", ledger=kept.ledger, patience=0)
    with pytest.raises(RemoteUnreachableError, match="nothing was sent"):
        list(teacher.replies(requests_of(*map(str, range(9)))))


def test_a_reply_that_does_not_come_within_the_deadline_is_a_failure(kept: Kept) -> None:
    with scripted(loopback.hang()) as server:
        teacher = EndpointTeacher(server.url, "m", ledger=kept.ledger, deadline=0.3)
        assert list(teacher.replies(requests_of("a"))) == []
    assert isinstance(teacher.failures[0].error, RemoteTimeoutError)


def test_cancelling_hangs_up_without_an_error(kept: Kept) -> None:
    cancel = Event()

    def hang(exchange: Exchange) -> None:
        cancel.set()
        exchange.pause(30)

    with scripted(hang) as server:
        teacher = EndpointTeacher(server.url, "m", ledger=kept.ledger, concurrency=2)
        assert list(teacher.replies(requests_of("a", "b", "c"), cancel)) == []
        server.join()
        assert server.hang_ups >= 1 and len(server.requests) <= 2


# --- budget and rate --------------------------------------------------------------------------------


def test_nothing_is_sent_that_the_budget_has_no_room_for(kept: Kept) -> None:
    requests = requests_of(*map(str, range(9)))
    with Biller() as server:
        teacher = EndpointTeacher(server.url, "m", ledger=kept.ledger, budget=Budget.parse("3calls/total"))
        with pytest.raises(BudgetError, match="total budget"):
            kept.ask(teacher, requests)
        assert kept.summary().replies == 3 == sum(server.billed.values())
        with pytest.raises(BudgetError):
            kept.ask(teacher, requests)
    assert sum(server.billed.values()) == 3


def test_a_reservation_that_turns_out_too_high_makes_room_again(kept: Kept) -> None:
    """At full price (each byte of the request a token, and `max_tokens`) two calls do not fit at once."""
    with Biller() as server:
        teacher = EndpointTeacher(
            server.url, "m", ledger=kept.ledger, budget=Budget.parse("1.20/total"), prices=PRICES, concurrency=4
        )
        replies = kept.ask(teacher, requests_of(*map(str, range(6))))
    assert all(replies) and spent(kept).micro == 6 * 40_000


def test_a_budget_in_money_needs_prices(kept: Kept) -> None:
    with pytest.raises(ConfigError, match="no prices"):
        EndpointTeacher("http://127.0.0.1:1", "m", ledger=kept.ledger, budget=Budget.parse("1/total"))


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60)), max_size=40),
    st.integers(1, 5),
    st.integers(50, 100),
)
@settings(max_examples=40, deadline=None)
def test_no_minute_has_more_than_the_rate(steps: list[tuple[int, int]], requests: int, tokens: int) -> None:
    now, sent = 0.0, []
    window = Window(Rate(requests, tokens), clock=lambda: now)
    for pause, size in steps:
        now += pause
        while seconds := window.take(size):
            assert 0 < seconds <= 60
            now += seconds
        sent.append((now, size))
        minute = [count for at, count in sent if at > now - 60]
        assert len(minute) <= requests and (sum(minute) <= tokens or len(minute) == 1)


# --- what cannot be used ----------------------------------------------------------------------------


def test_options_that_cannot_be_used_are_refused(kept: Kept) -> None:
    for options in ({"concurrency": 0}, {"deadline": 0.0}, {"patience": float("nan")}):
        with pytest.raises(ConfigError):
            EndpointTeacher("http://127.0.0.1:1", "m", ledger=kept.ledger, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="without encryption"):
        EndpointTeacher("http://192.0.2.1", "m", ledger=kept.ledger)
    with pytest.raises(ConfigError):
        Rate(requests=0)


def test_offline_nothing_is_asked(kept: Kept) -> None:
    with Biller() as server:
        teacher = EndpointTeacher(server.url, "m", ledger=kept.ledger, offline=True)
        with pytest.raises(OfflineError):
            list(teacher.replies(requests_of("a", "b")))
    assert not server.requests


def test_hostile_messages_are_sent_as_text(kept: Kept) -> None:
    with Biller() as server:
        teacher = EndpointTeacher(server.url, "m", ledger=kept.ledger)
        assert (
            len(
                list(
                    teacher.replies(
                        [
                            *requests_of("\ud800", "\0\x1b[31m", ""),
                        ]
                    )
                )
            )
            >= 2
        )
        assert list(teacher.replies([])) == []
