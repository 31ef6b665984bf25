"""Hugging Face folders to GGUF and back: the same logits, the same tokens, and clear errors."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import CHATML, CONTROL, STRING, Field, tiny_llama
from hf_folders import (
    QWEN2,
    QWEN2_SPLIT,
    SMOLLM,
    VOCABULARY,
    config,
    forward,
    native_logits,
    read_safetensors,
    safetensors_bytes,
    tokenizer,
    weights,
    write_folder,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk.cli import main
from edge_sdk.errors import ConfigError, DiskFullError, EdgeError, ModelDamagedError, ModelNotFoundError
from edge_sdk.model_files.gguf_header import read_header
from quantize.gguf_models.convert import convert, to_huggingface
from quantize.gguf_models.families import Decoder
from quantize.gguf_models.native_vocabulary import NativeVocabulary
from quantize.gguf_models.safetensors_files import SINGLE
from quantize.gguf_models.tensors import GgufModel, read_fields
from quantize.gguf_models.tokenizer_agreement import SAMPLES, compare_tokenizers
from quantize.gguf_models.tokenizer_json import CONTROL as CONTROL_TYPE
from quantize.gguf_models.tokenizer_json import UNUSED, find_pre_tokenizer, read_tokenizer

TOKENS = [3 + byte for byte in b"Any text, 42 of it."]
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def folder_of(tmp_path: Path, made: dict[str, Any], **more: Any) -> Path:
    return write_folder(tmp_path / "hf", made, weights(made), **more)


@pytest.mark.parametrize(
    "made",
    [
        config(),
        config(tie_word_embeddings=True),
        config(num_key_value_heads=4),
        config(head_dim=32, attention_bias=True),
        config(rope_scaling={"rope_type": "linear", "factor": 4.0}),
        config(rope_scaling=LLAMA3),
        config("Qwen2ForCausalLM"),
        config("Qwen2ForCausalLM", tie_word_embeddings=True, rope_theta=1e6),
    ],
    ids=["llama", "tied", "no-groups", "biased", "linear", "llama3", "qwen2", "qwen2-tied"],
)
def test_llama_cpp_computes_what_transformers_would(tmp_path: Path, made: dict[str, Any]) -> None:
    """Row order, names, biases and rotary figures: a mistake in any changes the logits by far more."""
    converted = convert(folder_of(tmp_path, made), tmp_path / "out.gguf", type="F32")
    expected = forward(made, weights(made), TOKENS)
    assert np.abs(native_logits(converted.path, TOKENS) - expected).max() < 1e-4
    assert expected.std() > 0.3
    assert converted.agreement == 1.0


def test_newer_configurations_name_rotary_figures_elsewhere(tmp_path: Path) -> None:
    made = config(rope_theta=5e5)
    newer = {key: value for key, value in made.items() if key != "rope_theta"}
    newer["rope_parameters"] = {"rope_theta": 5e5, "rope_type": "default"}
    assert Decoder.from_config(newer) == Decoder.from_config(made)


@pytest.mark.parametrize(("type", "error"), [("F16", 1e-3), ("BF16", 8e-3), ("Q8_0", 8e-3)])
def test_matrices_take_the_type_and_vectors_stay_exact(tmp_path: Path, type: str, error: float) -> None:
    made = config("Qwen2ForCausalLM")
    source = weights(made)
    folder = folder_of(tmp_path, made)
    converted = convert(folder, tmp_path / "out.gguf", type=type)
    model = GgufModel(converted.path)
    for tensor in model.header.tensors:
        assert tensor.type == ("F32" if len(tensor.shape) == 1 else type), tensor.name
    exact = source["model.layers.1.mlp.down_proj.weight"]
    assert 0 < np.abs(model.floats("blk.1.ffn_down.weight") - exact).max() <= error * np.abs(exact).max()
    assert np.array_equal(model.floats("blk.0.attn_q.bias")[0], source["model.layers.0.self_attn.q_proj.bias"])


def test_rows_that_no_block_fills_become_f16(tmp_path: Path) -> None:
    made = config(intermediate_size=72)
    model = GgufModel(convert(folder_of(tmp_path, made), tmp_path / "out.gguf", type="Q8_0").path)
    assert model.tensors["blk.0.ffn_down.weight"].type == "F16"
    assert model.tensors["blk.0.ffn_up.weight"].type == "Q8_0"


def test_half_precision_sources_are_read_without_loss(tmp_path: Path) -> None:
    made = config()
    short = {name: (values.view(np.uint32) >> 16).astype(np.uint16) for name, values in weights(made).items()}
    converted = convert(write_folder(tmp_path / "hf", made, short), tmp_path / "out.gguf", type="BF16")
    model = GgufModel(converted.path)
    found = model.raw("blk.0.ffn_up.weight").view(np.uint16)
    assert np.array_equal(found, short["model.layers.0.mlp.up_proj.weight"])


def test_several_files_with_an_index_are_one_model(tmp_path: Path) -> None:
    made = config()
    folder, tensors = folder_of(tmp_path, made), weights(made)
    whole = convert(folder, tmp_path / "whole.gguf").path.read_bytes()
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"model-{1 + at % 2}.safetensors" for at, name in enumerate(names)}
    for file in set(places.values()):
        part = {name: tensors[name] for name in names if places[name] == file}
        (folder / file).write_bytes(safetensors_bytes(part))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert convert(folder, tmp_path / "parts.gguf").path.read_bytes() == whole


def test_metadata_is_what_llama_cpps_converter_writes(tmp_path: Path) -> None:
    converted = convert(folder_of(tmp_path, config()), tmp_path / "out.gguf")
    fields = {key: field.value for key, field in read_fields(GgufModel(converted.path)).items()}
    assert fields["general.architecture"] == "llama"
    assert fields["general.file_type"] == 1
    assert fields["llama.rope.dimension_count"] == 16
    assert fields["llama.vocab_size"] == VOCABULARY
    assert fields["tokenizer.ggml.pre"] == "smollm"
    assert fields["tokenizer.ggml.tokens"][-1] == f"[PAD{VOCABULARY - 1}]"
    kinds = fields["tokenizer.ggml.token_type"]
    assert (kinds[0], kinds[3], kinds[-1]) == (CONTROL_TYPE, 1, UNUSED)
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]) == (0, 2)
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.chat_template"] == CHATML


def test_all_end_tokens_that_generation_knows_end_an_answer(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, config())
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1]}))
    fields = read_fields(GgufModel(convert(folder, tmp_path / "out.gguf").path))
    assert fields["tokenizer.ggml.eot_token_id"].value == 1
    back = to_huggingface(tmp_path / "out.gguf", tmp_path / "back")
    assert json.loads((back / "generation_config.json").read_text())["eos_token_id"] == [2, 1]


def test_a_begin_token_in_the_tokenizers_template_is_added(tmp_path: Path) -> None:
    first = {"SpecialToken": {"id": CONTROL[0], "type_id": 0}}
    made = tokenizer() | {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {CONTROL[0]: {"id": CONTROL[0], "ids": [0], "tokens": [CONTROL[0]]}},
        }
    }
    folder = folder_of(tmp_path, config(), tokenizer_json=made)
    converted = convert(folder, tmp_path / "out.gguf")
    assert read_fields(GgufModel(converted.path))["tokenizer.ggml.add_bos_token"].value is True
    back = to_huggingface(converted.path, tmp_path / "back")
    again = convert(back, tmp_path / "again.gguf")
    assert read_fields(GgufModel(again.path))["tokenizer.ggml.add_bos_token"].value is True
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": CONTROL[1], "eos_token": CONTROL[2]}))
    with pytest.raises(ModelDamagedError, match="not its bos_token"):
        convert(folder, tmp_path / "out.gguf")


# --- tokenizers ------------------------------------------------------------------------------------------


def split_by(pattern: str) -> dict[str, Any]:
    split, byte_level = QWEN2["pretokenizers"]
    return {"type": "Sequence", "pretokenizers": [split | {"pattern": {"Regex": pattern}}, byte_level]}


LLAMA3_SPLIT = split_by(QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|"))
QWEN35_SPLIT = split_by(QWEN2_SPLIT.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"\s\p{L}", r"\s\p{L}\p{M}"))


@pytest.mark.parametrize(
    ("definition", "whole_words", "name"),
    [
        (SMOLLM, False, "smollm"),
        (QWEN2, False, "qwen2"),
        (SMOLLM["pretokenizers"][1], False, "gpt-2"),
        (LLAMA3_SPLIT, True, "llama-bpe"),
        (LLAMA3_SPLIT, False, "smaug-bpe"),
        (QWEN35_SPLIT, False, "qwen35"),
    ],
)
def test_a_known_pre_tokenizer_is_recognised_and_reads_alike(
    tmp_path: Path, definition: dict[str, Any], whole_words: bool, name: str
) -> None:
    made = tokenizer(definition)
    made["model"]["ignore_merges"] = whole_words
    made["model"]["vocab"] |= {"333": 267, "Ġthat": 268}  # a word that no merge arrives at
    converted = convert(folder_of(tmp_path, config(), tokenizer_json=made), tmp_path / "out.gguf")
    assert converted.pre_tokenizer == name
    assert converted.agreement == 1.0
    with NativeVocabulary(converted.path) as vocabulary:
        assert (268 in vocabulary.tokenize("so that is")) == whole_words
    back = to_huggingface(converted.path, tmp_path / "back")
    assert convert(back, tmp_path / "again.gguf").pre_tokenizer == name


def test_an_unknown_pre_tokenizer_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"Whitespace.*smollm, qwen2.*--pre"):
        find_pre_tokenizer({"type": "Whitespace"}, False)


def test_a_pre_tokenizer_that_reads_otherwise_is_found_out(tmp_path: Path) -> None:
    """GPT-2's split keeps digits together and Qwen's does not, which shows where digits are merged."""
    made = tokenizer(QWEN2)
    made["model"]["vocab"]["33"] = 267
    made["model"]["merges"].append(["3", "3"])
    folder = folder_of(tmp_path, config(), tokenizer_json=made)
    with pytest.raises(ConfigError, match=r"llama\.cpp reads .* --pre"):
        convert(folder, tmp_path / "out.gguf", pre="gpt-2")
    assert [file.name for file in tmp_path.iterdir()] == ["hf"]
    assert convert(folder, tmp_path / "out.gguf", pre="qwen2").agreement == 1.0


def test_a_name_that_llama_cpp_does_not_know_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no-such-split"):
        convert(folder_of(tmp_path, config()), tmp_path / "out.gguf", pre="no-such-split")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"model": {"byte_fallback": True}}, "byte-level BPE"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "parts of words"),
        ({"model": {"continuing_subword_prefix": "##"}}, "parts of words"),
        ({"model": {"merges": [["t", "h", "e"]]}}, "no pair"),
        ({"model": {"merges": ["t zz"]}}, "not all in its vocabulary"),
        ({"model": None}, "holds no tokenizer"),
        ({"added": {"lstrip": True}}, "take spaces"),
        ({"added": {"id": 900}}, r"900.*288.*resize_token_embeddings"),
    ],
)
def test_what_llama_cpp_cannot_tokenize_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    made = tokenizer()
    if change.get("model"):
        made["model"] |= change.pop("model")
    if "added" in change:
        entry = made["added_tokens"][0] | {"content": "<new>", "id": 267} | change.pop("added")
        made["added_tokens"].append(entry)
    folder = folder_of(tmp_path, config(), tokenizer_json=made | change)
    with pytest.raises((ConfigError, ModelDamagedError), match=message):
        read_tokenizer(folder, VOCABULARY)


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, r"GemmaForCausalLM.*LlamaForCausalLM, Qwen2ForCausalLM"),
        ({"architectures": None}, "only LlamaForCausalLM"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 3}}, "beta_fast"),
        ({"rope_scaling": 7}, "rope_scaling = 7"),
        ({"hidden_size": -64}, "hidden_size = -64"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"num_key_value_heads": 3}, "4 heads, 3 of keys"),
    ],
)
def test_configurations_that_cannot_be_converted(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ModelDamagedError), match=message):
        Decoder.from_config(config() | changes)


def test_weights_have_to_be_exactly_those_of_the_configuration(tmp_path: Path) -> None:
    made = config()
    folder, tensors = folder_of(tmp_path, made), weights(made)

    def refused(content: dict[str, Any], message: str) -> None:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(content))
        with pytest.raises((ConfigError, ModelDamagedError), match=message):
            convert(folder, tmp_path / "out.gguf")

    refused({name: each for name, each in tensors.items() if name != "lm_head.weight"}, "tie_word_embeddings")
    refused({name: each for name, each in tensors.items() if "1.mlp.up" not in name}, r"layers\.1\.mlp\.up_proj")
    refused(tensors | {"model.norm.weight": np.ones(63, np.float32)}, r"\(63,\), config.json makes it \(64,\)")
    refused(tensors | {"model.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)}, "q_norm")
    refused(tensors | {"model.norm.weight": np.ones(64, np.int64)}, "I64")
    refused(tensors | {"model.norm.weight": np.full(64, np.nan, np.float32)}, "not finite")
    refused(tensors | {"lm_head.weight": tensors["lm_head.weight"] * np.float32(1e6)}, r"F16.*BF16 or F32")
    assert [file.name for file in tmp_path.iterdir()] == ["hf"]


def test_a_shared_output_that_is_stored_twice_is_written_once(tmp_path: Path) -> None:
    made = config(tie_word_embeddings=True)
    tensors = weights(made)
    twice = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    converted = convert(write_folder(tmp_path / "hf", made, twice), tmp_path / "out.gguf")
    assert "output.weight" not in GgufModel(converted.path).tensors


def test_special_tokens_have_to_be_in_the_vocabulary(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, config(), words={"eos_token": "<gone>"})
    with pytest.raises(ModelDamagedError, match="eos_token '<gone>'"):
        convert(folder, tmp_path / "out.gguf")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps(config(eos_token_id=None)))
    with pytest.raises(ModelDamagedError, match="which token ends"):
        convert(folder, tmp_path / "out.gguf")


def test_a_folder_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        convert(tmp_path, tmp_path / "out.gguf")
    folder = folder_of(tmp_path, config())
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
        convert(folder, tmp_path / "out.gguf")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelDamagedError, match=r"pickle.*safe_serialization"):
        convert(folder, tmp_path / "out.gguf")


def test_the_disk_is_looked_at_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, config())
    full = shutil.disk_usage(tmp_path)._replace(free=1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(DiskFullError, match=r"MB free.* write to a folder on another disk"):
        convert(folder, tmp_path / "out.gguf")
    gguf = tiny_llama(tmp_path / "tiny.gguf")
    with pytest.raises(DiskFullError, match=r"MB free.* write to a folder on another disk"):
        to_huggingface(gguf, tmp_path / "back")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hf", "tiny.gguf"]


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, config())
    calls = []

    def interrupt(done: float, total: float | None, detail: str) -> None:
        calls.append(detail)
        if len(calls) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(folder, tmp_path / "out.gguf", progress=interrupt)
    assert [file.name for file in tmp_path.iterdir()] == ["hf"]


VALUES = st.sampled_from([None, True, -1, 3, 10**12, 2.5, "", "x", CONTROL[1], [], [1], ["a"], {}, {"type": "X"}])


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nonsense_in_the_files_is_an_error_of_ours_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    made = config(rope_scaling=LLAMA3)
    template = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}], "pair": []}
    documents: dict[str, Any] = {
        "config.json": made,
        "tokenizer.json": tokenizer(QWEN2) | {"post_processor": {"type": "Sequence", "processors": [template]}},
        "tokenizer_config.json": {
            "bos_token": {"content": CONTROL[0]},
            "eos_token": CONTROL[2],
            "chat_template": [],
        },
        "generation_config.json": {"eos_token_id": [2, 1]},
    }
    documents = json.loads(json.dumps(documents))  # what is changed below must not be what other tests are made of
    place: Any = documents
    key: Any = data.draw(st.sampled_from(sorted(documents)))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        keys = sorted(place)[:20] if isinstance(place, dict) else range(min(len(place), 4))
        key = data.draw(st.sampled_from(keys))
    place[key] = data.draw(VALUES)
    folder = tmp_path / "hf"
    if not folder.exists():
        folder_of(tmp_path, made)
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document))
    with contextlib.suppress(EdgeError):
        assert convert(folder, tmp_path / "out.gguf").vocabulary == VOCABULARY


# --- and back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made",
    [
        config(),
        config(attention_bias=True, head_dim=32, tie_word_embeddings=True),
        config(rope_scaling=LLAMA3 | {"original_max_position_embeddings": 8192}),
        config(
            "Qwen2ForCausalLM",
            rope_scaling={"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128},
        ),
    ],
    ids=["llama", "biased", "llama3", "yarn"],
)
def test_there_and_back_again_is_the_same_file(tmp_path: Path, made: dict[str, Any]) -> None:
    folder = folder_of(tmp_path, made)
    first = convert(folder, tmp_path / "first.gguf", type="F32")
    back = to_huggingface(first.path, tmp_path / "back")
    tensors = GgufModel(first.path)
    second = GgufModel(convert(back, tmp_path / "second.gguf", type="F32").path)
    assert second.tensors.keys() == tensors.tensors.keys()
    for name in tensors.tensors:
        assert np.array_equal(second.raw(name), tensors.raw(name)), name
    before, after = read_fields(tensors), read_fields(second)
    assert after | {"general.name": before["general.name"]} == before


def test_weights_come_back_in_transformers_order(tmp_path: Path) -> None:
    made = config()
    source = weights(made)
    back = to_huggingface(
        convert(folder_of(tmp_path, made), tmp_path / "a.gguf", type="F32").path, tmp_path / "back"
    )
    found = read_safetensors(back / "model.safetensors")
    assert found.keys() == source.keys()
    for name, values in source.items():
        assert np.array_equal(found[name], values), name


def test_bf16_halves_the_folder(tmp_path: Path) -> None:
    made = config()
    gguf = convert(folder_of(tmp_path, made), tmp_path / "a.gguf", type="BF16").path
    back = to_huggingface(gguf, tmp_path / "back", type="BF16")
    again = convert(back, tmp_path / "b.gguf", type="BF16").path
    first, second = GgufModel(gguf), GgufModel(again)
    assert np.array_equal(first.raw("blk.0.attn_q.weight"), second.raw("blk.0.attn_q.weight"))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"general.architecture": Field(STRING, "gemma3")}, "gemma3"),
        ({"tokenizer.ggml.pre": Field(STRING, "viking")}, r"viking.*smollm"),
    ],
)
def test_files_that_cannot_go_back_are_refused(tmp_path: Path, extra: dict[str, Field], message: str) -> None:
    gguf = tiny_llama(tmp_path / "tiny.gguf", extra=extra)
    with pytest.raises((ConfigError, ModelDamagedError), match=message):
        to_huggingface(gguf, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    gguf = tiny_llama(tmp_path / "tiny.gguf")
    with pytest.raises(ConfigError, match="exists already"):
        to_huggingface(gguf, tmp_path)


# --- the command ------------------------------------------------------------------------------------------


def test_edge_convert_goes_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = folder_of(tmp_path, config()), tmp_path / "out.gguf"
    assert main(["convert", str(folder), str(out), "--type", "q8_0", "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (document["architecture"], document["type"], document["agreement"]) == ("llama", "Q8_0", 1.0)
    assert document["bytes"] == out.stat().st_size == read_header(out).file_bytes
    assert main(["convert", str(out), str(tmp_path / "back")]) == 0
    assert (tmp_path / "back" / "tokenizer.json").is_file()
    assert main(["convert", str(out), str(tmp_path / "back")]) == 1
    assert "exists already" in capsys.readouterr().err


# --- real weights -----------------------------------------------------------------------------------------


@pytest.mark.model
def test_smollm2_survives_the_way_to_huggingface_and_back(smollm2_path: Path, tmp_path: Path) -> None:
    """Kernels for 4-bit weights round activations too: so weights are compared with the file, logits among ours."""
    folder = to_huggingface(smollm2_path, tmp_path / "hf")
    full = convert(folder, tmp_path / "f32.gguf", type="F32")
    assert full.agreement == 1.0
    assert full.pre_tokenizer == "smollm"
    original, copy = GgufModel(smollm2_path), GgufModel(full.path)
    assert original.tensors.keys() == copy.tensors.keys()
    for name in original.tensors:
        assert np.array_equal(original.floats(name), copy.floats(name)), name
    half = convert(folder, tmp_path / "f16.gguf", type="F16")
    with NativeVocabulary(smollm2_path) as before, NativeVocabulary(half.path) as after:
        assert all(before.tokenize(text) == after.tokenize(text) for text in SAMPLES)
        prompt = before.tokenize(
            "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
        )
    exact, rounded = native_logits(full.path, prompt), native_logits(half.path, prompt)
    expected = forward(json.loads((folder / "config.json").read_text()), read_safetensors(folder / SINGLE), prompt)
    assert np.abs(exact - expected).max() < 1e-3
    assert np.abs(rounded - exact).max() < 0.1  # activations are rounded to half precision as well
    assert np.array_equal(rounded.argmax(1), expected.argmax(1))
    assert original.header.chat_template == copy.header.chat_template


@pytest.mark.model
def test_smollm2s_rebuilt_tokenizer_reads_all_of_its_vocabulary(smollm2_path: Path, tmp_path: Path) -> None:
    from quantize.gguf_models.tokenizer_json import ByteBpe, tokenizer_json

    model = GgufModel(smollm2_path)
    bpe = ByteBpe.from_fields(read_fields(model), "smollm2")
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(bpe)))
    assert compare_tokenizers(path, smollm2_path) == 1.0
