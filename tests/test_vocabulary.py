"""Vocabulary pruning: fewer tokens, known texts read as before, all others still read, and equal logits."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from gguf_files import CONTROL, MERGES, WORDS, byte_alphabet, tiny_llama
from gguf_files import Field as Written
from hf_folders import config, native_logits, tokenizer, weights, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.cli import main
from edge_sdk.errors import ConfigError, DiskFullError
from quantize.gguf_models.convert import convert, to_huggingface
from quantize.gguf_models.gguf_format import F32, I32, STRING, U32, Field
from quantize.gguf_models.native_vocabulary import NativeVocabulary
from quantize.gguf_models.tensors import GgufModel, read_fields
from quantize.gguf_models.token_choice import Merges, choose_tokens
from quantize.gguf_models.tokenizer_json import CONTROL as CONTROL_TYPE
from quantize.gguf_models.tokenizer_json import NORMAL, UNUSED, ByteBpe
from quantize.gguf_models.vocabulary import prune_fields, prune_vocabulary

TOKENS = [*CONTROL, *byte_alphabet(), *WORDS]
BASE = len(CONTROL) + 256  # what is kept whatever the texts are


def text_file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def bpe(words: tuple[str, ...] = WORDS, merges: tuple[str, ...] = MERGES) -> ByteBpe:
    tokens = [*CONTROL, *byte_alphabet(), *words]
    kinds = [CONTROL_TYPE] * len(CONTROL) + [NORMAL] * (len(tokens) - len(CONTROL))
    return ByteBpe(tokens, kinds, list(merges), "gpt-2")


def wide_llama(path: Path, words: int = 400) -> Path:
    """A tiny model whose vocabulary has chains of merges over made-up syllables, and an output of its own."""
    pick = random.Random(3)
    made, known = tokenizer(), [*"abcdefghij", "Ġ"]
    made["model"]["vocab"] = {token: at for at, token in enumerate(TOKENS[:BASE])}
    made["model"]["merges"] = merges = []
    while len(merges) < words:
        first, second = pick.choice(known), pick.choice(known)
        if first + second not in known and "Ġ" not in second and len(first + second) < 9:
            known.append(first + second)
            made["model"]["vocab"][first + second] = BASE + len(merges)
            merges.append([first, second])
    figures = config(vocab_size=BASE + words)
    folder = write_folder(path.with_suffix(".hf"), figures, weights(figures), tokenizer_json=made)
    convert(folder, path, type="Q8_0")
    shutil.rmtree(folder)
    return path


# --- which tokens ----------------------------------------------------------------------------------------


def test_bytes_special_tokens_and_what_a_token_is_merged_from_are_kept() -> None:
    made = bpe()
    kept = choose_tokens(made, {TOKENS.index("Ġthe"): 5}, size=BASE + 3)
    assert set(range(BASE)) | {TOKENS.index(each) for each in ("th", "the", "Ġthe")} == set(kept)


def test_the_most_frequent_tokens_come_first() -> None:
    counts = {TOKENS.index("er"): 9, TOKENS.index("in"): 4, TOKENS.index("Ġa"): 4}
    assert {TOKENS[at] for at in choose_tokens(bpe(), counts, size=BASE + 2)} - set(TOKENS[:BASE]) == {"er", "in"}


def test_coverage_counts_the_parts_that_come_along() -> None:
    words = tuple(f"{first}{second}" for first in "abcdefghijklmnop" for second in "qrstuvwxyz")
    chain = ("aqbr", "aqbrcs")
    made = bpe((*words, *chain), (*(f"{word[0]} {word[1]}" for word in words), "aq br", "aqbr cs"))
    at = {token: number for number, token in enumerate(made.tokens)}
    # The longest token brings aq, br, cs and aqbr, and with them 13 of the 16 that are counted.
    counts = {at["aqbrcs"]: 5, at["aq"]: 4, at["br"]: 4, at["pz"]: 3}
    assert at["pz"] not in choose_tokens(made, counts, coverage=13 / 16)
    assert at["pz"] in choose_tokens(made, counts, coverage=0.9)


def test_a_token_with_many_parts_gives_way_to_one_that_fits() -> None:
    counts = {TOKENS.index("Ġthe"): 9, TOKENS.index("in"): 1}
    kept = choose_tokens(bpe(), counts, size=BASE + 1)
    assert {TOKENS[at] for at in kept[BASE:]} == {"in"}


def test_a_size_that_cannot_be_met_names_the_smallest_that_can() -> None:
    with pytest.raises(ConfigError, match=f"smallest size is {BASE}"):
        choose_tokens(bpe(), {}, size=BASE - 1)
    with pytest.raises(ConfigError, match="267 tokens, no more than 267"):
        choose_tokens(bpe(), {}, size=267)


def test_rows_come_in_multiples_of_64_filled_with_the_tokens_merged_first() -> None:
    words = tuple(f"{first}{second}" for first in "abcdefghijklmnop" for second in "qrstuvwxyz")
    made = bpe(words, tuple(f"{word[0]} {word[1]}" for word in words))
    kept = choose_tokens(made, {BASE + 100: 3})
    assert len(kept) == 320
    assert kept == [*range(BASE + 60), BASE + 100]
    assert len(choose_tokens(made, {}, size=400)) == 384


def test_padding_is_dropped_and_what_is_always_needed_stays() -> None:
    made = bpe()
    made.tokens.extend(["[PAD267]", "[PAD268]"])
    made.types.extend([UNUSED, UNUSED])
    kept = choose_tokens(made, {}, always=[TOKENS.index("and")], size=BASE + 2)
    assert [TOKENS[at] for at in kept[BASE:]] == ["an", "and"]


def test_a_token_that_no_merge_reaches_needs_only_itself() -> None:
    made = bpe((*WORDS, "zq"))
    assert Merges(made).of(len(TOKENS)) == {len(TOKENS)}
    assert Merges(made).of(0) == {0}


def encoded(text: str, merges: Sequence[str]) -> list[str]:
    """Byte-pair encoding of one word, as its paper has it: the best merge first, everywhere, again and again."""
    parts = list(text)
    ranks = {tuple(merge.split(" ")): rank for rank, merge in reversed(list(enumerate(merges)))}
    while best := min((pair for pair in pairwise(parts) if pair in ranks), key=ranks.__getitem__, default=None):
        at, joined = 0, []
        while at < len(parts):
            both = tuple(parts[at : at + 2]) == best
            joined.append("".join(best) if both else parts[at])
            at += 2 if both else 1
        parts = joined
    return parts


@given(
    pairs=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=24),
    words=st.lists(st.text("abcd", min_size=1, max_size=16), min_size=1, max_size=4),
    other=st.text("abcd", max_size=16),
)
def test_words_whose_tokens_are_kept_are_encoded_as_before(
    pairs: list[tuple[int, int]], words: list[str], other: str
) -> None:
    known, merges = list("abcd"), []
    for first, second in pairs:  # any merges, of tokens that other merges make too
        left, right = known[first % len(known)], known[second % len(known)]
        if f"{left} {right}" not in merges:
            merges.append(f"{left} {right}")
            known += [left + right] if left + right not in known else []
    made = bpe(tuple(known[4:]), tuple(merges))
    at = {token: number for number, token in enumerate(made.tokens)}
    parts = Merges(made)
    needed = {kept for word in words for token in encoded(word, merges) for kept in parts.of(at[token])}
    kept = sorted({*range(BASE), *needed})
    fields = {"general.architecture": Field(STRING, "llama")} | made.fields()
    left = prune_fields(fields, made, kept)["tokenizer.ggml.merges"].value
    assert [encoded(word, left) for word in words] == [encoded(word, merges) for word in words]
    assert set(encoded(other, left)) <= {made.tokens[token] for token in kept}


# --- the new file ----------------------------------------------------------------------------------------


def test_known_texts_are_read_as_before_and_logits_do_not_change(tmp_path: Path) -> None:
    source = wide_llama(tmp_path / "wide.gguf")
    pick = random.Random(5)
    words = ["".join(pick.choices("abcdefghij", k=pick.randint(2, 9))) for _ in range(40)]
    texts = text_file(tmp_path / "texts.txt", " ".join(words))
    unseen = text_file(
        tmp_path / "unseen.txt", " ".join("".join(pick.choices("abcdefghij", k=7)) for _ in range(90))
    )
    result = prune_vocabulary(source, tmp_path / "out.gguf", [texts], held_out=[unseen])
    assert result.tokens_after < result.tokens_before == 659
    assert result.bytes_after == result.path.stat().st_size < result.bytes_before
    assert (result.texts.identical, result.texts.growth) == (1.0, 0.0)
    assert result.held_out is not None
    assert result.held_out.growth > 0

    old, new = read_fields(GgufModel(source)), read_fields(GgufModel(result.path))
    at = {token: number for number, token in enumerate(old["tokenizer.ggml.tokens"].value)}
    kept = [at[token] for token in new["tokenizer.ggml.tokens"].value]
    assert kept == sorted(kept)
    with NativeVocabulary(source) as before, NativeVocabulary(result.path) as after:
        first, second = before.tokenize(" ".join(words[:9])), after.tokenize(" ".join(words[:9]))
        assert first == [kept[token] for token in second]
    assert np.array_equal(native_logits(source, first)[:, kept], native_logits(result.path, second))


def test_metadata_is_renumbered(tmp_path: Path) -> None:
    source = wide_llama(tmp_path / "wide.gguf")
    texts = text_file(tmp_path / "texts.txt", "abc defg hij " * 9)
    old = read_fields(GgufModel(source))
    new = read_fields(GgufModel(prune_vocabulary(source, tmp_path / "out.gguf", [texts], size=320).path))
    tokens = new["tokenizer.ggml.tokens"].value
    assert len(tokens) == new["llama.vocab_size"].value == len(new["tokenizer.ggml.token_type"].value) == 320
    assert tokens[new["tokenizer.ggml.eos_token_id"].value] == CONTROL[2]
    merges = new["tokenizer.ggml.merges"].value
    assert merges == [each for each in old["tokenizer.ggml.merges"].value if each in merges]
    for merge in merges:
        assert {*merge.split(" "), merge.replace(" ", "")} <= set(tokens)
    unchanged = set(old) - {key for key in old if "tokenizer" in key} - {"llama.vocab_size"}
    assert all(old[key] == new[key] for key in unchanged)


def test_lists_of_tokens_and_ids_follow_their_tokens() -> None:
    made = bpe()
    fields = {"general.architecture": Field(STRING, "llama")} | made.fields()
    fields["tokenizer.ggml.scores"] = Field(F32, [float(at) for at in range(len(TOKENS))])
    fields["tokenizer.ggml.suppress_tokens"] = Field(I32, [1, 260, 262])
    fields["tokenizer.ggml.eot_token_id"] = Field(U32, 262)
    fields["tokenizer.ggml.padding_token_id"] = Field(U32, 0xFFFFFFFF)
    kept = [*range(BASE), 262, 264]
    new = {key: field.value for key, field in prune_fields(fields, made, kept).items()}
    assert new["tokenizer.ggml.scores"] == kept
    assert new["tokenizer.ggml.suppress_tokens"] == [1, BASE]
    assert new["tokenizer.ggml.eot_token_id"] == BASE
    assert new["tokenizer.ggml.padding_token_id"] == 0xFFFFFFFF
    assert new["tokenizer.ggml.bos_token_id"] == 11  # what llama.cpp takes where a file names none


@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_still_comes_back_byte_for_byte(
    pruned: tuple[NativeVocabulary, NativeVocabulary], text: str
) -> None:
    before, after = pruned
    content = text.encode("utf-8", "replace")
    assert after.bytes_of(after.tokenize(text)) == before.bytes_of(before.tokenize(text)) == content


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[NativeVocabulary, NativeVocabulary]:
    folder = tmp_path_factory.mktemp("pruned")
    source = wide_llama(folder / "wide.gguf")
    result = prune_vocabulary(source, folder / "out.gguf", [text_file(folder / "t.txt", "ab cd")], size=280)
    return NativeVocabulary(source), NativeVocabulary(result.path)


def test_an_output_of_its_own_is_pruned_too(tmp_path: Path) -> None:
    source = wide_llama(tmp_path / "wide.gguf")
    result = prune_vocabulary(source, tmp_path / "out.gguf", [text_file(tmp_path / "t.txt", "abc")], size=320)
    model, old = GgufModel(result.path), GgufModel(source)
    assert model.tensors["token_embd.weight"].shape[1] == 320
    assert np.array_equal(model.raw("token_embd.weight")[:BASE], old.raw("token_embd.weight")[:BASE])
    assert np.array_equal(model.raw("blk.0.ffn_up.weight"), old.raw("blk.0.ffn_up.weight"))


def test_a_pruned_model_can_be_trained_and_converted_again(tmp_path: Path) -> None:
    source, texts = wide_llama(tmp_path / "wide.gguf"), text_file(tmp_path / "t.txt", "abc def ghij")
    result = prune_vocabulary(source, tmp_path / "out.gguf", [texts], size=320)
    again = convert(to_huggingface(result.path, tmp_path / "hf"), tmp_path / "again.gguf", type="Q8_0")
    assert (again.vocabulary, again.agreement) == (320, 1.0)
    first, second = GgufModel(result.path), GgufModel(again.path)
    assert np.abs(first.floats("output.weight") - second.floats("output.weight")).max() < 1e-3


# --- refusals ---------------------------------------------------------------------------------------------


def test_a_vocabulary_of_another_kind_is_refused(tmp_path: Path) -> None:
    spm = {"tokenizer.ggml.model": Written(STRING, "t5")}
    source = tiny_llama(tmp_path / "t5.gguf", extra=spm)
    with pytest.raises(ConfigError, match=r"'t5', only byte-level BPE"):
        prune_vocabulary(source, tmp_path / "out.gguf", [text_file(tmp_path / "t.txt", "abc")])


def test_embeddings_that_do_not_fit_the_vocabulary_are_refused(tmp_path: Path) -> None:
    more = [*TOKENS, "one more"]
    kinds = [CONTROL_TYPE] * len(CONTROL) + [NORMAL] * (len(more) - len(CONTROL))
    fields = {"tokens": Written(STRING, more), "token_type": Written(I32, kinds)}
    extra = {f"tokenizer.ggml.{key}": field for key, field in fields.items()}
    source = tiny_llama(tmp_path / "tiny.gguf", extra=extra)
    with pytest.raises(ConfigError, match=r"token_embd\.weight"):
        prune_vocabulary(source, tmp_path / "out.gguf", [text_file(tmp_path / "t.txt", "abc")])


def test_without_a_text_nothing_is_pruned(tmp_path: Path) -> None:
    source = wide_llama(tmp_path / "wide.gguf")
    with pytest.raises(ConfigError, match="no text to count"):
        prune_vocabulary(source, tmp_path / "out.gguf", [])
    binary = tmp_path / "b.txt"
    binary.write_bytes(bytes(range(256)) * 9)
    with pytest.raises(ConfigError, match="binary"):
        prune_vocabulary(source, tmp_path / "out.gguf", [binary])
    with pytest.raises(ConfigError, match="coverage"):
        prune_vocabulary(source, tmp_path / "out.gguf", [], coverage=0)
    assert not (tmp_path / "out.gguf").exists()


def test_what_cannot_be_read_is_skipped_and_said(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    text_file(texts / "a.txt", "abc def")
    (texts / "b.txt").write_bytes(b"")
    result = prune_vocabulary(wide_llama(tmp_path / "wide.gguf"), tmp_path / "out.gguf", [texts])
    assert len(result.skipped) == 1
    assert result.texts.passages == 1


def test_a_full_disk_and_an_interruption_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, texts = wide_llama(tmp_path / "wide.gguf"), text_file(tmp_path / "t.txt", "abc")

    def interrupt(done: float, total: float | None, detail: str) -> None:
        if detail.startswith("blk.0.ffn"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_vocabulary(source, tmp_path / "out.gguf", [texts], progress=interrupt)
    full = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(DiskFullError, match="MB free"):
        prune_vocabulary(source, tmp_path / "out.gguf", [texts])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["t.txt", "wide.gguf"]


# --- the command ------------------------------------------------------------------------------------------


def test_edge_prune_vocabulary_reports_tokens_bytes_and_growth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, texts = wide_llama(tmp_path / "wide.gguf"), text_file(tmp_path / "t.txt", "abc def " * 20)
    out = tmp_path / "out.gguf"
    arguments = ["prune-vocabulary", str(source), str(out), "--text", str(texts), "--size", "384"]
    assert main([*arguments, "--held-out", str(texts), "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (document["tokens_before"], document["tokens_after"]) == (659, 384)
    assert document["bytes_after"] == out.stat().st_size
    assert document["texts"]["growth"] == document["held_out"]["growth"] == 0
    assert main(arguments) == 0
    assert "384 of 659 tokens" in capsys.readouterr().out
    assert main([*arguments[:-1], "5"]) == 1
    assert "smallest size is" in capsys.readouterr().err


# --- real weights -----------------------------------------------------------------------------------------


@pytest.mark.model
def test_smollm2_answers_alike_with_a_fraction_of_its_tokens(smollm2_path: Path, tmp_path: Path) -> None:
    """Rows of 8-bit blocks are copied as they are, so the logits of kept tokens are the same to the bit."""
    question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    texts = text_file(tmp_path / "t.txt", "What is the capital of France? The capital of France is Paris.\n" * 3)
    result = prune_vocabulary(smollm2_path, tmp_path / "out.gguf", [texts])
    assert result.tokens_after % 64 == 0
    assert result.tokens_after < 2_000
    assert result.bytes_before - result.bytes_after > 25e6
    assert result.texts.identical == 1.0
    old, new = GgufModel(smollm2_path), GgufModel(result.path)
    at = {token: number for number, token in enumerate(read_fields(old)["tokenizer.ggml.tokens"].value)}
    kept = [at[token] for token in read_fields(new)["tokenizer.ggml.tokens"].value]
    with NativeVocabulary(smollm2_path) as before, NativeVocabulary(result.path) as after:
        first, second = before.tokenize(question), after.tokenize(question)
    assert first == [kept[token] for token in second]
    expected, found = native_logits(smollm2_path, first)[:, kept], native_logits(result.path, second)
    assert np.abs(found - expected).max() < 1e-5
    assert Counter(second).total() == len(first)
