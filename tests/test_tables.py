"""TOML tables become dataclasses or an error that names the key; nothing is guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ConfigError
from quantize.recipes.tables import between, one_of, read_toml, table


@dataclass(frozen=True)
class Cup:
    size: float = between(0.1, 2.0, default=0.3)


@dataclass(frozen=True)
class Tea:
    leaves: Path
    minutes: int = between(1, 9, default=3)
    kind: str = one_of("black", "green")
    strong: bool = False
    sugar: int | None = None
    names: tuple[str, ...] = ()
    cup: Cup = Cup()
    cups: Mapping[str, Cup] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)


def read(values: Mapping[str, Any]) -> Tea:
    return table(Tea, {"leaves": "box", **values}, "tea.toml", Path("/kitchen"))


def test_every_kind_of_value_is_read() -> None:
    found = read(
        {"minutes": 4, "kind": "green", "strong": True, "sugar": 2, "names": ["a", "b"], "cup": {"size": 1},
         "cups": {"best": {"size": 0.5}}, "prices": {"small": 2}}
    )  # fmt: skip
    assert found == Tea(
        Path("/kitchen/box"), 4, "green", True, 2, ("a", "b"), Cup(1.0), {"best": Cup(0.5)}, {"small": 2.0}
    )
    assert isinstance(found.cup.size, float)


def test_one_value_needs_no_list_and_an_absolute_path_stays() -> None:
    assert read({"names": "a"}).names == ("a",)
    assert read({"leaves": "/far/box"}).leaves == Path("/far/box")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"minute": 3}, "unknown key minute; did you mean minutes?"),
        ({"xyz": 3}, "unknown key xyz; it may have leaves"),
        ({"minutes": 0}, "tea.toml.minutes is 0, not from 1 to 9"),
        ({"minutes": True}, "tea.toml.minutes is True, not a whole number"),
        ({"minutes": 2.0}, "tea.toml.minutes is 2.0, not a whole number"),
        ({"strong": 1}, "tea.toml.strong is 1, not true or false"),
        ({"kind": "red"}, "tea.toml.kind is 'red'; use one of black, green"),
        ({"leaves": ""}, "tea.toml.leaves is '', not a path"),
        ({"sugar": "two"}, "tea.toml.sugar is 'two', not a whole number"),
        ({"names": ["a", 3]}, "tea.toml.names[1] is 3, not a text"),
        ({"cup": 3}, "tea.toml.cup is 3, not a table"),
        ({"cups": {"best": {"size": 9}}}, "tea.toml.cups.best.size is 9, not from 0.1 to 2"),
        ({"cups": {"best": {"siz": 9}}}, "tea.toml.cups.best has an unknown key siz; did you mean size?"),
        ({"cup": {"size": float("nan")}}, "tea.toml.cup.size is nan, not a number"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(values)
    assert words in str(caught.value)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"tea\.toml has no leaves"):
        table(Tea, {}, "tea.toml", Path())


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*Tea.__dataclass_fields__, "other"]), plain, max_size=4))
def test_any_table_is_read_or_refused_in_one_line(values: dict[str, Any]) -> None:
    try:
        found = read(values)
    except ConfigError as error:
        assert str(error).startswith("tea.toml") and "\n" not in str(error)
    else:
        assert 1 <= found.minutes <= 9 and isinstance(found.leaves, Path)


def test_what_is_no_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    for content in (b"a =", b"\xff\xfe", b"a = 1\na = 2"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="is not TOML"):
            read_toml(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path / "none.toml")
