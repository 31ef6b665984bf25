"""Who may ask: this machine's programs, whoever has the key, and no page of another site."""

from __future__ import annotations

import pytest

from edge_sdk.errors import ConfigError, RequestError
from edge_sdk.serving.guard import MOST_BYTES, Guard

KEY = "0123456789abcdef"
JSON = {"content-type": "application/json"}


def refused(guard: Guard, method: str = "GET", path: str = "/v1/models", **headers: str) -> int:
    """The status of the refusal, 0 for none."""
    given = {"host": "localhost:8017", **{name.replace("_", "-"): value for name, value in headers.items()}}
    try:
        guard.check(method, path, given)
    except RequestError as error:
        return error.status
    return 0


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8017", "[::1]:80", "localhost."])
def test_names_of_this_machine_are_taken(host: str) -> None:
    assert refused(Guard.of("127.0.0.1"), host=host) == 0


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "127.0.0.1.evil.example", "localhost@evil.example:80", "a:b:c", "[::1", "2130706433"],
)
def test_a_name_that_was_pointed_here_is_refused(host: str) -> None:
    assert refused(Guard.of("127.0.0.1"), host=host) == 421


def test_other_names_can_be_given() -> None:
    guard = Guard.of("0.0.0.0", ["Pi.lan"], KEY)
    assert refused(guard, host="pi.LAN:80", authorization=f"Bearer {KEY}") == 0
    assert refused(guard, host="pi.lan.example", authorization=f"Bearer {KEY}") == 421


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://[", ""]
)
def test_pages_of_others_may_not_ask(origin: str) -> None:
    assert refused(Guard.of("127.0.0.1"), origin=origin) == 403


def test_a_page_of_this_machine_may() -> None:
    assert refused(Guard.of("127.0.0.1"), origin="http://localhost:3000") == 0


def test_a_body_must_be_json_for_which_a_page_has_to_ask_first() -> None:
    guard = Guard.of("127.0.0.1")
    assert refused(guard, "POST", content_type="text/plain") == 415
    assert refused(guard, "POST") == 415
    assert refused(guard, "POST", content_type="Application/JSON; charset=utf-8") == 0
    assert refused(guard, "POST", content_type="application/json", content_length=str(MOST_BYTES + 1)) == 413
    assert refused(guard, "POST", content_type="application/json", content_length=str(MOST_BYTES)) == 0


def test_a_key_is_asked_for_but_not_for_the_health() -> None:
    guard = Guard.of("127.0.0.1", key=KEY)
    assert refused(guard) == 401
    for wrong in (
        "",
        KEY,
        f"Basic {KEY}",
        "Bearer",
        "Bearer x",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        "Bearer é",
    ):
        assert refused(guard, authorization=wrong) == 401
    for right in (f"Bearer {KEY}", f"bearer  {KEY} "):
        assert refused(guard, authorization=right) == 0
    assert refused(guard, path="/health") == 0
    assert refused(guard, path="/health/../v1/models") == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "pi.lan", "::"])
def test_nobody_else_is_listened_to_without_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="no key"):
        Guard.of(host)
    assert Guard.of(host, key=KEY).key == KEY


def test_with_a_key_any_number_is_an_address_of_ours_but_no_name() -> None:
    guard = Guard.of("0.0.0.0", key=KEY)
    key = {"authorization": f"Bearer {KEY}"}
    assert refused(guard, host="192.168.1.5:8017", **key) == 0
    assert refused(guard, host="[fe80::1]:8017", **key) == 0
    assert refused(guard, host="evil.example", **key) == 421
    assert refused(Guard.of("127.0.0.1"), host="192.168.1.5:8017") == 421


@pytest.mark.parametrize("key", ["0123456789abcdéf", "0123456789 abcdef", "0123456789abc\ndef"])
def test_a_key_that_no_header_carries_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="header"):
        Guard.of("127.0.0.1", key=key)


def test_a_short_key_is_none() -> None:
    with pytest.raises(ConfigError, match="3 characters"):
        Guard.of("127.0.0.1", key="abc")
