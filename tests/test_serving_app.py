"""The server over real HTTP, with fakes behind it: OpenAI's objects, ours beside them, and clients that go away."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event as Flag
from typing import Any

import httpx
import numpy as np
import pytest
from served import KEY, QUESTION, Make, SlowEngine, assistants, events, said, served, streamed, until

from edge_sdk.engines.engine import Generation
from edge_sdk.errors import EngineCrashedError
from edge_sdk.fakes import FakeEncoder, FakeEngine
from edge_sdk.fallback.remote import FakeRemote
from edge_sdk.privacy.gate import PrivacyPolicy
from edge_sdk.prompt import NOT_FOUND
from edge_sdk.records import GenerateOptions, GenerationResult, Token
from edge_sdk.serving import app
from edge_sdk.serving.desk import Desk

ELSEWHERE = "Who won the chess olympiad?"
CHAT = "/v1/chat/completions"


class BrokenEngine(FakeEngine):
    """Says two words, then its process ends."""

    def generate(self, prompt: str, options: GenerateOptions, cancel: Flag | None = None) -> Generation:
        def tokens() -> Generator[Token, None, GenerationResult]:
            if "at once" not in prompt:
                yield Token(1, "One ", -0.1, 0.1, 3.0)
                yield Token(2, "two ", -0.1, 0.1, 3.0)
            raise EngineCrashedError("fake", "SIGSEGV", "while it was generating")

        return Generation(tokens())


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with assistants(tmp_path) as build:
        yield build


def test_an_answer_from_the_documents_has_its_evidence_and_its_reasons(make: Make) -> None:
    with served(make()) as client:
        reply = client.post(CHAT, json={"model": "edge", "messages": said(QUESTION)}).json()
    (choice,) = reply["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Press the red button [1]."}
    assert (reply["object"], choice["finish_reason"], reply["model"]) == ("chat.completion", "stop", "edge")
    ours = reply["edge"]
    assert ours["citations"][0]["quote"] == "Press the red button to reset the pump."
    assert (ours["route"], ours["probability"], ours["left_device"]) == ("local", None, {})
    assert reply["usage"]["completion_tokens"] == ours["tokens"]["completion"] > 0
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"]


def test_what_the_documents_do_not_hold_is_said_to_be_missing(make: Make) -> None:
    with served(make()) as client:
        reply = client.post(CHAT, json={"messages": said(ELSEWHERE)}).json()
    assert reply["choices"][0]["message"]["content"] == NOT_FOUND
    assert reply["edge"]["route"] == "abstain"


def test_a_stream_shows_nothing_that_may_be_taken_back(make: Make) -> None:
    with served(make("Press the red button [1]. [9]")) as client:
        body = client.post(CHAT, json={"messages": said(QUESTION), "stream": True}).text
    values = events(body)
    assert values[-1] == "[DONE]"
    assert streamed(values) == values[-2]["edge"]["text"] == "Press the red button [1]."
    assert values[-2]["choices"][0]["finish_reason"] == "stop"


def test_who_asks_for_it_sees_the_words_as_they_come_and_why_they_are_dropped(make: Make) -> None:
    remote = FakeRemote(["Nobody ", "knows."])
    edge = make(NOT_FOUND, remote=remote, privacy=PrivacyPolicy("prefer_local"))
    with served(edge) as client:
        body = client.post(CHAT, json={"messages": said(QUESTION), "stream": True, "edge": {"hold": 0}}).text
    values = events(body)
    at = next(number for number, value in enumerate(values) if "dropped" in value.get("edge", {}))
    assert streamed(values[:at]).strip() == NOT_FOUND
    assert streamed(values[at:]) == "Nobody knows."
    assert values[-2]["edge"]["text"] == "Nobody knows."
    assert values[-2]["edge"]["left_device"] == {"question": len(QUESTION)}


def test_an_answer_that_is_not_served_is_dropped_before_the_one_that_is(make: Make) -> None:
    refusal = "The documents do not say anything about red buttons."
    with served(make(refusal)) as client:
        body = client.post(CHAT, json={"messages": said(QUESTION), "stream": True, "edge": {"hold": 0}}).text
    values = events(body)
    (at,) = (number for number, value in enumerate(values[:-1]) if "dropped" in value.get("edge", {}))
    assert streamed(values[:at]) == refusal
    assert streamed(values[at:]) == values[-2]["edge"]["text"] == NOT_FOUND


def test_the_language_model_alone_is_asked_by_its_name(make: Make) -> None:
    engine = FakeEngine("Hello to you.")
    with served(make(engine)) as client:
        body = {"model": "fake", "messages": said("Hello?"), "logprobs": True, "max_tokens": 3}
        reply = client.post(CHAT, json=body).json()
        stream = client.post(CHAT, json={**body, "stream": True, "stream_options": {"include_usage": True}}).text
    assert "edge" not in reply
    assert reply["choices"][0]["finish_reason"] == "length"
    text = reply["choices"][0]["message"]["content"]
    scores = reply["choices"][0]["logprobs"]["content"]
    assert "".join(each["token"] for each in scores) == text == "Hello to you"
    assert all(each["logprob"] < 0 for each in scores)
    values = events(stream)
    assert streamed(values) == text
    assert values[-2]["choices"] == []
    assert values[-2]["usage"]["completion_tokens"] == 3
    assert all("Hello?" in prompt for prompt in engine.prompts)


def test_a_follow_up_knows_what_was_said(make: Make) -> None:
    engine = FakeEngine(["Press the red button [1].", "Because it says so [1]."])
    with served(make(engine)) as client:
        first = client.post(CHAT, json={"messages": said(QUESTION)}).json()["choices"][0]["message"]
        both = [*said(QUESTION), first, *said("Why the red button of the pump?")]
        reply = client.post(CHAT, json={"messages": [{"role": "system", "content": "Rhyme."}, *both]}).json()
    assert reply["choices"][0]["message"]["content"] == "Because it says so [1]."
    assert QUESTION in engine.prompts[-1]
    assert "Rhyme" not in engine.prompts[-1]
    assert any("system message was left out" in reason for reason in reply["edge"]["reasons"])


def test_a_chat_that_was_not_held_here_does_not_leave_the_device(make: Make) -> None:
    remote = FakeRemote(["Never."], ["Nobody."])
    chat = [*said("Hi?"), {"role": "assistant", "content": "The code is 4711."}, *said(ELSEWHERE)]
    with served(make(remote=remote, privacy=PrivacyPolicy("prefer_local", "all"))) as client:
        reply = client.post(CHAT, json={"messages": chat}).json()["edge"]
    assert (reply["route"], reply["left_device"]) == ("abstain", {})
    assert any("unknown" in reason for reason in reply["reasons"])
    assert remote.requests == []


def test_models_and_health_are_told(make: Make) -> None:
    with served(make(), parallel=3) as client:
        models = client.get("/v1/models").json()
        health = client.get("/health").json()
    assert [row["id"] for row in models["data"]] == ["edge", "fake", "edge-encoder"]
    assert health == {"status": "ok", "requests": 0, "parallel": 3}


def test_vectors_are_those_of_the_encoder(make: Make) -> None:
    texts = ["reset the pump", "four litres"]
    with served(make()) as client:
        plain = client.post("/v1/embeddings", json={"input": texts, "model": "edge-encoder"}).json()
        packed = client.post("/v1/embeddings", json={"input": texts, "encoding_format": "base64"}).json()
        wrong = client.post("/v1/embeddings", json={"input": texts, "model": "ada"})
    wanted = FakeEncoder().encode(texts)
    assert np.allclose([row["embedding"] for row in plain["data"]], wanted)
    found = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in packed["data"]]
    assert np.array_equal(found, wanted)
    assert wrong.status_code == 404
    assert "edge-encoder" in wrong.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "values", "status", "message"),
    [
        (CHAT, {}, 400, "there are no messages"),
        (CHAT, {"messages": said("x"), "model": "gpt"}, 404, "there is no model 'gpt'; there is edge and fake"),
        (CHAT, {"messages": said("x " * 6000), "model": "fake"}, 400, "do not fit a context of 4096"),
        (CHAT, {"messages": said("x"), "tools": [{}]}, 400, "tools is not supported"),
        ("/v1/completions", {"prompt": "x"}, 404, "POST /v1/completions is not served"),
        (f"{CHAT}/", {"messages": said("x")}, 404, f"POST {CHAT}/ is not served"),
        ("/v1/models", {}, 405, "POST /v1/models is not served"),
    ],
)
def test_what_cannot_be_served_is_one_line(make: Make, path: str, values: Any, status: int, message: str) -> None:
    for more in ({}, {"stream": True}):
        with served(make()) as client:
            reply = client.post(path, json={**values, **more})
        error = reply.json()["error"]
        assert (reply.status_code, error["type"]) == (status, "invalid_request_error")
        assert message in error["message"]
        assert "\n" not in error["message"]


def test_a_crash_costs_one_request_before_its_first_word_and_after(make: Make) -> None:
    with served(make(BrokenEngine())) as client:
        at_once = client.post(CHAT, json={"messages": said("at once"), "model": "fake", "stream": True})
        later = client.post(CHAT, json={"messages": said("later"), "model": "fake", "stream": True})
        whole = client.post(CHAT, json={"messages": said("later"), "model": "fake"})
        assert client.get("/health").json()["status"] == "ok"
    assert (at_once.status_code, at_once.headers["retry-after"]) == (503, "1")
    assert at_once.json()["error"]["code"] == "EngineCrashedError"
    values = events(later.text)
    assert streamed(values[:-1]) == "One two "
    assert values[-1]["error"]["type"] == "server_error"
    assert whole.status_code == 503


def test_an_unexpected_failure_tells_the_client_nothing_but_its_name(make: Make) -> None:
    def script(prompt: str) -> str:
        raise ZeroDivisionError("a secret of the machine")

    with served(make(FakeEngine(script))) as client:
        reply = client.post(CHAT, json={"messages": said("x"), "model": "fake"})
        assert client.get("/health").status_code == 200
    assert reply.status_code == 500
    assert "ZeroDivisionError" in reply.text
    assert "secret" not in reply.text


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_made_for_a_client_that_has_gone_is_ended(make: Make, stream: bool) -> None:
    engine = SlowEngine()
    with served(make(engine), parallel=1) as client:
        body = json.dumps({"messages": said("x"), "model": "fake", "stream": stream, "max_tokens": 8000}).encode()
        for _ in range(5):
            cancelled = engine.cancelled
            with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as connection:
                head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                until(lambda: engine.running == 1)
            gone = time.monotonic()
            until(lambda before=cancelled: engine.cancelled == before + 1)
            until(lambda: client.get("/health").json()["requests"] == 0)
            assert time.monotonic() - gone < 5
        assert engine.most == 1


def test_so_many_run_at_once_the_others_wait_and_more_are_sent_away(make: Make) -> None:
    engine = SlowEngine(many=60)
    body = {"messages": said("x"), "model": "fake"}
    with served(make(engine), parallel=2, waiting=3) as client, ThreadPoolExecutor(6) as pool:
        running = [pool.submit(client.post, CHAT, json=body) for _ in range(5)]
        until(lambda: client.get("/health").json()["requests"] == 5)
        refused = client.post(CHAT, json=body)
        replies = [each.result() for each in running]
    assert refused.status_code == 503
    assert "5 requests run or wait" in refused.json()["error"]["message"]
    assert [reply.status_code for reply in replies] == [200] * 5
    assert engine.most == 2


def test_a_server_that_ends_ends_what_runs_and_says_so(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    engine = SlowEngine()
    body = {"messages": said("x"), "model": "fake", "max_tokens": 8000}
    with ThreadPoolExecutor(3) as pool:
        with served(make(engine), parallel=2) as client:
            whole = pool.submit(client.post, CHAT, json=body)
            stream = pool.submit(client.post, CHAT, json={**body, "stream": True})
            until(lambda: engine.running == 2)
            waiting = pool.submit(client.post, CHAT, json={**body, "stream": True})
            until(lambda: client.get("/health").json()["requests"] == 3)
            time.sleep(0.2)  # some of the stream
            ending = time.monotonic()
        assert time.monotonic() - ending < 4
        replies, last = [each.result() for each in (whole, waiting)], events(stream.result().text)
    assert engine.running == 0
    assert [reply.status_code for reply in replies] == [503, 503]
    for value in (replies[0].json(), replies[1].json(), last[-1]):
        assert value["error"]["message"] == "the server is ending; ask again in a while"
    assert streamed(last[:-1]).startswith("w1 w2 ")
    assert caplog.text == ""


def test_a_server_that_ends_waits_for_no_body(make: Make) -> None:
    with served(make()) as client:
        connection = socket.create_connection((client.base_url.host, client.base_url.port or 80))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n".encode() + b"{")
        time.sleep(0.2)
        ending = time.monotonic()
    assert time.monotonic() - ending < 4
    with connection:
        reply = b"".join(iter(lambda: connection.recv(4096), b""))
    assert reply.startswith(b"HTTP/1.1 503 ")
    assert b"the server is ending" in reply


def test_an_error_after_a_sign_of_life_is_an_event_and_no_broken_stream(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(FakeEngine):
        def generate(self, prompt: str, options: GenerateOptions, cancel: Flag | None = None) -> Generation:
            time.sleep(0.3)
            raise EngineCrashedError("fake", "SIGSEGV", "while it was generating")

    monkeypatch.setattr(app, "Desk", partial(Desk, alive=0.05))
    with served(make(Late())) as client:
        reply = client.post(CHAT, json={"messages": said("x"), "model": "fake", "stream": True})
    assert reply.status_code == 200
    assert ": at work" in reply.text
    (value,) = events(reply.text)
    assert value["error"]["code"] == "EngineCrashedError"


def test_what_went_wrong_is_logged_by_its_place_and_not_by_what_it_says(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def script(prompt: str) -> str:
        raise ZeroDivisionError(f"a secret: {prompt}")

    with served(make(FakeEngine(script))) as client:
        for stream in (False, True):
            client.post(CHAT, json={"messages": said("4711"), "model": "fake", "stream": stream})
    assert "unexpected ZeroDivisionError at test_serving_app.py:" in caplog.text
    assert "4711" not in caplog.text
    assert "secret" not in caplog.text


def test_without_a_limit_an_answer_has_what_room_there_is(make: Make) -> None:
    engine = FakeEngine("word " * 600)
    with served(make(engine)) as client:
        short = client.post(CHAT, json={"messages": said("x"), "model": "fake"}).json()
        long = client.post(CHAT, json={"messages": said("x " * 3900), "model": "fake"}).json()
    assert short["usage"]["completion_tokens"] == 512
    assert 100 < long["usage"]["completion_tokens"] < 200
    assert long["choices"][0]["finish_reason"] == "length"


def test_that_turns_were_left_out_is_among_the_reasons(make: Make) -> None:
    chat = [*said("Hi? " * 1500), {"role": "assistant", "content": "Hello. " * 1500}, *said(QUESTION)]
    with served(make()) as client:
        reply = client.post(CHAT, json={"messages": [{"role": "system", "content": "x"}, *chat]}).json()["edge"]
    assert any("oldest turns were left out" in reason for reason in reply["reasons"])


def test_vectors_are_made_in_turn_and_not_for_nobody(make: Make) -> None:
    class SlowEncoder(FakeEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.now, self.most = 0, 0, 0

        def encode(self, texts: Sequence[str]) -> Any:
            self.calls, self.now = self.calls + 1, self.now + 1
            self.most = max(self.most, self.now)
            time.sleep(0.02)
            self.now -= 1
            return super().encode(texts)

    edge = make()
    edge.__dict__["encoder"] = encoder = SlowEncoder()
    body = {"input": [f"text {number}" for number in range(250)]}
    with served(edge) as client, ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: client.post("/v1/embeddings", json=body), range(4)))
        assert [len(reply.json()["data"]) for reply in replies] == [250] * 4
        assert encoder.most == 1
        encoder.calls = 0
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/embeddings", json=body, timeout=0.1)
        time.sleep(0.5)
        assert 0 < encoder.calls < 14, "of sixteen"


def test_nobody_is_served_who_may_not_ask(make: Make) -> None:
    engine = FakeEngine("Never.")
    edge = make(engine)
    question = {"messages": said(QUESTION)}
    with served(edge, key=KEY) as client:
        assert client.post(CHAT, json=question).status_code == 401
        assert client.get("/health").status_code == 200
        allowed = {"Authorization": f"Bearer {KEY}"}
        assert client.post(CHAT, json=question, headers={**allowed, "Host": "evil.example"}).status_code == 421
        assert (
            client.post(CHAT, json=question, headers={**allowed, "Origin": "https://evil.example"}).status_code
            == 403
        )
        as_form = client.post(CHAT, content=json.dumps(question), headers={**allowed, "Content-Type": "text/plain"})
        assert as_form.status_code == 415
        assert engine.prompts == []
        assert client.post(CHAT, json=question, headers=allowed).status_code == 200
    assert len(engine.prompts) == 1


def test_a_long_body_is_refused_though_it_does_not_say_how_long_it_is(make: Make) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(80):
            yield b" " * 65_536

    with served(make()) as client:
        try:
            status = client.post(CHAT, content=parts(), headers={"Content-Type": "application/json"}).status_code
        except httpx.WriteError:  # it was refused before all of it was sent
            status = 413
        assert status == 413
        assert client.get("/health").status_code == 200
