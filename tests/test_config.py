"""Settings, their order of precedence, and bad values named with where they came from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.config import Settings, given_path, load_settings
from edge_sdk.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def with_file(home: Path, text: str) -> None:
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(text)


def load(home: Path, flags: dict[str, object] | None = None, **environment: str) -> Settings:
    return load_settings(flags, {"EDGE_HOME": str(home), **environment})


def test_the_defaults_need_no_file_and_no_folder(home: Path) -> None:
    found = load(home)
    assert found.store == home / "store.db"
    assert (found.offline, found.model, found.encoder, found.context) == (False, None, "minilm-l6-int8", 4096)
    assert (found.threads, found.remote, found.remote_model, found.remote_key_file) == (None, None, None, None)
    assert found.sources["home"] == "environment"
    assert {source for name, source in found.sources.items() if name != "home"} == {"default"}
    assert not home.exists()


def test_a_flag_wins_over_the_environment_that_over_the_file_that_over_the_default(home: Path) -> None:
    with_file(home, 'context = 100\nmodel = "from-file"\nthreads = 3\nremote = "https://file.example"')
    found = load(home, {"context": 300, "model": None}, EDGE_CONTEXT="200", EDGE_THREADS="2")
    assert (found.context, found.threads, found.model) == (300, 2, "from-file")
    wanted = {"context": "flag", "threads": "environment", "model": "file", "encoder": "default"}
    assert {name: found.sources[name] for name in wanted} == wanted


def test_every_setting_can_come_from_the_environment(home: Path, tmp_path: Path) -> None:
    values = {
        "store": str(tmp_path / "s.db"),
        "offline": "1",
        "model": "m",
        "adapter": "a.gguf",
        "encoder": "e",
        "reader": "r",
        "bundle": str(tmp_path / "b.edge"),
        "require_signature": "1",
        "context": "128",
        "threads": "2",
        "cache_type": "q8_0",
        "repack": "1",
        "unload_after": "300",
        "background": "0",
        "evidence_tokens": "200",
        "isolated": "1",
        "prefix_cache": "64",
        "parallel": "4",
        "speculation": "1",
        "remote": "https://r.example",
        "remote_model": "rm",
        "remote_key_file": str(tmp_path / "k"),
        "remote_prices": "0.15/0.60",
        "budget": "1/day",
        "privacy": "ask",
        "privacy_send": "selected",
        "privacy_level": "redact",
    }
    found = load(home, **{f"EDGE_{name.upper()}": value for name, value in values.items()})
    assert set(found.sources) == {*values, "home"}
    assert set(found.sources.values()) == {"environment"}
    assert (found.offline, found.require_signature, found.speculation, found.repack) == (True, True, True, True)
    assert not found.background
    assert found.isolated
    switches = {"offline", "background", "require_signature", "speculation", "isolated", "repack"}
    for name in values.keys() - switches:
        assert str(getattr(found, name)) == values[name]


def test_an_empty_variable_switches_off_what_can_be_off_and_is_not_given_elsewhere(home: Path) -> None:
    with_file(home, 'remote = "https://file.example"\nthreads = 3\noffline = true\nencoder = "e"\ncontext = 100')
    found = load(
        home, **dict.fromkeys(["EDGE_REMOTE", "EDGE_THREADS", "EDGE_OFFLINE", "EDGE_ENCODER", "EDGE_CONTEXT"], "")
    )
    assert (found.remote, found.threads) == (None, None)
    assert (found.offline, found.encoder, found.context) == (True, "e", 100)
    assert load_settings({}, {"EDGE_HOME": ""}).sources["home"] == "default"
    assert [load(home, EDGE_REPACK=word).repack for word in ("", "0", "1")] == [None, False, True]


def test_the_key_is_no_setting(home: Path) -> None:
    found = load(home, EDGE_REMOTE_KEY="canary")
    assert "canary" not in repr(found)
    with_file(home, 'remote_key = "canary"')
    with pytest.raises(ConfigError, match="unknown setting 'remote_key'"):
        load(home)


def test_a_setting_outranks_another_that_comes_from_no_stronger_place(home: Path) -> None:
    with_file(home, 'bundle = "b.edge"\nmodel = "m"')
    found = load(home, {"encoder": "e"}, EDGE_CONTEXT="128")
    names = ("model", "encoder", "context", "threads")
    assert [found.outranks(name, "bundle") for name in names] == [True, True, True, False]
    found = load(home, {"bundle": "b.edge", "encoder": "e"}, EDGE_CONTEXT="128")
    assert [found.outranks(name, "bundle") for name in names] == [False, True, False, False]


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("1", True),
        ("true", True),
        ("YES", True),
        (" on ", True),
        ("0", False),
        ("No", False),
        ("off", False),
        (" ", False),
    ],
)
def test_offline_takes_the_usual_words(home: Path, text: str, truth: bool) -> None:
    assert load(home, EDGE_OFFLINE=text).offline is truth


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("context", "63"),
        ("context", "many"),
        ("context", "-1"),
        ("context", "4096.5"),
        ("context", "9" * 5000),
        ("threads", "0"),
        ("threads", "two"),
        ("threads", "100000"),
        ("unload_after", "1000000000000"),
        ("offline", "maybe"),
        ("store", "~nobody-of-this-name/s.db"),
    ],
)
def test_a_bad_value_is_named_with_its_source(home: Path, name: str, value: str) -> None:
    for source, arguments in (
        ("flag", ({name: value}, {})),
        ("environment", ({}, {f"EDGE_{name.upper()}": value})),
    ):
        with pytest.raises(ConfigError) as caught:
            load_settings(arguments[0], {"EDGE_HOME": str(home), **arguments[1]})
        assert name in str(caught.value)
        assert name == "store" or source in str(caught.value)


def test_a_home_of_nobody_is_one_line() -> None:
    with pytest.raises(ConfigError, match="home is '~nobody-of-this-name'"):
        load_settings({"home": "~nobody-of-this-name"}, {})


@pytest.mark.parametrize(
    "content",
    [
        b"context =",
        b"\xff\xfe",
        b"a = " + b"[" * 100_000,
        b"contxt = 5",
        b"context = [1]",
        b"model = 1.5",
        b"[remote]\nurl = 'x'",
        b"home = '/elsewhere'",
    ],
)
def test_a_bad_file_is_one_line_that_names_it(home: Path, content: bytes) -> None:
    home.mkdir()
    (home / "config.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(home / "config.toml"))) as caught:
        load(home)
    assert "\n" not in str(caught.value)


def test_an_unknown_setting_lists_those_that_exist(home: Path) -> None:
    with_file(home, "contxt = 5")
    with pytest.raises(ConfigError, match=r"'contxt'; use one of adapter, .*, context, encoder, .*model"):
        load(home)


def test_a_home_that_is_a_file_is_one_line(home: Path) -> None:
    home.write_text("")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(home)


@given(st.dictionaries(st.sampled_from(["store", "offline", "model", "context", "threads", "remote"]), st.text()))
def test_any_value_gives_settings_or_a_config_error(values: dict[str, str]) -> None:
    try:
        load_settings(dict(values), {"EDGE_HOME": "/nonexistent"})
    except ConfigError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("text", ["~nobody-of-this-name/a", "~\0", "/a\0b"])
def test_what_is_no_path_is_one_line_that_names_it(text: str) -> None:
    with pytest.raises(ConfigError, match="the reader is '"):
        given_path(text, "the reader")
