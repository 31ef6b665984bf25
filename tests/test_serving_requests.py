"""What a client sends: read in full or refused in one line, never half understood."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import RequestError
from edge_sdk.records import GenerateOptions, Message
from edge_sdk.serving.requests import (
    MOST_MESSAGES,
    MOST_TEXTS,
    ChatRequest,
    FromDocuments,
    read_chat,
    read_embedding,
    read_json,
)

OWN = GenerateOptions(temperature=0.3, seed=4)
HELLO = [{"role": "user", "content": "Hello?"}]


def chat(**values: Any) -> ChatRequest:
    return read_chat({"messages": HELLO, **values}, OWN)


def parts(*content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(content)}]


def test_the_least_request_is_a_question_to_the_documents_in_the_models_own_manner() -> None:
    found = chat()
    assert found == ChatRequest("edge", (Message("user", "Hello?"),), OWN, None, FromDocuments())


def test_what_is_said_of_sampling_is_taken_for_a_language_model() -> None:
    found = chat(
        model="m",
        temperature=1,
        top_p=0.5,
        min_p=0.1,
        top_k=7,
        seed=-1,
        stop="END",
        max_tokens=9,
        logprobs=True,
        stream=True,
        stream_options={"include_usage": True},
    )
    wanted = GenerateOptions(temperature=1.0, top_p=0.5, min_p=0.1, top_k=7, seed=2**32 - 1, stop=("END",))
    assert found.options == wanted
    assert (found.max_tokens, found.logprobs, found.stream, found.usage) == (9, True, True, True)
    assert chat(model="m").options == OWN
    assert chat(max_tokens=5, max_completion_tokens=6).max_tokens == 6


def test_answers_from_documents_are_written_as_they_were_calibrated() -> None:
    assert chat(temperature=1.5, seed=3, top_p=0.1).options == OWN
    found = chat(edge={"k": 3, "style": "brief", "task": "howto", "hold": 0}).documents
    assert found == FromDocuments(3, "brief", "howto", 0)


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}}, {"type": "integer"}),
    ],
)
def test_a_schema_reaches_the_engine(form: dict[str, Any], schema: object) -> None:
    found = chat(model="m", response_format=form).options.json_schema
    assert (None if found is None else json.loads(found)) == schema


def test_a_message_may_come_in_parts_and_a_developer_is_the_system() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    found = chat(messages=[{"role": "developer", "content": "Be kind."}, {"role": "user", "content": parts}])
    assert found.messages == (Message("system", "Be kind."), Message("user", "one\ntwo"))


def test_an_answer_that_ended_before_its_first_word_may_come_back() -> None:
    found = chat(messages=[*HELLO, {"role": "assistant", "content": None}, *HELLO])
    assert found.messages[1] == Message("assistant", "")
    with pytest.raises(RequestError):
        chat(messages=[{"role": "user", "content": None}])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"messages": []}, "there are no messages"),
        ({"messages": "hi"}, "there are no messages"),
        ({"messages": [{}]}, r"messages\[0\].content"),
        ({"messages": ["hi"]}, r"messages\[0\] is 'hi'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\].role is 'tool'"),
        (
            {"messages": parts({"type": "text", "text": "a"}, {"type": "image_url"})},
            r"messages\[0\].content\[1\] is 'image_url', only text parts are taken",
        ),
        ({"messages": parts({"type": "text", "text": 5})}, r"messages\[0\].content\[0\].text is '5', not text"),
        ({"messages": parts({"type": "text", "text": ["a", {"b": 1}]})}, r"content\[0\].text is"),
        ({"messages": parts({"type": "text"})}, r"content\[0\].text is 'None', not text"),
        ({"messages": parts("a")}, r"content\[0\] is 'a', only text parts"),
        ({"messages": HELLO * (MOST_MESSAGES + 1)}, "1001 messages"),
        ({"model": 5}, "model is '5'"),
        ({"model": "m", "temperature": 3}, "temperature is '3', not a number from 0 to 2"),
        ({"model": "m", "temperature": True}, "temperature"),
        ({"model": "m", "top_k": 1.5}, "top_k"),
        ({"max_tokens": 0}, "max_tokens is '0', not a whole number from 1"),
        ({"stream": "yes"}, "stream is 'yes', not true or false"),
        ({"model": "m", "stop": ["a"] * 5}, "stop"),
        ({"model": "m", "stop": [""]}, "stop"),
        ({"n": 2}, "n is not supported"),
        ({"tools": [{"type": "function"}]}, "tools is not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is not supported"),
        ({"model": "m", "top_logprobs": 3}, "top_logprobs is not supported"),
        ({"model": "m", "response_format": {"type": "xml"}}, "response_format"),
        ({"model": "m", "response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_object"}}, "response_format does not go with the model 'edge'"),
        ({"response_format": "json"}, "response_format is 'json', not an object"),
        ({"model": "m", "response_format": "json"}, "response_format is 'json', not an object"),
        ({"temperature": "hot"}, "temperature is 'hot', not a number"),
        ({"temperature": 99}, "temperature is '99'"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"top_p": 5}, "top_p is '5'"),
        ({"top_k": "a"}, "top_k is 'a'"),
        ({"max_completion_tokens": 5, "max_tokens": "x"}, "max_tokens is 'x'"),
        ({"stop": "x"}, "stop does not go with"),
        ({"logprobs": True}, "logprobs does not go with"),
        ({"edge": {"K": 3}}, "edge has no 'K'"),
        ({"edge": {"k": 0}}, "k is '0', not a whole number from 1 to 50"),
        ({"edge": {"style": "long"}}, "style is 'long', not full or brief"),
    ],
)
def test_what_is_not_understood_or_not_supported_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        chat(**values)


def test_what_asks_for_nothing_is_no_error() -> None:
    found = chat(n=1, tools=[], tool_choice="auto", logit_bias={}, presence_penalty=0, top_logprobs=None, user="me")
    assert found == chat()


def test_texts_to_embed_are_one_or_many() -> None:
    assert read_embedding({"input": "a"}).texts == ("a",)
    found = read_embedding({"input": ["a", "b"], "model": "m", "encoding_format": "base64"})
    assert (found.texts, found.model, found.packed) == (("a", "b"), "m", True)
    for wrong in ({}, {"input": []}, {"input": [1, 2]}, {"input": ["a"] * (MOST_TEXTS + 1)}, {"input": None}):
        with pytest.raises(RequestError):
            read_embedding(wrong)
    with pytest.raises(RequestError, match="dimensions is not supported"):
        read_embedding({"input": "a", "dimensions": 12})


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"3", b'{"a": NaN}', b"\xff{}", b"[" * 100_000, b'{"a":' * 70 + b"1" + b"}" * 70]
)
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError):
        read_json(body)


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    "model messages temperature top_p top_k min_p seed stop stream stream_options max_tokens edge n tools"
    " response_format logprobs top_logprobs input encoding_format".split()
)


@given(st.dictionaries(NAMES, ANY, max_size=5), st.booleans())
def test_any_values_are_read_or_refused(values: dict[str, Any], with_messages: bool) -> None:
    value = read_json(json.dumps({**values, **({"messages": HELLO} if with_messages else {})}).encode())
    for read in (lambda: read_chat(value, OWN), lambda: read_embedding(value)):
        try:
            read()
        except RequestError as error:
            assert error.status == 400
            assert "\n" not in str(error)
