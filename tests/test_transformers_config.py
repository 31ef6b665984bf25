from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk.errors import ModelDamagedError
from edge_sdk.model_files.transformers_config import DecoderConfig

NOTHING = DecoderConfig(None, None, None, frozenset(), "", "", False, None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _read(folder: Path, **files: Any) -> DecoderConfig:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return DecoderConfig.read(folder)


def test_no_files_say_nothing(tmp_path: Path) -> None:
    assert DecoderConfig.read(tmp_path) == NOTHING


def test_settings_are_read_from_where_transformers_writes_them(tmp_path: Path) -> None:
    config = _read(
        tmp_path,
        config={
            "max_position_embeddings": 2048,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "hidden_size": 512,
            "eos_token_id": 2,
        },
        generation_config={"eos_token_id": [2, 7]},
        tokenizer_config={
            "eos_token": {"content": "</s>"},
            "bos_token": "<s>",
            "add_bos_token": True,
            "chat_template": "T",
        },
    )
    assert config == DecoderConfig(2048, 2, 64, frozenset({2, 7}), "</s>", "<s>", True, "T")


def test_what_is_said_wins_over_what_follows_from_the_rest(tmp_path: Path) -> None:
    config = _read(tmp_path, config={"num_attention_heads": 8, "hidden_size": 512, "head_dim": 128})
    assert (config.heads, config.head_size) == (8, 128)


def test_a_begin_token_is_known_even_where_it_is_not_added(tmp_path: Path) -> None:
    config = _read(tmp_path, tokenizer_config={"bos_token": "<s>", "add_bos_token": False})
    assert (config.begin_text, config.adds_begin) == ("<s>", False)


@pytest.mark.parametrize(
    ("value", "template"),
    [
        ("T", "T"),
        ([{"name": "tool_use", "template": "U"}, {"name": "default", "template": "D"}], "D"),
        ([{"name": ["default"], "template": "U"}, "default"], None),
        ({"default": "T"}, None),
    ],
)
def test_the_default_template_is_taken(tmp_path: Path, value: object, template: str | None) -> None:
    assert _read(tmp_path, tokenizer_config={"chat_template": value}).template == template


def test_the_template_s_own_file_wins(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("file é")
    assert _read(tmp_path, tokenizer_config={"chat_template": "settings"}).template == "file é"


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelDamagedError, match=name) as caught:
        DecoderConfig.read(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelDamagedError, match="larger"):
        DecoderConfig.read(tmp_path)


@given(content=st.dictionaries(st.sampled_from(
    ["max_position_embeddings", "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim",
     "eos_token_id", "eos_token", "bos_token", "add_bos_token", "chat_template"]), JSON))  # fmt: skip
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_settings_of_a_wrong_type_are_passed_over(tmp_path: Path, content: dict[str, Any]) -> None:
    config = _read(tmp_path, config=content, generation_config=content, tokenizer_config=content)
    for number in (config.positions, config.heads, config.head_size):
        assert number is None or number > 0
    assert all(at >= 0 for at in config.end_ids)
    assert isinstance(config.template, str | None)
