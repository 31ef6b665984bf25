from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from bert_models import BertWriter, random_weights
from numpy.typing import NDArray
from onnx_files import external_tensor, field, model, node, tensor, value, varint

from edge_sdk.encoders.bert_graph import NotBertError, read_bert
from edge_sdk.errors import ModelDamagedError
from edge_sdk.kernel_faces import bert
from edge_sdk.model_files.onnx_graph import OnnxGraph
from edge_sdk.model_files.onnx_session import inspect_onnx

WEIGHTS = random_weights(hidden=32, heads=1, inner=32, layers=1, words=20, positions=16)
ROW = np.arange(4, dtype=np.float32)


def read(folder: Path, nodes: Sequence[bytes] = (), tensors: Sequence[bytes] = ()) -> OnnxGraph:
    (folder / "model.onnx").write_bytes(model(nodes, tensors, [value("x", "float32", [4])], []))
    return OnnxGraph(inspect_onnx(folder / "model.onnx"))


def raw(*parts: bytes) -> bytes:
    """A tensor named `w` of parts that do not fit together."""
    return b"".join(parts) + field(8, "w")


def test_tensors_are_read_however_they_are_stored(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(ROW.tobytes())
    halves = np.array([1.5, -2.0], np.float16)
    bits = b"".join(varint(int(one)) for one in halves.view(np.uint16))
    graph = read(
        tmp_path,
        [node("Transpose", ["codes"], "turned"), node("Mul", ["turned", "scale"], "weights")],
        [
            external_tensor("outside", (4,), "weights.bin"),
            tensor("codes", np.array([[1, 2], [3, 4], [5, 6]], np.int8)),
            tensor("scale", np.array([0.5, 1, 2], np.float32)),
            field(1, 2) + field(2, 10) + field(5, bits) + field(8, "halves"),
        ],
    )
    assert np.array_equal(graph.constant("outside"), ROW)  # type: ignore[arg-type]
    assert np.array_equal(graph.constant("halves"), halves)  # type: ignore[arg-type]
    assert np.array_equal(graph.constant("weights"), [[0.5, 3, 10], [1, 4, 12]])  # type: ignore[arg-type]
    assert graph.shape("weights") == (2, 3)
    assert graph.constant("x") is None is graph.shape("x")


def test_data_outside_the_folder_is_not_read_however_it_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(ROW.tobytes())
    key = varint(1 << 3 | 1) + b"location"  # a number of eight bytes, which the check of the structure steps over
    entry = field(13, key + field(2, "../secret"))
    with pytest.raises(ModelDamagedError, match="not allowed"):
        read(folder, [], [raw(field(1, 4), field(2, 1), entry)])


@pytest.mark.parametrize(
    "damaged",
    [
        raw(field(1, 4), field(9, bytes(16))),  # without a type
        raw(field(1, 1), field(2, 2), field(5, varint(300))),  # no byte
        raw(field(1, 1 << 32), field(1, 1 << 32), field(2, 1), field(9, bytes(16))),  # wraps to nothing
        raw(field(1, bytes(2_000_000)), field(2, 1)),  # dimensions without end
        raw(field(1, 1), field(2, 7), field(7, b"\xff" * 1_000_000)),  # a number without end: quadratic
    ],
)
def test_tensors_that_cannot_be_are_damage_and_soon_found(tmp_path: Path, damaged: bytes) -> None:
    with pytest.raises(ModelDamagedError, match="cannot be read"):
        read(tmp_path, [], [damaged])


def test_a_long_list_of_numbers_is_left_alone(tmp_path: Path) -> None:
    numbers = raw(field(1, 2_000_000), field(2, 3), field(5, bytes(2_000_000)))
    found = read(tmp_path, [], [numbers]).constant("w")
    assert found is not None and found.size == 0


def test_folding_takes_no_more_than_is_stored(tmp_path: Path) -> None:
    doubled = [node("Mul", ["a" if n == 0 else f"d{n - 1}"] * 2, f"d{n}") for n in range(60)]
    spread = [node("Mul", ["a", "b"], "spread"), node("DequantizeLinear", ["a", "b"], "unpacked")]
    column, row = np.ones((1 << 17, 1), np.float32), np.ones((1, 1 << 17), np.float32)
    graph = read(tmp_path, [*doubled, *spread], [tensor("a", column), tensor("b", row)])
    for name in ("d59", "spread", "unpacked"):
        assert graph.shape(name) is None is graph.constant(name)
    assert graph.shape("d2") == (1 << 17, 1)


class DoublingSums(BertWriter):
    def norm(self, x: str, by: bert.Norm) -> str:
        for _ in range(60 if by is self.weights.embedded else 0):
            x = self.add("Add", x, x)
        return super().norm(x, by)


class DoublingMasks(BertWriter):
    def layer(self, x: str, mask: str, layer: bert.Layer) -> str:
        for _ in range(60):
            mask = self.add("Add", mask, mask)
        return super().layer(x, mask, layer)


class LatePositions(BertWriter):
    def add(self, operator: str, *inputs: str, **attributes: int | float | tuple[int, ...]) -> str:
        late = (inputs[0], "one", *inputs[2:]) if inputs[0] == "places" else inputs
        return super().add(operator, *late, **attributes)


class SharedLayers(BertWriter):
    def layer(self, x: str, mask: str, layer: bert.Layer) -> str:
        self.shared: dict[bytes, str] = {}
        for _ in range(60):
            x = super().layer(x, mask, layer)
        return x

    def stored(self, array: NDArray[np.generic]) -> str:
        known = getattr(self, "shared", {})
        name: str = known[key] if (key := array.tobytes()) in known else super().stored(array)
        known[key] = name
        return name


@pytest.mark.parametrize(
    ("writer", "reason"),
    [(DoublingSums, "embeddings are"), (LatePositions, "count from zero"), (SharedLayers, "several times")],
)
def test_what_only_looks_like_bert_is_refused_at_once(
    tmp_path: Path, writer: type[BertWriter], reason: str
) -> None:
    (tmp_path / "model.onnx").write_bytes(writer(WEIGHTS, "int8").file())
    with pytest.raises(NotBertError, match=reason):
        read_bert(OnnxGraph(inspect_onnx(tmp_path / "model.onnx")))


def test_masks_of_masks_are_walked_once(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(DoublingMasks(WEIGHTS, "int8").file())
    assert len(read_bert(OnnxGraph(inspect_onnx(tmp_path / "model.onnx"))).layers) == 1
