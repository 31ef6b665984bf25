"""The event-stream parser: the standard's rules, every split, an oracle, hostile bytes, bounds."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import RemoteProtocolError
from edge_sdk.fallback.sse import EventParser, ServerSentEvent

GOLDEN = (
    b"\xef\xbb\xbfdata: first\n\n"
    b": keep-alive\r\n\r\n"
    b"event: error\rdata: {\"a\":\rdata:  1}\r\r"
    b"id: 7\r\nretry: 10\r\ndata: caf\xc3\xa9 \xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\x8e\x89\r\n\r\n"
    b"data: two\r\ndata: lines\r\n\r\n"
    b"data\n\n"
    b"unknown: x\nevent: lost\n\n"
    b"data:[DONE]\n\n"
    b"data: never closed\n"
)  # fmt: skip
GOLDEN_EVENTS = [
    ServerSentEvent("first"),
    ServerSentEvent('{"a":\n 1}', "error"),
    ServerSentEvent("café 日本 🎉"),
    ServerSentEvent("two\nlines"),
    ServerSentEvent(""),
    ServerSentEvent("[DONE]"),
]


def parse(*parts: bytes, **limits: int) -> list[ServerSentEvent]:
    parser = EventParser(**limits)
    return [event for part in parts for event in parser.push(part)]


def oracle(stream: bytes) -> list[ServerSentEvent]:
    """The standard's grammar on the whole stream at once, written independently of the parser."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    events, data, kind = [], [], ""
    for line in re.split("\r\n|\r|\n", text)[:-1]:
        if line == "":
            if data:
                events.append(ServerSentEvent("\n".join(data), kind or "message"))
            data, kind = [], ""
        elif match := re.fullmatch(r"(data|event)(?:: ?(.*))?", line, re.DOTALL):
            if match[1] == "data":
                data.append(match[2] or "")
            else:
                kind = match[2] or ""
    return events


def test_golden_stream() -> None:
    assert parse(GOLDEN) == GOLDEN_EVENTS == oracle(GOLDEN)


def test_every_split_in_two_gives_the_same_events() -> None:
    for at in range(len(GOLDEN) + 1):
        assert parse(GOLDEN[:at], b"", GOLDEN[at:]) == GOLDEN_EVENTS, at


def test_byte_by_byte_gives_the_same_events() -> None:
    assert parse(*(GOLDEN[at : at + 1] for at in range(len(GOLDEN)))) == GOLDEN_EVENTS


@given(cuts=st.lists(st.integers(0, len(GOLDEN)), max_size=40))
def test_any_split_gives_the_same_events(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(GOLDEN)]
    assert parse(*(GOLDEN[a:b] for a, b in itertools.pairwise(edges))) == GOLDEN_EVENTS


PIECES = st.sampled_from(
    [b"data: ", b"data:", b"data", b"event: ", b"event", b":", b"id: 1", b"\n", b"\r", b"\r\n", b"\n\n",
     b"\xef\xbb\xbf", "é日🎉".encode(), b"{}", b" ", b"\x00", b"\x0b\x0c\x85", b"\xff", b"\xc3", b"x"]
)  # fmt: skip


@given(parts=st.lists(st.one_of(PIECES, st.binary(max_size=6)), max_size=40))
def test_agrees_with_the_whole_stream_grammar(parts: list[bytes]) -> None:
    assert parse(*parts) == oracle(b"".join(parts))


@given(data=st.data())
def test_mutants_give_events_or_the_typed_error(data: st.DataObject) -> None:
    mutant = bytearray(GOLDEN)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(mutant)))
        mutant[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    try:
        events = parse(bytes(mutant), max_line=32, max_event=40)
    except RemoteProtocolError:
        return
    assert all(len(event.data) <= 40 for event in events)


def test_an_event_is_dispatched_by_the_cr_of_its_blank_line() -> None:
    parser = EventParser()
    assert list(parser.push(b"data: now\r\n\r")) == [ServerSentEvent("now")]
    assert list(parser.push(b"\ndata: next\n\n")) == [ServerSentEvent("next")]


def test_a_byte_order_mark_counts_at_the_start_only() -> None:
    assert parse(b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n") == [ServerSentEvent("a")]


def test_a_long_line_is_refused_before_it_ends() -> None:
    assert parse(b"data: " + b"x" * 94 + b"\n\n", max_line=100) == [ServerSentEvent("x" * 94)]
    parser = EventParser(max_line=100)
    with pytest.raises(RemoteProtocolError, match="longer than 100 bytes"):
        for _ in range(101):
            list(parser.push(b"x"))


def test_an_event_of_many_lines_is_bounded() -> None:
    with pytest.raises(RemoteProtocolError, match="larger than 100 bytes"):
        parse(b"data: 123456789\n" * 11, max_event=100)
    assert len(parse(b"data: 123456789\n\n" * 50, max_event=100)) == 50


def test_events_before_an_error_are_not_lost() -> None:
    parser, events = EventParser(max_line=20), []
    with pytest.raises(RemoteProtocolError):
        for event in parser.push(b"data: a\n\n" + b"x" * 21):
            events.append(event)
    assert events == [ServerSentEvent("a")]
