"""Messages between an app and its worker: they come through whole, and what is none is refused."""

from __future__ import annotations

import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk import errors
from edge_sdk.engines.messages import (
    LONGEST,
    MessageError,
    error_from,
    error_values,
    frame,
    options_from,
    read_message,
    result_from,
    result_values,
    token_from,
    token_values,
)
from edge_sdk.errors import ContextOverflowError, EdgeError, EngineError, NotEnoughMemoryError
from edge_sdk.records import GenerateOptions, GenerationResult, Token

NUMBERS = st.floats(allow_nan=False)


@given(st.lists(st.tuples(st.integers(0, 9), st.text(st.characters(), max_size=50)), max_size=5))
def test_messages_come_one_after_the_other(said: list[tuple[int, str]]) -> None:
    file = io.BytesIO(b"".join(frame([*each]) for each in said))
    assert [read_message(file) for _ in said] == [[*each] for each in said]
    assert read_message(file) is None


def test_half_a_surrogate_pair_comes_through() -> None:
    assert read_message(io.BytesIO(frame([1, "\ud83d"]))) == [1, "\ud83d"]


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_an_error_or_the_end(data: bytes) -> None:
    for read in (data, len(data).to_bytes(4, "big") + data):
        try:
            message = read_message(io.BytesIO(read))
        except MessageError:
            continue
        assert message is None or isinstance(message, list)


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b"[1]", b"1", b"[1,", b"\xff\xff", b"[" * 100_000, (LONGEST + 1).to_bytes(4, "big")]
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    data = body if len(body) == 4 and body[0] < 0x20 else len(body).to_bytes(4, "big") + body
    with pytest.raises(MessageError):
        read_message(io.BytesIO(data))


@given(st.builds(Token, st.integers(0, 1 << 31), st.text(), NUMBERS, NUMBERS, NUMBERS))
def test_a_token_is_the_same_to_the_last_bit(token: Token) -> None:
    assert token_from(json.loads(json.dumps(token_values(token)))) == token


def test_numbers_that_are_none_come_through() -> None:
    token = token_from(json.loads(json.dumps([1, "", -math.inf, math.nan, math.inf])))
    assert (token.logprob, token.margin) == (-math.inf, math.inf)
    assert math.isnan(token.entropy)


@pytest.mark.parametrize(
    "values", [None, [], [1, "", 0.1, 0.1], ["1", "", 0.1, 0.1, 0.1], [True, "", 0.1, 0.1, 0.1]]
)
def test_what_is_no_token_is_refused(values: object) -> None:
    with pytest.raises(MessageError):
        token_from(values)


def test_options_and_results_come_through() -> None:
    options = GenerateOptions(max_tokens=3, stop=("a", "b"), json_schema="{}")
    sent = read_message(io.BytesIO(frame([1, vars_of(options)])))
    assert sent is not None
    assert options_from(sent[1]) == options
    choosing = GenerateOptions(choices=(("a [1]", -0.5), ("b", -2.0)))
    assert options_from(json.loads(json.dumps(vars_of(choosing)))) == choosing
    for choices in ("a", [["a"]], ["ab"], [[1, -0.5]], [["a", "b"]], [["a", True]], None):
        with pytest.raises(MessageError):
            options_from({**vars_of(GenerateOptions()), "stop": [], "choices": choices})
    result = GenerationResult("length", 5, 1, 3, 1.25, 2.5, shares=(0.75, 0.25))
    sent_result = result_values(result)
    assert result_from(json.loads(json.dumps(sent_result))) == result
    wrong = ({**sent_result, "shares": shares} for shares in (None, "a", ["a"], [True], 0.5))
    for values in (None, {}, {**sent_result, "unknown": 1}, *wrong):
        with pytest.raises(MessageError):
            result_from(values)


def vars_of(options: GenerateOptions) -> dict[str, object]:
    return {name: getattr(options, name) for name in GenerateOptions.__dataclass_fields__}


TREE = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, EdgeError)]


@pytest.mark.parametrize("kind", TREE)
def test_every_error_of_the_tree_is_itself_again(kind: type[EdgeError]) -> None:
    error = kind.__new__(kind)
    EdgeError.__init__(error, "it happened", hint="do this")
    again = error_from(json.loads(json.dumps(error_values(error))))
    assert (type(again), str(again)) == (kind, "it happened; do this")


def test_an_error_keeps_its_figures() -> None:
    overflow = error_from(json.loads(json.dumps(error_values(ContextOverflowError(600, 10, 512)))))
    assert isinstance(overflow, ContextOverflowError)
    assert (overflow.prompt_tokens, overflow.max_tokens, overflow.context) == (600, 10, 512)
    memory = error_from(error_values(NotEnoughMemoryError("too much", parts={"weights": 5}, room=3)))
    assert isinstance(memory, NotEnoughMemoryError)
    assert (memory.parts, memory.room, memory.context) == ({"weights": 5}, 3, None)


def test_what_is_not_in_the_tree_becomes_an_engine_error() -> None:
    foreign = error_from(error_values(ZeroDivisionError("by nothing")))
    assert (type(foreign), "ZeroDivisionError: by nothing" in str(foreign)) == (EngineError, True)
    made_up = {"class": "annotations", "message": "m", "hint": "", "facts": {}}
    assert type(error_from(made_up)) is EngineError
    for values in (None, {}, {"class": "EngineError", "message": 1, "hint": "", "facts": {}}):
        with pytest.raises(MessageError):
            error_from(values)
