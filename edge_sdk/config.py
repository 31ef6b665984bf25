"""Settings and where each came from: a flag, the environment, `$EDGE_HOME/config.toml` or the default.

Knows nothing of what the settings are for. Reading settings opens one small file and no socket.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from .errors import ConfigError

Source = Literal["flag", "environment", "file", "default"]
MOST_THREADS = 512
"""With tens of thousands llama.cpp's library ends the process, and no device gains by more than it has cores."""
_MOST_SECONDS = 10**9  # timers take no more than some hundred years
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off", ""}


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting. `sources` maps a field's name to where its value came from.

    Each field `x` is read from `EDGE_X`, except that the key of the remote is never a field: it is read when
    a request is made, from `EDGE_REMOTE_KEY` or from `remote_key_file`.
    """

    home: Path
    store: Path
    offline: bool
    model: str | None
    adapter: str | None  # a file, a name in the bundle, or none
    encoder: str
    reader: str | None  # a catalog name, a folder, or none
    bundle: Path | None
    require_signature: bool  # of the bundle, by a key in HOME/trusted_keys
    context: int
    threads: int | None
    evidence_tokens: int | None  # of the passages in a prompt: chosen sentences up to so many; 0: whole passages
    cache_type: str | None  # of the KV cache: f16 or q8_0
    repack: bool | None  # weights are copied for the kernels of single tokens
    unload_after: int | None  # seconds without a question, after which the language model is freed
    background: bool  # adding documents gives way to whatever else needs the cores
    prefix_cache: int  # MB of evaluated prompts kept under HOME/prefixes; 0: none
    isolated: bool  # the language model runs in a process of its own
    parallel: int  # answers that the language model generates at once, where its engine can
    speculation: bool  # a quoting answer is evaluated several tokens at a time, where that pays
    remote: str | None
    remote_model: str | None
    remote_key_file: Path | None
    remote_prices: str | None  # see `fallback.budget.Prices.parse`
    budget: str | None  # see `fallback.budget.Budget.parse`
    privacy: str  # the mode of `privacy.gate.PrivacyPolicy`, then its other two fields
    privacy_send: str
    privacy_level: str
    sources: Mapping[str, Source]

    def outranks(self, name: str, other: str) -> bool:
        """Whether `name` was given, and nowhere weaker than `other`: a flag outranks a flag or the environment."""
        mine, theirs = self.sources[name], self.sources[other]
        return mine != "default" and _ORDER.index(mine) <= _ORDER.index(theirs)


_ORDER: tuple[Source, ...] = ("flag", "environment", "file", "default")
_DEFAULTS: dict[str, str | None] = {
    "home": "~/.edge",
    "store": None,  # HOME/store.db
    "offline": "0",
    "model": None,  # the best that is present and fits
    "adapter": None,  # the bundle's, if it has one
    "encoder": "minilm-l6-int8",
    "reader": None,  # the bundle's, if it has one
    "bundle": None,
    "require_signature": "0",
    "context": "4096",
    "threads": None,  # physical cores that this process may use
    "evidence_tokens": None,  # as the model reads best
    "cache_type": None,  # what `edge tune` has found, else f16
    "repack": None,  # likewise, else by the file
    "unload_after": None,  # never
    "background": "1",
    "prefix_cache": "256",
    "isolated": "0",
    "parallel": "1",
    "speculation": "0",
    "remote": None,
    "remote_model": None,
    "remote_key_file": None,
    "remote_prices": None,
    "budget": None,
    "privacy": "local_only",
    "privacy_send": "question",
    "privacy_level": "pseudonymise",
}


_VARIABLES = {name: f"EDGE_{name.upper()}" for name in _DEFAULTS}


def load_settings(
    flags: Mapping[str, object] | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Read the settings; a flag wins over the environment, that over the file, that over the default.

    `flags` maps field names to values; None means not given. An empty variable means "none" where that is a
    value (`EDGE_REMOTE=` switches off the remote of the file) and is not given elsewhere. Raises `ConfigError`
    naming the bad value and its source.
    """
    flags = flags or {}
    if unknown := sorted(flags.keys() - _DEFAULTS.keys()):
        near = get_close_matches(unknown[0], _DEFAULTS, 1) or sorted(_DEFAULTS)
        raise ConfigError(f"there is no setting {unknown[0]!r}", hint=f"use {', '.join(near)}")
    environment = os.environ if environment is None else environment
    home = _expand("home", flags.get("home") or environment.get("EDGE_HOME") or _DEFAULTS["home"])
    layers: list[tuple[Source, Mapping[str, object]]] = [
        ("flag", {name: value for name, value in flags.items() if value is not None}),
        ("environment", _from_environment(environment)),
        ("file", _read_file(home / "config.toml")),
        ("default", _DEFAULTS),
    ]
    values: dict[str, object] = {}
    sources: dict[str, Source] = {}
    for name in _DEFAULTS:
        source, layer = next((source, layer) for source, layer in layers if name in layer)
        values[name], sources[name] = layer[name], source
    values["home"] = home

    def number(name: str, least: int, most: int | None = None) -> int:
        value = values[name]
        try:
            result = int(str(value))
        except ValueError:
            result = least - 1
        if result < least or (most is not None and result > most):
            to = "" if most is None else f" to {most}"
            raise ConfigError(f"{name} is {value!r} ({sources[name]}), not a whole number from {least}{to}")
        return result

    def path(name: str) -> Path | None:
        return _expand(name, values[name]) if values[name] else None

    def text(name: str) -> str | None:
        return str(values[name]) if values[name] else None

    def one_of(name: str, *known: str) -> str:
        word = str(values[name]).strip().lower()
        if word not in known:
            raise ConfigError(f"{name} is {values[name]!r} ({sources[name]})", hint=f"use {' or '.join(known)}")
        return word

    def switch(name: str) -> bool:
        word = str(values[name]).strip().lower()
        if word not in _TRUE | _FALSE:
            raise ConfigError(f"{name} is {values[name]!r} ({sources[name]})", hint="use 1 or 0")
        return word in _TRUE

    return Settings(
        home=home,
        store=path("store") or home / "store.db",
        offline=switch("offline"),
        model=text("model"),
        adapter=text("adapter"),
        encoder=str(values["encoder"]),
        reader=text("reader"),
        bundle=path("bundle"),
        require_signature=switch("require_signature"),
        context=number("context", 64),
        threads=None if values["threads"] in (None, "") else number("threads", 1, MOST_THREADS),
        evidence_tokens=None if values["evidence_tokens"] in (None, "") else number("evidence_tokens", 0),
        cache_type=None if not values["cache_type"] else one_of("cache_type", "f16", "q8_0"),
        repack=None if values["repack"] in (None, "") else switch("repack"),
        unload_after=None if values["unload_after"] in (None, "") else number("unload_after", 1, _MOST_SECONDS),
        background=switch("background"),
        prefix_cache=number("prefix_cache", 0),
        isolated=switch("isolated"),
        parallel=number("parallel", 1),
        speculation=switch("speculation"),
        remote=text("remote"),
        remote_model=text("remote_model"),
        remote_key_file=path("remote_key_file"),
        remote_prices=text("remote_prices"),
        budget=text("budget"),
        privacy=str(values["privacy"]),
        privacy_send=str(values["privacy_send"]),
        privacy_level=str(values["privacy_level"]),
        sources=sources,
    )


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    given = {name: environment[key] for name, key in _VARIABLES.items() if key in environment}
    return {name: value for name, value in given.items() if value or _DEFAULTS[name] is None}


def _expand(name: str, value: object) -> Path:
    return given_path(str(value), name)


def given_path(text: str, what: str) -> Path:
    """The path that somebody has written, `~` being their home; `what` names it in the error.

    Raises `ConfigError` for what no system takes for a path: `~somebody` who does not exist, a null character.
    """
    try:
        if "\0" in text:
            raise ValueError("a path has no null character")
        return Path(text).expanduser()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{what} is {text!r}: {error}", hint="name another file or folder") from error


def _read_file(path: Path) -> dict[str, object]:
    import tomllib

    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not TOML, or not UTF-8
        raise ConfigError(f"{path} cannot be read: {error}") from error
    known = {field.name for field in fields(Settings)} - {"sources", "home"}
    for name, value in content.items():
        if name in known and not isinstance(value, str | int):  # a bool is an int
            raise ConfigError(f"{path} sets {name} to {value!r}", hint="use a text, a whole number, true or false")
        if name not in known:
            raise ConfigError(
                f"{path} has an unknown setting {name!r}", hint=f"use one of {', '.join(sorted(known))}"
            )
    return content
