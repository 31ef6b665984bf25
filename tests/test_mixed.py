"""Mixed files: costs that follow what was measured, plans that are kept to, and one matrix stored once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from gguf_files import tiny_llama

from edge_sdk.errors import ConfigError
from quantize.gguf_models.allocation import Plan
from quantize.gguf_models.ggml import Bytes
from quantize.gguf_models.gguf_format import NewTensor, write_file
from quantize.gguf_models.importance import collect_importance
from quantize.gguf_models.mixed import EMBEDDING, OUTPUT, Costs, Source, build, measure_costs, plan_for_budget
from quantize.gguf_models.tensors import GgufModel, read_fields

UP, DOWN = "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"
TEXT = "The river and the bridge in the winter garden. " * 60


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tiny_llama(tmp_path_factory.mktemp("mixed") / "tiny.gguf", embed=64, feed=128)
    found = collect_importance(path, TEXT, source="made up", max_tokens=512, threads=1, products=True)
    return Source(GgufModel(path), found)


def _parts(raw: Bytes) -> Iterator[Bytes]:
    yield raw


def doubled(source: Source, out: Path) -> Source:
    """The same model with its embeddings once more as output matrix."""
    names = {each.name: each.name for each in source.model.header.tensors} | {OUTPUT: EMBEDDING}
    tensors = [
        NewTensor(name, "F32", source.model.tensors[taken].shape, partial(_parts, source.model.raw(taken)))
        for name, taken in names.items()
    ]
    write_file(out, read_fields(source.model), tensors)
    return Source(GgufModel(out), source.importance)


def test_norms_are_left_alone_and_matrices_are_not(source: Source) -> None:
    assert {UP, DOWN, EMBEDDING} <= source.tensors.keys()
    assert not any("norm" in name for name in source.tensors)


def test_fewer_bits_change_more_and_its_own_type_nothing(source: Source) -> None:
    errors = [source.error(UP, type) for type in ("Q4_0", "Q5_0", "Q8_0", "F32")]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > errors[3] == 0
    assert source.error(UP, "Q4_0", rounded=True) < errors[0]


def test_types_are_those_whose_blocks_fill_rows(source: Source) -> None:
    assert source.types(UP, ("Q4_K", "Q4_0", "IQ2_XXS")) == ["Q4_0", "F32"]


class Scale:
    """Stands for a measured divergence: how far a file's matrices are from the source's, some weighing more."""

    def __init__(self, source: Source, weights: dict[str, float]) -> None:
        self.source, self.weights, self.asked = source, weights, 0

    def __call__(self, path: Path) -> float:
        self.asked += 1
        found = GgufModel(path)
        return sum(
            self.weights.get(name.split(".")[-2], 1.0)
            * float(np.square(found.floats(name) - self.source.model.floats(name)).mean())
            for name in self.source.tensors
        )


def test_bytes_go_where_answers_hang_on_them(source: Source, tmp_path: Path) -> None:
    scale = Scale(source, {"ffn_up": 1000.0})
    costs = measure_costs(source, scale, types=("Q4_0", "Q8_0"), folder=tmp_path)
    assert scale.asked == 2 * len(costs.choices)  # one layer: every matrix is a group; two ways to round
    assert not list(tmp_path.iterdir())
    costs = Costs.from_json(json.loads(json.dumps(costs.to_json())))
    least = sum(min(choice.bytes for choice in options) for options in costs.choices.values())
    budget = costs.fixed + least + 32 * len(source.model.tensors) + 64 * 128 // 2
    plan = plan_for_budget(source, costs, budget)
    assert plan.types[UP] == "Q8_0"
    assert sum(type == "Q8_0" for type in plan.types.values()) == 1
    header = build(source, plan, tmp_path / "a.gguf")
    assert header.file_bytes <= budget
    assert {each.name: each.type for each in header.tensors if each.name in plan.types} == dict(plan.types)


def test_what_was_seen_to_be_worse_is_not_done(source: Source) -> None:
    """A divergence that grows with every weight moved from where ggml would put it."""
    plain = {name: source.encode(name, "Q4_0") for name in source.tensors}

    def moved(path: Path) -> float:
        found = GgufModel(path)
        changed = [name for name in source.tensors if found.tensors[name].type == "Q4_0"]
        return 1.0 + sum(not np.array_equal(found.raw(name), plain[name]) for name in changed)

    assert measure_costs(source, moved, types=("Q4_0",)).rounded == frozenset()


def test_a_matrix_that_is_there_twice_is_stored_once(source: Source, tmp_path: Path) -> None:
    from edge_sdk.engines.llama import LlamaModel

    twice = doubled(source, tmp_path / "twice.gguf")
    assert twice.is_doubled() and not source.is_doubled()
    costs = measure_costs(twice, Scale(twice, {}), types=("Q8_0",))
    assert costs.tied and EMBEDDING not in costs.choices
    plan = plan_for_budget(twice, costs, twice.model.header.file_bytes)
    header = build(twice, plan, tmp_path / "once.gguf")
    names = [tensor.name for tensor in header.tensors]
    assert OUTPUT not in names and EMBEDDING in names
    model = LlamaModel(tmp_path / "once.gguf", context=32, threads=1, gpu_layers=0)
    assert model.prefill(model.tokenize(b"the end"), lambda: False)
    model.close()


def test_a_plan_for_another_file_is_refused(source: Source, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="made for another file"):
        build(source, Plan({UP: "Q8_0"}, source="0" * 64), tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_an_edited_plan_is_followed(source: Source, tmp_path: Path) -> None:
    header = build(source, Plan({UP: "Q8_0", DOWN: "Q5_1"}), tmp_path / "a.gguf")
    types = {tensor.name: tensor.type for tensor in header.tensors}
    assert (types[UP], types[DOWN], types[EMBEDDING]) == ("Q8_0", "Q5_1", "F32")
