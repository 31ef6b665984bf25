"""The remote client against a real loopback server that misbehaves; no request is ever made twice."""

from __future__ import annotations

import logging
import random
import socket
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, Timer
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import (
    DONE,
    Behaviour,
    Loopback,
    answer,
    completion,
    delta,
    document,
    drip,
    event,
    hang,
    head,
    raw,
    reset,
)

from edge_sdk.config import Settings, load_settings
from edge_sdk.errors import (
    ConfigError,
    EdgeError,
    OfflineError,
    RemoteError,
    RemoteProtocolError,
    RemoteRejectedError,
    RemoteTimeoutError,
    RemoteUnreachableError,
)
from edge_sdk.fallback.remote import FakeRemote, OpenAIRemote, Remote, endpoint, read_key, remote_from_settings
from edge_sdk.records import Message, RemoteReply

KEY = "sk-canary-7f3d9a-do-not-leak"
QUESTION = [Message("system", "Be brief."), Message("user", "Capital of France? é🗼")]


@pytest.fixture(autouse=True)
def _the_key_is_in_no_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does, and however much is logged, the canary key is not."""
    caplog.set_level(logging.DEBUG)
    yield
    assert KEY not in caplog.text


def remote(server: Loopback, **options: Any) -> OpenAIRemote:
    return OpenAIRemote(server.url, "small", **({"key": lambda: KEY} | options))


def ask(asked: Remote, cancel: Event | None = None) -> RemoteReply:
    stream = asked.complete(QUESTION, max_tokens=50, cancel=cancel)
    text = "".join(stream)
    assert stream.reply.text == text
    return stream.reply


def failure(behaviour: Behaviour, **options: Any) -> RemoteError:
    """Ask once; check that there was one request, that the key did not leak and that nothing is complete."""
    with Loopback(behaviour, completion("a second try")) as server:
        stream = remote(server, **options).complete(QUESTION, max_tokens=50)
        with pytest.raises(RemoteError) as caught:
            list(stream)
        server.join()
    assert len(server.requests) == server.connections == 1
    assert KEY not in "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
    assert caught.value.__cause__ is None and caught.value.__context__ is None  # an httpx error holds the key
    assert str(caught.value).isprintable()
    with pytest.raises(RemoteError, match="has not ended"):
        _ = stream.reply
    return caught.value


def rejection(behaviour: Behaviour, **options: Any) -> RemoteRejectedError:
    error = failure(behaviour, **options)
    assert isinstance(error, RemoteRejectedError)
    return error


# --- when it works ----------------------------------------------------------------------------------


def test_a_streamed_reply() -> None:
    with Loopback(completion("Par", "is ", "🗼")) as server:
        reply = ask(remote(server))
    assert (reply.text, reply.model, reply.finish_reason) == ("Paris 🗼", "served-model", "stop")
    assert reply.prompt_tokens is None and reply.milliseconds > 0


def test_a_reply_in_one_document_with_token_counts() -> None:
    with Loopback(document("Paris", usage={"prompt_tokens": 12, "completion_tokens": 1})) as server:
        reply = ask(remote(server))
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("Paris", 12, 1)


def test_pieces_come_before_the_reply_has_ended() -> None:
    shown = Event()

    def wait_for_the_reader(visit: Any) -> None:
        visit.send(head() + delta("Par"))
        assert shown.wait(10)
        visit.send(delta("is") + delta(finish="stop") + DONE)

    with Loopback(wait_for_the_reader) as server:
        stream = remote(server).complete(QUESTION, max_tokens=50)
        assert next(stream) == "Par"
        with pytest.raises(RemoteError, match="has not ended"):
            _ = stream.reply
        shown.set()
        assert (next(stream), list(stream), stream.reply.text) == ("is", [], "Paris")


def test_done_may_be_missing() -> None:
    with Loopback(completion("Paris", done=False)) as server:
        assert ask(remote(server)).finish_reason == "stop"


def test_the_finish_reason_may_be_missing() -> None:
    with Loopback(completion("Paris", finish=None)) as server:
        assert ask(remote(server)).finish_reason == "unknown"


def test_an_open_connection_after_done_does_not_hold_the_reply() -> None:
    with Loopback(hang(head() + delta("Paris") + delta(finish="stop") + DONE)) as server:
        assert ask(remote(server)).text == "Paris"
        server.join()
    assert server.hang_ups == 1


# --- what is sent -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"include_usage": True}], ids=["plain", "usage"])
def test_the_body_is_the_preview_byte_for_byte(options: dict[str, Any]) -> None:
    with Loopback(completion("Paris")) as server:
        asked = remote(server, **options)
        list(asked.complete(QUESTION, max_tokens=50, temperature=0.25))
        preview = asked.preview(QUESTION, max_tokens=50, temperature=0.25)
    [request] = server.requests
    assert request.body == preview
    assert request.json["messages"][1]["content"] == QUESTION[1].content
    assert request.path == "/v1/chat/completions"


def test_the_headers_say_no_more_than_needed() -> None:
    with Loopback(completion("Paris")) as server:
        ask(remote(server))
    assert server.requests[0].headers == {
        "host": f"127.0.0.1:{server.port}",
        "accept": "text/event-stream, application/json",
        "accept-encoding": "identity",
        "authorization": f"Bearer {KEY}",
        "connection": "close",
        "content-length": str(len(server.requests[0].body)),
        "content-type": "application/json",
        "user-agent": "edge-sdk",
    }


def test_without_a_key_there_is_no_authorization() -> None:
    with Loopback(completion("Paris")) as server:
        ask(remote(server, key=None))
        ask(remote(server, key=lambda: None))
    assert all("authorization" not in request.headers for request in server.requests)


def test_the_key_is_read_at_each_request() -> None:
    keys = iter(["sk-one", "sk-two"])
    with Loopback(completion("Paris")) as server:
        asked = remote(server, key=lambda: next(keys))
        ask(asked), ask(asked)
    assert [request.headers["authorization"] for request in server.requests] == ["Bearer sk-one", "Bearer sk-two"]


def test_nothing_is_sent_until_the_stream_is_read() -> None:
    with Loopback(completion("Paris")) as server:
        remote(server).complete(QUESTION, max_tokens=50).close()
    assert server.connections == 0


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password from-netrc\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with Loopback(completion("proxied")) as proxy, Loopback(completion("direct")) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert ask(remote(server, key=None)).text == "direct"
        assert "authorization" not in server.requests[0].headers
        assert proxy.connections == 0
        assert ask(remote(server, trust_env=True)).text == "proxied"


# --- errors of the server ---------------------------------------------------------------------------


def test_too_many_requests_says_when_to_come_back() -> None:
    error = rejection(answer(429, '{"error": {"message": "slow down"}}', Retry_After="17"))
    assert (error.status, error.retry_after) == (429, 17.0)
    assert "slow down" in str(error) and "ask again in 17 s" in str(error)


def test_retry_after_may_be_a_date_or_nonsense() -> None:
    assert rejection(answer(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")).retry_after == 0.0
    assert (rejection(answer(429, Retry_After="Fri, 31 Dec 2100 23:59:59 GMT")).retry_after or 0) > 1e9
    for nonsense in ("soon", "-5", "1e9999", "9" * 400, "Fri, 99 Foo 2100 23:59:59 GMT", ""):
        error = rejection(answer(429, Retry_After=nonsense))
        assert error.retry_after is None and "ask again later" in str(error)


def test_server_errors_name_the_status_and_its_words() -> None:
    error = rejection(answer(500, "it\nbroke\x1b[2J " + "x" * 500, "text/plain"))
    assert error.status == 500
    assert "500 (Internal Server Error): it broke" in str(error)
    assert len(str(error)) < 350
    assert "an HTML page" in str(rejection(answer(502, "<html>Bad gateway</html>", "text/html")))


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_not_repeated(status: int) -> None:
    body = f'{{"error": {{"message": "Incorrect API key provided: {KEY}."}}}}'
    error = rejection(answer(status, body))
    assert error.status == status
    assert "Incorrect API key provided: [key]" in str(error) and "EDGE_REMOTE_KEY" in str(error)
    assert "no key was sent" in str(rejection(answer(status, "{}"), key=None))


def test_not_found_points_at_the_url_and_the_model() -> None:
    assert "check the URL and --remote-model" in str(rejection(answer(404, '{"detail": "Not Found"}')))


def test_a_bad_request_shows_what_the_server_did_not_like() -> None:
    error = rejection(answer(400, '{"error": {"message": "max_tokens is too large"}}'))
    assert error.status == 400 and "max_tokens is too large" in str(error)


def test_an_error_page_that_is_long_slow_or_broken_does_not_hide_the_status() -> None:
    for behaviour in (
        answer(500, "x" * 100_000, "text/plain"),
        raw(b"HTTP/1.1 500 No\r\nContent-Length: 99\r\n\r\ncut"),
        reset(head(500)),
        hang(head(500), b"part of"),
    ):
        assert str(rejection(behaviour)).startswith("the remote answered 500 (Internal Server Error);")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_the_key_does_not_travel(status: int) -> None:
    with Loopback(completion("from elsewhere")) as other:
        elsewhere = f"http://localhost:{other.port}/v1/chat/completions"
        error = rejection(answer(status, Location=elsewhere))
    assert error.status == status and elsewhere in str(error)
    assert other.connections == 0


def test_a_success_without_content_is_a_protocol_error() -> None:
    assert isinstance(failure(raw(b"HTTP/1.1 204 No Content\r\n\r\n")), RemoteProtocolError)


# --- broken replies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (raw(), "disconnected"),
        (reset(), "broke"),
        (raw(head() + delta("Par")), "cut off"),
        (reset(head() + delta("Par")), "broke"),
        (raw(head(Content_Length="999") + delta("Par")), "broke"),
        (answer(200, "<html>login</html>", "text/html"), "an HTML page"),
        (answer(200, "{", "application/json"), "not JSON"),
        (raw(head() + delta("Par") + event("{oops")), "not JSON"),
        (raw(head() + event({"error": {"message": f"bad key {KEY}"}})), "bad key [key]"),
        (raw(head() + delta("Par") + event({"error": "overloaded"})), "overloaded"),
        (raw(head() + b"data: " + b"x" * 300_000), "longer than 262144 bytes"),
        (raw(head() + b": comment\n" * 900_000), "larger than 8388608 bytes"),
        (raw(head(Content_Encoding="gzip") + b"\x1f\x8b\x08\x00"), "compressed"),
        (completion(), "empty"),
        (completion("  ", "\n"), "empty"),
        (completion(finish="length"), "--max-tokens"),
    ],
    ids=["cut-before-head", "reset", "cut", "reset-mid-stream", "cut-length", "html", "json-cut", "bad-event",
         "error-event", "late-error-event", "long-line", "too-large", "gzip", "empty", "blank", "spent"],
)  # fmt: skip
def test_a_broken_reply_is_a_protocol_error(behaviour: Behaviour, words: str) -> None:
    error = failure(behaviour)
    assert isinstance(error, RemoteProtocolError)
    assert words in str(error)


# --- time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "options", "words"),
    [
        (hang(), {"first_byte_timeout": 0.3}, "did not begin to answer within 0.3 s"),
        (hang(head() + delta("Par")), {"inter_token_timeout": 0.3}, "fell silent for 0.3 s"),
        (
            drip([head(), *[b": alive\n\n"] * 200, delta("late", "stop")], 0.05),
            {"deadline": 0.5},
            "deadline of 0.5 s",
        ),
        (drip([head(), *[delta("x")] * 200, delta(finish="stop")], 0.05), {"deadline": 0.5}, "deadline of 0.5 s"),
    ],
    ids=["slow-headers", "silence", "keep-alive-drip", "token-drip"],
)
def test_time_limits_hold(behaviour: Behaviour, options: dict[str, float], words: str) -> None:
    error = failure(behaviour, **options)
    assert isinstance(error, RemoteTimeoutError) and words in str(error)


def test_refused_means_nothing_was_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(RemoteUnreachableError, match="nothing was sent"):
        list(OpenAIRemote(url, "small").complete(QUESTION, max_tokens=5))


@pytest.mark.parametrize("behaviour", [hang(), hang(head() + delta("Par"))], ids=["before-head", "mid-stream"])
def test_cancel_ends_the_stream_and_hangs_up(behaviour: Behaviour) -> None:
    cancel = Event()

    def cancel_when_asked(visit: Any) -> None:
        timer.start()
        behaviour(visit)

    timer = Timer(0.1, cancel.set)
    with Loopback(cancel_when_asked) as server:
        reply = ask(remote(server), cancel)
        server.join()
    assert reply.finish_reason == "cancelled" and reply.text in ("", "Par")
    assert (reply.model, server.hang_ups) == ("small", 1)


def test_cancelled_beforehand_sends_nothing() -> None:
    cancel = Event()
    cancel.set()
    with Loopback(completion("Paris")) as server:
        assert ask(remote(server), cancel).finish_reason == "cancelled"
    assert bytes(server.received) == b""


def test_cancel_is_heeded_between_the_pieces_of_one_chunk() -> None:
    cancel, pieces = Event(), []
    with Loopback(completion(*"abcdefgh")) as server:
        stream = remote(server).complete(QUESTION, max_tokens=50, cancel=cancel)
        for piece in stream:
            pieces.append(piece)
            if piece == "c":
                cancel.set()
    assert pieces == ["a", "b", "c"]
    assert (stream.reply.text, stream.reply.finish_reason) == ("abc", "cancelled")


def test_closing_early_hangs_up() -> None:
    with Loopback(hang(head() + delta("Par"))) as server:
        stream = remote(server).complete(QUESTION, max_tokens=50)
        assert next(stream) == "Par"
        stream.close()
        server.join()
    assert server.hang_ups == 1


# --- offline, key and address -----------------------------------------------------------------------


def test_offline_opens_no_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    settings = load_settings(
        {"home": tmp_path, "offline": "1", "remote": "http://127.0.0.1:9", "remote_model": "m"}
    )
    asked = remote_from_settings(settings)
    assert asked is not None
    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    with pytest.raises(OfflineError, match="offline"):
        asked.complete(QUESTION, max_tokens=5)


def test_no_remote_without_settings_for_one(tmp_path: Path) -> None:
    settings = load_settings({"home": tmp_path}, {})
    assert remote_from_settings(settings) is None
    with pytest.raises(ConfigError, match="--remote-model"):
        remote_from_settings(replace(settings, remote="https://host.example"))


def test_a_remote_from_settings_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Loopback(completion("Paris")) as server:
        settings = load_settings({"home": tmp_path, "remote": server.url, "remote_model": "small"}, {})
        asked = remote_from_settings(settings)
        assert asked is not None
        monkeypatch.setenv("EDGE_REMOTE_KEY", KEY)  # after the remote was made: the key is read when it asks
        assert ask(asked).text == "Paris"
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert server.requests[0].json["model"] == "small"


def key_settings(path: Path | None, source: str = "file") -> Settings:
    settings = load_settings({}, {})
    return replace(settings, remote_key_file=path, sources={**settings.sources, "remote_key_file": source})  # type: ignore[dict-item]


def test_the_key_comes_from_the_environment_or_the_first_line_of_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    path.write_text("  sk-from-file \r\nsecond line\n")
    assert read_key(key_settings(None)) is None
    assert read_key(key_settings(path)) == "sk-from-file"
    monkeypatch.setenv("EDGE_REMOTE_KEY", " sk-from-environment\n")
    assert read_key(key_settings(None)) == "sk-from-environment"
    assert read_key(key_settings(path)) == "sk-from-environment"
    assert read_key(key_settings(path, "flag")) == "sk-from-file"


@pytest.mark.parametrize(
    "key",
    ["sk canary", "sk-canary\nX-Evil: 1", "sk-cänary", 'sk"canary', "sk\\canary", "sk-\x7fcanary", "c" * 5000],
)
def test_a_key_that_no_header_can_carry_is_refused_unseen(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("EDGE_REMOTE_KEY", key)
    with pytest.raises(ConfigError, match="EDGE_REMOTE_KEY") as caught:
        read_key(key_settings(None))
    assert "anary" not in str(caught.value) and "ccc" not in str(caught.value)


def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        read_key(key_settings(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key(key_settings(tmp_path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not text") as caught:
        read_key(key_settings(tmp_path / "binary"))
    assert caught.value.__cause__ is None


def test_a_bad_key_stops_before_any_connection() -> None:
    def no_key() -> str:
        raise ConfigError("the key file is gone")

    with Loopback(completion("Paris")) as server, pytest.raises(ConfigError):
        remote(server, key=no_key).complete(QUESTION, max_tokens=5)
    assert server.connections == 0


def test_repr_shows_no_key() -> None:
    asked = OpenAIRemote("https://host.example", "small", key=lambda: KEY)
    stream = asked.complete(QUESTION, max_tokens=5)
    assert repr(asked) == "OpenAIRemote('https://host.example/v1/chat/completions', 'small')"
    assert KEY not in repr(stream) + repr(vars(stream)) + repr(vars(asked))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:8080/", "http://localhost:8080/v1/chat/completions"),
        ("http://127.9.9.9/v1", "http://127.9.9.9/v1/chat/completions"),
        ("http://[::1]:8080", "http://[::1]:8080/v1/chat/completions"),
        ("HTTPS://Host.Example/v1/chat/completions/", "https://host.example/v1/chat/completions"),
        (" https://host.example:444/api ", "https://host.example:444/api/v1/chat/completions"),
    ],
)
def test_urls_are_completed(url: str, address: str) -> None:
    assert endpoint(url) == address
    assert endpoint(address) == address


@pytest.mark.parametrize(
    "url",
    [
        "http://host.example/v1", "http://127.0.0.1.host.example", "http://localhost.host.example", "http://0.0.0.0",
        "http://2130706433", "http://[::ffff:1.2.3.4]", "http://192.168.1.2", "ftp://host.example", "host.example",
        "//host.example", "https://", "https:///v1", "https://host.example:x", "https://host.example:99999",
        "https://[::1", "https://[fe80::1%25eth0]/", "https://a b", "https://host\\@evil.example", "https://-x", "",
        "https://host.example/a b", "https://host.example/\u00e9", "https://host.example/a\r\nX: 1",
    ],
)  # fmt: skip
def test_urls_that_must_not_be_used_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        OpenAIRemote(url, "small")


@pytest.mark.parametrize(
    "url", [f"https://me:{KEY}@host.example", f"https://host.example/v1?key={KEY}", f"https://host.example#{KEY}"]
)
def test_a_secret_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="more than scheme, host and path") as caught:
        endpoint(url)
    assert KEY not in str(caught.value)


@given(url=st.one_of(st.text(), st.text(alphabet="htps:/[]@.%?#\\ 1a-").map("http://".__add__)))
def test_any_text_is_a_usable_url_or_refused(url: str) -> None:
    try:
        address = httpx.URL(endpoint(url))
    except ConfigError:
        return
    assert address.path.endswith("/chat/completions") and not address.userinfo and not address.query
    assert address.scheme == "https" or address.host in ("localhost", "::1") or address.host.startswith("127.")


# --- anything at all --------------------------------------------------------------------------------

TYPES = st.sampled_from(["text/event-stream", "application/json", "text/html", "", "\u00ff;"])
HEADERS = st.dictionaries(
    st.sampled_from(["Retry-After", "Location", "Content-Encoding", "X"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20),
)


@given(status=st.integers(200, 999), media_type=TYPES, headers=HEADERS, data=st.data())
def test_any_response_is_a_reply_or_a_typed_error(
    status: int, media_type: str, headers: dict[str, str], data: st.DataObject
) -> None:
    pieces = st.one_of(
        st.binary(max_size=30), st.sampled_from([delta("Hi"), delta(finish="stop"), DONE, event("{}")])
    )
    body = b"".join(data.draw(st.lists(pieces, max_size=5)))

    def respond(_: httpx.Request) -> httpx.Response:
        coded = {name: value.encode("latin-1") for name, value in {**headers, "Content-Type": media_type}.items()}
        return httpx.Response(status, headers=list(coded.items()), stream=httpx.ByteStream(body))  # type: ignore[arg-type]

    asked = OpenAIRemote("http://localhost", "small", key=lambda: KEY, transport=httpx.MockTransport(respond))
    try:
        reply = ask(asked)
    except RemoteError as error:
        assert str(error).isprintable()
    else:
        assert status == 200 and reply.text.strip() and reply.finish_reason


def chaos(calls: int, seed: int) -> None:
    """Calls to a server that fails in every way at once: each is whole, or one typed error; none is repeated."""
    whole = completion("Par", "is")
    failures: list[Behaviour] = [
        raw(), reset(), reset(head() + delta("Par")), raw(head() + delta("Par")), raw(head() + event("{oops")),
        answer(429, Retry_After="1"), answer(500, "broken"), answer(200, "<html>", "text/html"),
        hang(head() + delta("Par")), drip([head(), *[b":\n"] * 200], 0.05),
    ]  # fmt: skip
    random_choice = random.Random(seed)
    script = [random_choice.choice(failures) if random_choice.random() < 0.5 else whole for _ in range(calls)]
    with Loopback(*script) as server:
        asked = remote(server, inter_token_timeout=0.2, deadline=0.4)
        for number, behaviour in enumerate(script):
            try:
                reply = ask(asked)
            except (RemoteProtocolError, RemoteRejectedError, RemoteTimeoutError):
                assert behaviour is not whole, f"call {number} of seed {seed}"
            else:
                assert behaviour is whole and reply.text == "Paris", f"call {number} of seed {seed}"
            assert len(server.requests) == server.connections == number + 1


def test_chaos() -> None:
    chaos(calls=60, seed=1)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(2, 6))
def test_chaos_for_long(seed: int) -> None:
    chaos(calls=1000, seed=seed)


# --- the fake ---------------------------------------------------------------------------------------


def test_the_fake_behaves_like_a_remote() -> None:
    error = RemoteRejectedError("no", status=500)
    fake = FakeRemote(["Par", "is"], ["one", "two", "three"], error, ["never"], model="fake")
    assert ask(fake) == RemoteReply("Paris", "fake", "stop", None, None, 0.0)
    stream = fake.complete(QUESTION, max_tokens=2)
    assert "".join(stream) == "onetwo" and stream.reply.finish_reason == "length"
    with pytest.raises(EdgeError) as caught:
        ask(fake)
    assert caught.value is error
    cancelled = Event()
    cancelled.set()
    assert ask(fake, cancelled).finish_reason == "cancelled"
    assert fake.requests == [tuple(QUESTION)] * 4
