"""The chat-completions format: bodies out, replies in, and nothing but typed errors for what is no reply."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import DONE, delta, event

from edge_sdk.errors import RemoteError, RemoteProtocolError, RemoteTimeoutError
from edge_sdk.fallback.completions import SHOWN, ReplyReader, one_line, request_body, server_words
from edge_sdk.records import Message

STREAM = "text/event-stream"
USAGE = event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}})
GOLDEN = (
    b": keep-alive\n\n"
    + event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}]})
    + delta("Par")
    + delta("ís 🗼")
    + delta("")
    + delta(finish="stop")
    + USAGE
    + DONE
)


def read(*chunks: bytes, media_type: str = STREAM, conceal: str | None = None) -> tuple[str, ReplyReader]:
    reader = ReplyReader(media_type, conceal=conceal)
    return "".join(reader.read(chunks)), reader


def refused(*chunks: bytes, media_type: str = STREAM, conceal: str | None = None) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        read(*chunks, media_type=media_type, conceal=conceal)
    return str(caught.value)


def broken(chunks: Iterable[bytes], error: RemoteError) -> Iterator[bytes]:
    yield from chunks
    raise error


# --- the request ------------------------------------------------------------------------------------


def test_the_body_is_json_of_exactly_the_messages() -> None:
    messages = [Message("system", 'Be "brief".\n'), Message("user", "Où? \x00🗼")]
    body = json.loads(request_body("m", messages, max_tokens=9, temperature=0.5))
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": 'Be "brief".\n'}, {"role": "user", "content": "Où? \x00🗼"}],
        "max_tokens": 9,
        "temperature": 0.5,
        "stream": True,
    }


def test_token_counts_are_asked_for_only_on_request() -> None:
    body = request_body("m", [Message("user", "?")], max_tokens=9, temperature=0, include_usage=True)
    assert json.loads(body)["stream_options"] == {"include_usage": True}


def test_more_fields_of_the_api_can_be_sent() -> None:
    body = json.loads(request_body("m", [], max_tokens=1, temperature=0, extra={"seed": 3, "max_tokens": 2}))
    assert (body["seed"], body["max_tokens"], body["stream"]) == (3, 2, True)


@given(text=st.text(st.characters(), max_size=20))
def test_any_text_makes_a_body(text: str) -> None:
    body = json.loads(request_body("m", [Message("user", text)], max_tokens=1, temperature=0))
    assert body["messages"][0]["content"] == "".join("?" if "\ud800" <= c <= "\udfff" else c for c in text)


# --- replies ----------------------------------------------------------------------------------------


def test_a_streamed_reply() -> None:
    text, reader = read(GOLDEN)
    assert text == "París 🗼"
    assert (reader.finish_reason, reader.model) == ("stop", "served-model")
    assert (reader.prompt_tokens, reader.completion_tokens) == (7, 3)


def test_every_split_gives_the_same_text() -> None:
    for at in range(len(GOLDEN) + 1):
        assert read(GOLDEN[:at], GOLDEN[at:])[0] == "París 🗼", at
    assert read(*(bytes([byte]) for byte in GOLDEN))[0] == "París 🗼"


def test_a_reply_in_one_document() -> None:
    usage = {"prompt_tokens": 4, "completion_tokens": True}
    reply = {"model": "m", "choices": [{"message": {"content": "Hi"}, "finish_reason": "length"}], "usage": usage}
    body = json.dumps(reply).encode()
    text, reader = read(body[:9], body[9:], media_type="application/json")
    assert (text, reader.finish_reason, reader.prompt_tokens, reader.completion_tokens) == ("Hi", "length", 4, None)


def test_log_probabilities_are_read_where_they_are_told() -> None:
    def told(content: object) -> bytes:
        return event({"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": content}]})

    rows = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": 1e-9}]}
    assert read(told(rows), told(rows), delta(finish="stop"))[1].logprobs == [-0.5, 0.0, -0.5, 0.0]
    document = {"message": {"content": "a"}, "finish_reason": "stop", "logprobs": rows}
    whole = json.dumps({"choices": [document]}).encode()
    assert read(whole, media_type="application/json")[1].logprobs == [-0.5, 0.0]
    for junk in (
        None,
        5,
        [1],
        {"content": 5},
        {"content": [None, {}, {"logprob": "x"}, {"logprob": float("nan")}]},
    ):
        assert read(told(junk), delta(finish="stop"))[1].logprobs == []


def test_a_finish_reason_without_done_is_an_end() -> None:
    assert read(delta("Hi"), delta(finish="length"))[1].finish_reason == "length"


def test_done_without_a_finish_reason_is_an_end() -> None:
    assert read(delta("Hi"), DONE)[1].finish_reason == "unknown"


def test_what_follows_done_is_not_read() -> None:
    assert read(delta("Hi") + DONE + delta(" there") + b"garbage\n\n")[0] == "Hi"


def test_neither_is_a_cut() -> None:
    assert "cut off" in refused(delta("Hi"))
    assert "cut off" in refused(delta("Hi"), delta(finish="stop")[:-1])  # its blank line never came
    assert "cut off" in refused(b"")


def test_a_break_after_the_finish_reason_does_no_harm() -> None:
    for error in (RemoteProtocolError("broken"), RemoteTimeoutError("late")):
        reader = ReplyReader(STREAM)
        assert list(reader.read(broken([delta("Hi"), delta(finish="stop")], error))) == ["Hi"]
        with pytest.raises(type(error)):
            list(ReplyReader(STREAM).read(broken([delta("Hi")], error)))


def test_an_empty_reply_is_an_error_that_says_why() -> None:
    assert "empty (finish reason 'stop')" in refused(delta(""), delta(" \n"), delta(finish="stop"), DONE)
    assert "raise --max-tokens" in refused(delta(finish="length"))
    empty = b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}'
    assert "empty" in refused(empty, media_type="application/json")


def test_an_error_in_the_stream_is_told_and_nothing_after_it_is_read() -> None:
    overloaded = event({"error": {"message": "overloaded\nnow", "code": 503}})
    assert refused(delta("Hi"), overloaded, delta(finish="stop"), DONE).endswith("error: overloaded now")
    assert "it broke" in refused(b'event: error\ndata: {"message": "it broke"}\n\n')
    assert "it broke" in refused(delta(finish="stop"), event({"error": "it broke"}))


@pytest.mark.parametrize(
    "junk",
    [
        event("<html>"), event("[1"), event("[]"), event("null"), event("7"), event('"text"'), event("{}"),
        event("[" * 100_000), event({"choices": "x"}), event({"choices": [7]}), event({"choices": {}}),
        event({"choices": [{"delta": {"content": 7}}]}), event({"choices": [{"delta": 7}]}), b"data: \xff\n\n",
    ],
    ids=range(14),
)  # fmt: skip
def test_junk_is_a_protocol_error(junk: bytes) -> None:
    assert refused(delta("Hi"), junk, DONE).startswith("the remote sent")


def test_html_and_other_types_are_refused_with_a_hint() -> None:
    assert "HTML page" in refused(b"<html>", media_type="text/html")
    assert "'application/pdf'" in refused(b"%PDF", media_type="application/pdf")
    assert "check the URL" in refused(b"", media_type="")


def test_a_document_cut_or_without_choices_is_refused() -> None:
    assert "not JSON" in refused(b'{"choices": [{"mess', media_type="application/json")
    assert "without choices" in refused(b'{"choices": []}', media_type="application/json")
    assert "no such model" in refused(b'{"error": {"message": "no such model"}}', media_type="application/json")


def test_what_a_terminal_would_obey_is_left_out() -> None:
    pieces = ("\x1b[31mred", "\x1b", "]0;title\x07", "\u009b2J a\r\n\tb\x7f\x00")
    plain = "[31mred]0;title2J a\n\tb"
    assert read(*(delta(piece) for piece in pieces), delta(finish="stop"), DONE)[0] == plain
    document = {"choices": [{"message": {"content": "".join(pieces)}, "finish_reason": "stop"}]}
    assert read(json.dumps(document).encode(), media_type="application/json")[0] == plain
    assert "is empty" in refused(delta("\x1b\x07"), delta(finish="stop"), DONE)


def test_half_characters_are_replaced() -> None:
    assert read(event('{"choices":[{"delta":{"content":"a\\ud83db\\ud83d\\uddfc"}}]}'), DONE)[0] == "a\ufffdb🗼"


@given(data=st.data())
def test_mutants_of_a_stream_give_the_text_or_a_typed_error(data: st.DataObject) -> None:
    mutant = bytearray(GOLDEN)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(mutant)))
        mutant[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=6))
    cut = data.draw(st.integers(0, len(mutant)))
    try:
        _, reader = read(bytes(mutant[:cut]), bytes(mutant[cut:]))
    except RemoteProtocolError as error:
        assert "\n" not in str(error)
    else:
        assert reader.finish_reason


@given(cut=st.integers(0, len(GOLDEN) - 1))
def test_a_cut_stream_is_whole_or_an_error(cut: int) -> None:
    end_of_text = GOLDEN.index(USAGE)
    if cut >= end_of_text:
        assert read(GOLDEN[:cut])[0] == "París 🗼"
    else:
        assert "cut off" in refused(GOLDEN[:cut])


# --- words of the server ----------------------------------------------------------------------------

KEY = "sk-canary-1234567890"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"error": {"message": "no such model", "type": "x"}}', "no such model"),
        ('{"error": "overloaded"}', "overloaded"),
        ('{"message": "nope"}', "nope"),
        ('{"detail": [{"loc": ["body"]}]}', '[{"loc": ["body"]}]'),
        ("plain words\r\n\x1b[31mred", "plain words [31mred"),
        ("<!doctype html><p>Bad gateway", "an HTML page"),
        ("", ""),
    ],
)
def test_an_error_page_in_one_line(body: str, words: str) -> None:
    assert server_words(body.encode(), "application/json") == words


@given(
    before=st.text(max_size=300), after=st.text(max_size=300), inside=st.sampled_from(["", "\0", "\x1b", "\u202e"])
)
def test_the_key_is_never_shown(before: str, after: str, inside: str) -> None:
    spelled = KEY[:5] + inside + KEY[5:]
    for line in (
        one_line(before + spelled + after, conceal=KEY),
        server_words(json.dumps({"error": {"message": before + spelled + after}}).encode(), "", conceal=KEY),
        server_words(json.dumps({"error": [spelled]}, ensure_ascii=False).encode(), "", conceal=KEY),
        refused(event({"error": {"message": before + spelled + after}}), conceal=KEY),
    ):
        assert KEY not in line and KEY[:15] not in line
        assert line.isprintable()


@given(text=st.text())
def test_one_line_is_short_and_printable(text: str) -> None:
    line = one_line(text)
    assert len(line) <= SHOWN and line.isprintable() and line == line.strip()
