from __future__ import annotations

import builtins
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_files import SPECIAL, write_tokenizer

from edge_sdk.errors import EngineError, ModelDamagedError, ModelNotFoundError
from edge_sdk.model_files.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.open(folder / "tokenizer.json")


@given(st.text(st.characters(codec="utf-8", exclude_characters="<")))  # spells no special token
def test_the_pieces_of_a_text_are_its_bytes(tokenizer: Tokenizer, text: str) -> None:
    assert b"".join(map(tokenizer.piece, tokenizer.encode(text))) == text.encode()


@pytest.mark.parametrize(
    ("text", "seen"), [("a\ud800b", "a�b"), ("\ud83d\ude00", "😀"), ("\ufeffa\0", "\ufeffa\0")]
)
def test_surrogates_become_text(tokenizer: Tokenizer, text: str, seen: str) -> None:
    assert b"".join(map(tokenizer.piece, tokenizer.encode(text))).decode() == seen


def test_special_tokens_are_recognised_and_have_no_bytes(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|end|>b")
    assert ids == [ord("a"), SPECIAL["<|end|>"], ord("b")]
    assert tokenizer.piece(SPECIAL["<|end|>"]) == b""
    assert tokenizer.id("<|end|>") == SPECIAL["<|end|>"]
    assert tokenizer.spelling(SPECIAL["<|end|>"]) == "<|end|>"
    assert tokenizer.special_spellings() == set(SPECIAL)
    assert tokenizer.longest == len("<|assistant|>")
    assert tokenizer.id("nothing") is None
    assert tokenizer.spelling(9999) is None
    assert tokenizer.piece(9999) == b""


def test_truncation_is_ours_and_not_the_file_s(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    path.write_text(json.dumps(content))
    assert len(Tokenizer.open(path).encode("abcdef")) == 6
    assert len(Tokenizer.open(path, max_tokens=4).encode("abcdef")) == 4


def _with_decoder(tmp_path: Path, decoder: object, vocabulary: Sequence[str]) -> Tokenizer:
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["decoder"], content["added_tokens"] = decoder, []
    content["model"]["vocab"] = {text: at for at, text in enumerate(vocabulary)}
    path.write_text(json.dumps(content))
    return Tokenizer.open(path)


@pytest.mark.parametrize(
    "decoder",
    [
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                                          {"type": "ByteFallback"}, {"type": "Fuse"}]},
    ],
)  # fmt: skip
def test_sentencepiece_vocabularies_are_spelled(tmp_path: Path, decoder: Mapping[str, object]) -> None:
    tokenizer = _with_decoder(tmp_path, decoder, ["▁the", "<0xE2>", "é", "<0xZZ>"])
    assert [tokenizer.piece(at) for at in range(4)] == [b" the", b"\xe2", "é".encode(), b"<0xZZ>"]


@pytest.mark.parametrize("decoder", [None, {"type": "WordPiece", "prefix": "##", "cleanup": True}])
def test_a_vocabulary_that_cannot_be_spelled_is_an_engine_error(tmp_path: Path, decoder: object) -> None:
    with pytest.raises(EngineError, match="decoder is"):
        _with_decoder(tmp_path, decoder, ["a"]).piece(0)


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cut_file_is_damaged(tmp_path: Path, at: int) -> None:
    write_tokenizer(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_bytes()
    (tmp_path / "cut.json").write_bytes(whole[: at % (len(whole) - 2)])
    with pytest.raises(ModelDamagedError) as caught:
        Tokenizer.open(tmp_path / "cut.json")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"nowhere\.json"):
        Tokenizer.open(tmp_path / "nowhere.json")
    with pytest.raises(ModelNotFoundError):
        Tokenizer.open(tmp_path)


def test_a_missing_package_is_named_with_its_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: object) -> object:
        if name == "tokenizers":
            raise ImportError("no tokenizers")
        return real(name, *arguments)  # type: ignore[arg-type]

    write_tokenizer(tmp_path)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EngineError, match="pip install tokenizers"):
        Tokenizer.open(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "changed",
    [
        {"continuing_subword_prefix": "a"},
        {"merges": ["t zz"]},
        {"merges": [["t", "é", "t"]]},
        {"vocab": {"t": 0, "é": 1}},
    ],
)
def test_a_file_that_would_end_the_process_never_gets_there(tmp_path: Path, changed: Mapping[str, object]) -> None:
    """Rust panics cross no `except Exception`, and some of this package's abort."""
    model = {"type": "BPE", "vocab": {"t": 0, "é": 1, "té": 2}, "merges": ["t é"]}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    Tokenizer.open(path)
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": {**model, **changed}}))
    with pytest.raises(ModelDamagedError, match="is no tokenizer"):
        Tokenizer.open(path)
