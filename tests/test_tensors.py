"""GGUF files written again with other tensors: what is not meant to change does not; nothing is left half done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
from gguf_files import tiny_llama

from edge_sdk.errors import ConfigError, DiskFullError, ModelDamagedError
from quantize.gguf_models import gguf_format
from quantize.gguf_models.ggml import Bytes, quantize_rows
from quantize.gguf_models.gguf_format import BOOL, F32, STRING, U32, Field
from quantize.gguf_models.tensors import GgufModel, write_gguf

NAME = "blk.0.ffn_up.weight"


@pytest.fixture
def model(tmp_path: Path) -> GgufModel:
    return GgufModel(tiny_llama(tmp_path / "tiny.gguf"))


def to(model: GgufModel) -> Callable[[str, str], Bytes]:
    return lambda name, type: quantize_rows(model.floats(name), type)


@pytest.mark.parametrize("threads", [1, 4])
def test_only_what_is_named_changes(model: GgufModel, tmp_path: Path, threads: int) -> None:
    out = tmp_path / "out" / "new.gguf"
    metadata = {"general.file_type": Field(U32, 7)}
    header = write_gguf(model, out, {NAME: "Q8_0"}, to(model), threads=threads, metadata=metadata)
    found = GgufModel(out)
    assert {name: tensor.type for name, tensor in found.tensors.items()} == {
        name: "Q8_0" if name == NAME else "F32" for name in model.tensors
    }
    for name in model.tensors:
        if name != NAME:
            assert np.array_equal(found.raw(name), model.raw(name))
    assert np.abs(found.floats(NAME) - model.floats(NAME)).max() < 0.01
    before, after = dict(model.metadata()), dict(found.metadata())
    assert {key: after[key] for key in before} == before
    assert header.metadata["general.file_type"] == 7
    assert [path.name for path in out.parent.iterdir()] == ["new.gguf"]


def test_metadata_can_be_replaced_and_tensors_dropped(model: GgufModel, tmp_path: Path) -> None:
    metadata = {"general.name": Field(STRING, "anders"), "x.share": Field(F32, 0.5), "x.on": Field(BOOL, True)}
    dropped = frozenset({NAME})
    header = write_gguf(model, tmp_path / "a.gguf", {}, to(model), metadata=metadata, dropped=dropped)
    assert header.name == "anders"
    assert (header.metadata["x.share"], header.metadata["x.on"]) == (0.5, True)
    assert NAME not in {tensor.name for tensor in header.tensors}


def test_llama_cpp_loads_what_was_written(model: GgufModel, tmp_path: Path) -> None:
    from edge_sdk.engines.llama import LlamaModel

    path = tmp_path / "a.gguf"
    write_gguf(model, path, {NAME: "Q5_1"}, to(model))
    loaded = LlamaModel(path, context=64, threads=1, gpu_layers=0)
    assert loaded.prefill(loaded.tokenize(b"the end"), lambda: False)
    loaded.close()


def test_what_cannot_be_written_is_refused_and_nothing_stays(model: GgufModel, tmp_path: Path) -> None:
    out = tmp_path / "out" / "a.gguf"
    for types in ({"blk.7.ffn_up.weight": "Q8_0"}, {NAME: "Q4_K"}):
        with pytest.raises(ConfigError, match="has no tensor"):
            write_gguf(model, out, types, to(model))
    with pytest.raises(ConfigError, match="came as 1 bytes of Q8_0"):
        write_gguf(model, out, {NAME: "Q8_0"}, lambda name, type: np.zeros((1, 1), np.uint8))
    assert not out.exists() and not list(out.parent.glob("*"))


def test_a_cancelled_write_leaves_nothing(model: GgufModel, tmp_path: Path) -> None:
    cancel = Event()
    out = tmp_path / "out" / "a.gguf"
    with pytest.raises(KeyboardInterrupt):
        write_gguf(model, out, {}, to(model), cancel=cancel, progress=lambda done, *_: done > 2000 and cancel.set())
    assert not list(out.parent.iterdir())


def test_an_old_file_stays_until_the_new_one_is_whole(model: GgufModel, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    out.write_text("old")
    with pytest.raises(ZeroDivisionError):
        write_gguf(model, out, {NAME: "Q8_0"}, lambda name, type: np.zeros(1 // 0, np.uint8))
    assert out.read_text() == "old"


def test_a_full_disk_is_noticed_before(model: GgufModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_format.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(DiskFullError, match=r"0 MB free, a\.gguf takes .* write to a folder"):
        write_gguf(model, tmp_path / "a.gguf", {}, to(model))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelDamagedError):
        GgufModel(tmp_path / "x.gguf")
