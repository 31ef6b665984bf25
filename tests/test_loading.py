"""Which adapter goes with which decoder, and in which process a model is opened or tried."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bundle_files import recipe
from gguf_files import BOOL, STRING, U32, Field, tiny_llama
from lora_files import tiny_adapter
from onnx_files import decoder_tensors, write_decoder
from packages import catalog_entry

from edge_sdk import loading
from edge_sdk.config import Settings, load_settings
from edge_sdk.device import cpu_name
from edge_sdk.engines import engine_gguf, load_probe
from edge_sdk.engines.engine_gguf import GgufEngine
from edge_sdk.engines.isolated import IsolatedEngine
from edge_sdk.engines.opening import Opening
from edge_sdk.engines.profile import Profile, Tuning
from edge_sdk.errors import BundleError, ModelError, ModelNotFoundError, NotEnoughMemoryError
from edge_sdk.hub.models import pull
from edge_sdk.prompt import Reading
from edge_sdk.records import GenerateOptions
from quantize.pack import Part, build_bundle

pytest.importorskip("llama_cpp")
TAUGHT = {
    "edge.prompt_tokens": Field(U32, 512),
    "edge.evidence_tokens": Field(U32, 64),
    "edge.numbered": Field(BOOL, False),
    "edge.extractive": Field(BOOL, True),
}


def settings(home: Path, **flags: object) -> Settings:
    return load_settings({"home": home, "offline": True, "context": 256, "threads": 1, **flags}, {})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "tiny-f32.gguf", context=256)


@pytest.fixture(autouse=True)
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Opening]:
    """What would be tried in a process of its own; `test_load_probe` does it."""
    openings: list[Opening] = []
    monkeypatch.setattr(load_probe, "probe", lambda opening, home: openings.append(opening))
    return openings


def bundle(folder: Path, model: Path | None, **adapters: Path) -> Path:
    parts = [Part("decoder", model, "MIT", "tiny")] if model else []
    parts += [Part(f"adapter:{name}", path, "MIT") for name, path in adapters.items()]
    build_bundle(recipe(parts), folder / "b.edge")
    return folder / "b.edge"


def loaded(found: Settings) -> tuple[str | None, Reading]:
    """The name of the adapter's file, and how documents are read."""
    engine, reading = loading.load_engine(found)
    assert isinstance(engine, GgufEngine)
    engine.close()
    return engine.adapter and engine.adapter.name, reading


def test_an_adapter_is_given_by_its_file_and_says_how_it_reads(tmp_path: Path, model: Path) -> None:
    plain, taught = tiny_adapter(tmp_path / "p.gguf"), tiny_adapter(tmp_path / "t.gguf", fields=TAUGHT)
    assert loaded(settings(tmp_path, model=str(model))) == (None, Reading())
    assert loaded(settings(tmp_path, model=str(model), adapter=str(plain))) == ("p.gguf", Reading())
    assert loaded(settings(tmp_path, model=str(model), adapter=str(taught))) == (
        "t.gguf",
        Reading(512, False, 64, True),
    )
    from_environment = load_settings(
        {"home": tmp_path, "model": str(model), "context": 256}, {"EDGE_ADAPTER": str(plain)}
    )
    assert loading.choose_adapter(from_environment) == plain
    with pytest.raises(ModelNotFoundError, match=r"there is no adapter missing\.gguf"):
        loaded(settings(tmp_path, model=str(model), adapter="missing.gguf"))


def test_how_many_sentences_are_chosen_is_the_models_the_bundles_or_the_settings(
    tmp_path: Path, model: Path
) -> None:
    packed = bundle(tmp_path, model)
    assert loaded(settings(tmp_path, model=str(model), evidence_tokens=64)) == (None, Reading(evidence_tokens=64))
    assert loaded(settings(tmp_path, bundle=packed)) == (None, Reading())
    assert loaded(settings(tmp_path, bundle=packed, evidence_tokens=64)) == (None, Reading(evidence_tokens=64))
    weaker = load_settings({"home": tmp_path, "bundle": packed, "threads": 1}, {"EDGE_EVIDENCE_TOKENS": "64"})
    assert loaded(weaker) == (None, Reading())  # what is in a bundle was calibrated as it is


def test_a_bundles_only_adapter_is_used_unless_told_otherwise(tmp_path: Path, model: Path) -> None:
    own, style = tiny_adapter(tmp_path / "own.gguf", seed=9), tiny_adapter(tmp_path / "style.gguf", fields=TAUGHT)
    packed = bundle(tmp_path, model, style=style)
    assert loaded(settings(tmp_path, bundle=packed)) == ("style.gguf", Reading(512, False, 64, True))
    assert loaded(settings(tmp_path, bundle=packed, adapter="none")) == (None, Reading())
    assert loaded(settings(tmp_path, bundle=packed, adapter=str(own))) == ("own.gguf", Reading())
    assert loaded(settings(tmp_path, bundle=packed, model=str(model))) == (None, Reading())
    weaker = load_settings({"home": tmp_path, "bundle": packed}, {"EDGE_ADAPTER": str(own)})
    assert loading.choose_adapter(weaker).name == "style.gguf"  # type: ignore[union-attr]


def test_of_several_the_default_or_the_named_one_is_used(tmp_path: Path, model: Path) -> None:
    one, two = tiny_adapter(tmp_path / "1.gguf", seed=1), tiny_adapter(tmp_path / "2.gguf", seed=2)
    packed = bundle(tmp_path, model, default=one, law=two)
    assert loaded(settings(tmp_path, bundle=packed))[0] == "1.gguf"
    assert loaded(settings(tmp_path, bundle=packed, adapter="law"))[0] == "2.gguf"
    with pytest.raises(ModelNotFoundError, match="no adapter medicine; the bundle holds default, law"):
        loaded(settings(tmp_path, bundle=packed, adapter="medicine"))
    (tmp_path / "more").mkdir()
    assert loaded(settings(tmp_path, bundle=bundle(tmp_path / "more", model, law=one, style=two)))[0] is None


def test_an_onnx_decoder_takes_no_adapter(tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "a.gguf")
    write_decoder(tmp_path / "writer", decoder_tensors(), quantized=True)
    decoder = Part("decoder", tmp_path / "writer", "MIT")
    with pytest.raises(BundleError, match="an adapter goes with a GGUF decoder, not with onnx"):
        build_bundle(recipe([decoder, Part("adapter:style", adapter, "MIT")]), tmp_path / "b.edge")
    build_bundle(recipe([decoder]), tmp_path / "b.edge")
    with pytest.raises(ModelError, match="writer is an ONNX model, which takes no adapter"):
        loaded(settings(tmp_path, bundle=tmp_path / "b.edge", adapter=str(adapter)))


def test_an_onnx_decoder_is_not_held_to_a_readers_words(tmp_path: Path) -> None:
    write_decoder(tmp_path / "writer", decoder_tensors(), quantized=True)
    made = replace(recipe([Part("decoder", tmp_path / "writer", "MIT")]), reading=Reading(extractive=True))
    build_bundle(made, tmp_path / "b.edge")
    engine, reading = loading.load_engine(settings(tmp_path, bundle=tmp_path / "b.edge"))
    engine.close()
    assert not reading.extractive


def test_an_adapter_without_a_decoder_brings_the_one_that_it_is_for(tmp_path: Path, model: Path) -> None:
    """The base model stays where it is; the bundle is small."""
    adapter = tiny_adapter(tmp_path / "a.gguf", fields={"edge.base_model": Field(STRING, str(model))})
    packed = bundle(tmp_path, None, default=adapter)
    assert loading.choose_decoder(settings(tmp_path, bundle=packed)).path == model
    assert loaded(settings(tmp_path, bundle=packed))[0] == "a.gguf"
    absent = tiny_adapter(tmp_path / "b.gguf", fields={"edge.base_model": Field(STRING, "smollm2")})
    with pytest.raises(ModelError, match="edge pull smollm2"):
        loaded(settings(tmp_path, adapter=str(absent)))


def test_a_file_that_nobody_vouches_for_is_tried_first(tmp_path: Path, model: Path, tried: list[Opening]) -> None:
    loaded(settings(tmp_path, model=str(model)))
    loaded(settings(tmp_path, bundle=bundle(tmp_path, model)))
    loaded(settings(tmp_path, model=str(model), adapter=str(tiny_adapter(tmp_path / "a.gguf"))))
    assert [each.path.name for each in tried][::2] == [model.name, model.name]
    assert [each.adapter is None for each in tried] == [True, True, False]
    assert tried[1].sha256 is not None


def test_a_file_of_the_catalog_is_not_tried(tmp_path: Path, model: Path, tried: list[Opening]) -> None:
    files, sources = {"tiny.gguf": model.read_bytes()}, {"tiny.gguf": [f"file:{model}"]}
    (tmp_path / "catalog.toml").write_text(catalog_entry("tiny", files, sources, role="decoder", format="gguf"))
    pull("tiny", load_settings({"home": tmp_path}, {}))
    loaded(settings(tmp_path, model="tiny"))
    assert not tried


def test_an_isolated_model_is_opened_elsewhere_alone(tmp_path: Path, model: Path, tried: list[Opening]) -> None:
    engine, _ = loading.load_engine(settings(tmp_path, model=str(model), isolated=True))
    with engine if isinstance(engine, IsolatedEngine) else pytest.fail("opened here") as isolated:
        assert (isolated.name, isolated.context) == (model.stem, 256)
        assert [token.id for token in isolated.generate("the", GenerateOptions(max_tokens=3))]
    assert not tried


def test_an_onnx_decoder_can_be_isolated_too(tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    write_decoder(folder, decoder_tensors())
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    engine, _ = loading.load_engine(settings(tmp_path, model=str(folder), isolated=True))
    assert isinstance(engine, IsolatedEngine)
    with engine:
        assert len(list(engine.generate("hello", GenerateOptions(max_tokens=3)))) > 0


def test_the_tuning_is_as_the_settings_say(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Profile(model.stem, model.stat().st_size, tuning=Tuning(64, False), device=cpu_name()).save(tmp_path)
    tunings: list[Tuning] = []
    monkeypatch.setattr(loading, "_opened", lambda opening, *_, **__: tunings.append(opening.tuning))
    for flags in ({}, {"cache_type": "q8_0"}, {"cache_type": "f16"}, {"repack": "0"}):
        loading.load_engine(settings(tmp_path, model=str(model), **flags))
    kept = Tuning(64, False, "F16")
    assert tunings == [kept, Tuning(64, None, "Q8_0"), kept, Tuning(64, False, repack=False)]


def test_a_refusal_for_want_of_memory_names_a_model_that_fits(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, sources = {"tiny.gguf": model.read_bytes()}, {"tiny.gguf": [f"file:{model}"]}
    entries = [
        catalog_entry(name, files, sources, role="decoder", format="gguf", memory=memory)
        for name, memory in [("wanted", 1), ("small", 1000), ("medium", 2000), ("large", 1 << 40)]
    ]
    (tmp_path / "catalog.toml").write_text("\n".join(entries))
    for name in ("wanted", "small", "medium", "large"):
        pull(name, load_settings({"home": tmp_path}, {}))
    monkeypatch.setattr(engine_gguf, "available_memory", lambda: 1 << 20)
    with pytest.raises(NotEnoughMemoryError, match="use --model medium, or close other programs") as caught:
        loading.load_engine(settings(tmp_path, model="wanted"))
    assert caught.value.room == 838_861
    assert sum(caught.value.parts.values()) > caught.value.room
