"""One POST within limits: against a real server that is slow, silent, endless, broken or gone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from threading import Event, Timer
from typing import Any

import pytest
from loopback import Behaviour, Loopback, answer, drip, hang, head, raw, reset
from loopback import Exchange as Visit

from edge_sdk.errors import RemoteProtocolError, RemoteTimeoutError, RemoteUnreachableError
from edge_sdk.fallback.exchange import Cancelled, Exchange, Head, Limits

PATIENT = Limits(connect=10, first_byte=20, silence=20, total=30, body_bytes=10_000)


def post(url: str, limits: Limits = PATIENT, cancel: Event | None = None) -> tuple[Head, bytes]:
    exchange = Exchange(url, {"X-Test": "1"}, b"question", limits, cancel=cancel)
    try:
        return exchange.head(), b"".join(exchange.chunks())
    finally:
        exchange.close()


def dripping_head() -> Behaviour:
    return drip([b"HTTP/1.1 200 OK\r\n", *[f"X-{n}: 1\r\n".encode() for n in range(100)], b"\r\nlate"], every=0.1)


def dripping_body() -> Behaviour:
    return drip([head(), *[b"x"] * 100], every=0.1)


def test_a_reply_comes_whole_with_status_and_headers() -> None:
    with Loopback(raw(head(201, "Text/Plain; charset=utf-8"), b"ab", b"cd")) as server:
        reply, body = post(server.url + "/here")
    assert (reply.status, reply.media_type, body) == (201, "text/plain", b"abcd")
    [request] = server.requests
    assert (request.method, request.path, request.body, request.headers["x-test"]) == (
        "POST",
        "/here",
        b"question",
        "1",
    )


def test_refused_means_nothing_was_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RemoteUnreachableError, match=r"nothing was sent.*refused"):
        post(f"http://127.0.0.1:{port}")


def test_unknown_host_means_nothing_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_host(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    with pytest.raises(RemoteUnreachableError, match="Name or service not known"):
        post("http://server.invalid")


def test_a_hanging_name_server_does_not_hold_the_caller_and_nothing_is_sent_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered, asked, look_up = Event(), Event(), socket.getaddrinfo

    def hanging(*arguments: Any, **options: Any) -> Any:
        asked.set()
        assert answered.wait(30)
        return look_up(*arguments, **options)

    with Loopback(answer(200, "late")) as server:
        monkeypatch.setattr(socket, "getaddrinfo", hanging)
        with pytest.raises(RemoteUnreachableError, match=r"within 0.3 s, nothing was sent"):
            post(server.url, replace(PATIENT, connect=0.3))
        assert asked.is_set()
        answered.set()
        for _ in range(1000):  # the abandoned thread does connect now, and must leave it at that
            if not server.connections:
                Event().wait(0.01)
        assert server.connections == 1
        server.join()
    assert bytes(server.received) == b"" and server.requests == []


def test_tls_that_fails_means_nothing_was_sent() -> None:
    with Loopback(answer(200)) as server, pytest.raises(RemoteUnreachableError, match="nothing was sent"):
        post(f"https://127.0.0.1:{server.port}")
    assert b"question" not in server.received and server.requests == []


@pytest.mark.parametrize(
    ("behaviour", "limits", "words"),
    [
        (hang(), {"first_byte": 0.3}, "did not begin to answer within 0.3 s"),
        (hang(head()), {"first_byte": 0.3}, "did not begin to answer within 0.3 s"),
        (dripping_head(), {"first_byte": 0.5}, "did not begin to answer within 0.5 s"),
        (hang(head(), b"some"), {"silence": 0.3}, "fell silent for 0.3 s"),
        (hang(), {"total": 0.5}, "deadline of 0.5 s"),
        (dripping_head(), {"total": 0.5}, "deadline of 0.5 s"),
        (dripping_body(), {"total": 0.5}, "deadline of 0.5 s"),
    ],
    ids=[
        "silent",
        "silent-after-head",
        "head-drips",
        "falls-silent",
        "silent-total",
        "head-drips-total",
        "body-drips",
    ],
)
def test_each_limit_holds_although_the_reply_would_come(
    behaviour: Behaviour, limits: dict[str, float], words: str
) -> None:
    with Loopback(behaviour) as server:
        with pytest.raises(RemoteTimeoutError, match=words):
            post(server.url, replace(PATIENT, **limits))
        server.join()
    assert len(server.requests) == server.hang_ups == 1  # asked once, and hung up on


def test_within_bounds_the_body_alone() -> None:
    with Loopback(dripping_body()) as server:
        exchange = Exchange(server.url, {}, b"", PATIENT)
        assert exchange.head().status == 200
        with pytest.raises(RemoteTimeoutError):
            list(exchange.chunks(within=0.5))
        exchange.close()


def test_a_slow_reply_within_the_limits_comes_whole() -> None:
    with Loopback(drip([head(), *[b"ab"] * 5], every=0.05)) as server:
        assert post(server.url)[1] == b"ab" * 5


def endless(visit: Visit) -> None:
    visit.send(head())
    while True:
        visit.send(b"x" * 1000)


def test_a_flood_does_not_outlast_the_deadline() -> None:
    with Loopback(endless) as server:
        exchange = Exchange(server.url, {}, b"", replace(PATIENT, total=0.5, body_bytes=10**12))
        with pytest.raises(RemoteTimeoutError, match=r"deadline of 0.5 s"):
            for chunk in exchange.chunks():
                assert len(chunk) <= 65536  # so that a slow reader, too, looks at the clock
        exchange.close()


def test_a_late_reader_gets_a_whole_reply_but_no_part_of_an_unfinished_one() -> None:
    for behaviour, whole in ((raw(head(), b"all"), True), (hang(head(), b"part"), False)):
        with Loopback(behaviour) as server:
            exchange = Exchange(server.url, {}, b"", replace(PATIENT, total=0.8))
            exchange.head()
            Event().wait(0.9)  # the reader, not the server, is late
            if whole:
                assert b"".join(exchange.chunks()) == b"all"
            else:
                with pytest.raises(RemoteTimeoutError):
                    next(exchange.chunks())
            exchange.close()


def test_an_endless_body_is_bounded() -> None:
    with Loopback(endless) as server:
        with pytest.raises(RemoteProtocolError, match="larger than 10000 bytes"):
            post(server.url)
        server.join()
    assert server.hang_ups == 1


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (raw(), "disconnected without sending a response"),
        (reset(), "connection to the remote broke"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Le"), "connection to the remote broke"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"), "connection to the remote broke"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab"), "connection to the remote broke"),
        (reset(head(), b"ab"), "connection to the remote broke"),
        (raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "connection to the remote broke"),
        (raw(b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000), "connection to the remote broke"),
        (raw(b"\x00\xff" * 50), "connection to the remote broke"),
    ],
    ids=["no-reply", "reset", "cut-head", "cut-length", "cut-chunk", "reset-body", "ssh", "huge-head", "binary"],
)
def test_a_broken_reply_is_a_protocol_error_and_is_not_asked_for_again(behaviour: Behaviour, words: str) -> None:
    with Loopback(behaviour, answer(200, "a second try")) as server:
        with pytest.raises(RemoteProtocolError, match=words):
            post(server.url)
        server.join()
    assert len(server.requests) == server.connections == 1


def test_what_came_before_a_failure_comes_before_its_error() -> None:
    with Loopback(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\npart")) as server:
        exchange, taken = Exchange(server.url, {}, b"", PATIENT), b""
        exchange.head()
        with pytest.raises(RemoteProtocolError):
            for chunk in exchange.chunks():
                taken += chunk
        exchange.close()
    assert taken == b"part"


@pytest.fixture
def cancel() -> Iterator[Event]:
    """An event that is set soon after the test has begun."""
    event = Event()
    timer = Timer(0.2, event.set)
    timer.start()
    yield event
    timer.cancel()


@pytest.mark.parametrize("behaviour", [hang(), hang(head(), b"part")], ids=["before-head", "in-the-body"])
def test_cancel_hangs_up(behaviour: Behaviour, cancel: Event) -> None:
    with Loopback(behaviour) as server:
        with pytest.raises(Cancelled):
            post(server.url, cancel=cancel)
        server.join()
    assert server.hang_ups == 1


def test_close_hangs_up() -> None:
    with Loopback(hang(head(), b"part")) as server:
        exchange = Exchange(server.url, {}, b"", PATIENT)
        exchange.head()
        assert next(exchange.chunks()) == b"part"
        exchange.close()
        server.join()
    assert server.hang_ups == 1
    exchange.close()  # a second time does nothing
