"""GGUF files in which each tensor has the type that it needs: measured, planned within a budget, built.

Two things are measured. How much a type changes a tensor's outputs, on a sample of its rows. And how much the
model's answers change when the tensors of a group do, by writing a file in which only they are coarse. `allocation`
makes a plan of the two; `build` writes it, with `rounding` for the groups where that was seen to be better.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

import numpy as np

from edge_sdk.errors import ConfigError
from edge_sdk.hub.partial import hash_file
from edge_sdk.model_files.gguf_header import GgufHeader, TensorInfo

from .allocation import Choice, Plan, allocate, sensitivities, smallest
from .ggml import Bytes, Floats, dequantize_rows, quantize_rows, requires_importance, row_bytes
from .gguf_format import U32, Field, Update
from .importance_matrix import Importance
from .rounding import GRIDS, SWEEPS, Inputs, output_error, round_rows
from .tensors import GgufModel, tensor_bytes, write_gguf

TYPES = ("Q2_K", "Q3_K", "IQ4_NL", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0", "BF16")
"""What a plan chooses among, as far as a type's blocks fill a tensor's rows; and the type that a tensor has."""
OUTPUT, EMBEDDING = "output.weight", "token_embd.weight"
WIDEST = 4_096
"""Columns up to which the correlations of a layer's inputs are used: the cost grows with the cube."""
_DEPTHS = 3  # groups that the layers are cut into
_ROWS = 48  # of a tensor, on which a type's error is measured
_PROBE = "Q4_0"  # coarse enough for its divergence to be seen, and fills any row
_SAME = 0.02  # relative square difference up to which output matrix and embeddings are one matrix, quantized twice
_BLOCK_NAME = re.compile(r"blk\.(\d+)\.(.+)\.weight")


@dataclass(frozen=True)
class Source:
    """A model to quantize and what is known of the inputs of its layers."""

    model: GgufModel
    importance: Importance | None = None
    _inputs: dict[int, Inputs] = field(default_factory=dict, repr=False)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Matrices that may be quantized, by name."""
        return {
            tensor.name: tensor
            for tensor in self.model.header.tensors
            if len(tensor.shape) == 2 and tensor.name.endswith(".weight") and tensor.shape[0] % 32 == 0
        }

    def inputs(self, name: str) -> Inputs | None:
        """What a matrix's inputs are like, where it is known and small enough to be of use."""
        products = None if self.importance is None else self.importance.products.get(name)
        if products is None or len(products) > WIDEST:
            return None
        if id(products) not in self._inputs:  # several matrices share them
            self._inputs[id(products)] = Inputs.of(products)
        return self._inputs[id(products)]

    def squares(self, name: str) -> Floats | None:
        """Mean of the square of each of a matrix's inputs; never nought, for ggml drops such blocks."""
        return None if self.importance is None else self.importance.weights(name)

    def encode(
        self, name: str, type: str, *, rounded: bool = False, rows: slice = slice(None), sweeps: int = SWEEPS
    ) -> Bytes:
        """A tensor's rows as blocks of `type`; copied where it has that type.

        `rounded` rounds for the outputs where that can be done. Otherwise ggml rounds.
        """
        tensor = self.model.tensors[name]
        if type == tensor.type:
            return self.model.raw(name)[rows]
        weights = dequantize_rows(self.model.raw(name)[rows], tensor.type, tensor.shape[0])
        inputs = self.inputs(name) if rounded and type in GRIDS else None
        if inputs is not None:
            return round_rows(weights, type, inputs, sweeps=sweeps).blocks()
        return quantize_rows(weights, type, self.squares(name))

    def error(self, name: str, type: str, *, rounded: bool = False) -> float:
        """Share of a matrix's output power that the change to `type` amounts to, on some of its rows."""
        tensor = self.model.tensors[name]
        if type == tensor.type:
            return 0.0
        rows = slice(0, tensor.shape[1], max(1, tensor.shape[1] // _ROWS))
        weights = dequantize_rows(self.model.raw(name)[rows], tensor.type, tensor.shape[0])
        blocks = self.encode(name, type, rounded=rounded, rows=rows, sweeps=0)  # in proportion, it is enough
        change = weights - dequantize_rows(blocks, type, tensor.shape[0])
        inputs = self.inputs(name)
        if inputs is not None:
            return output_error(change, inputs.products) / (output_error(weights, inputs.products) or 1.0)
        squares = self.squares(name)
        weigh = np.ones(tensor.shape[0], np.float32) if squares is None else squares
        return float((np.square(change) * weigh).sum() / ((np.square(weights) * weigh).sum() or 1.0))

    def types(self, name: str, allowed: Iterable[str]) -> list[str]:
        """Of the types allowed, those that can be made of a matrix; its own is always among them."""
        tensor = self.model.tensors[name]
        known = self.squares(name) is not None
        found = [
            type
            for type in dict.fromkeys(allowed)
            if row_bytes(type, tensor.shape[0]) is not None and (known or not requires_importance(type))
        ]
        return list(dict.fromkeys([*found, tensor.type]))

    def is_doubled(self) -> bool:
        """Whether output matrix and embeddings are the same weights, quantized twice."""
        if not {OUTPUT, EMBEDDING} <= self.tensors.keys():
            return False
        one, other = (self.tensors[name] for name in (OUTPUT, EMBEDDING))
        if one.shape != other.shape:
            return False
        rows = slice(0, one.shape[1], max(1, one.shape[1] // 256))
        first, second = (
            dequantize_rows(self.model.raw(each.name)[rows], each.type, each.shape[0]) for each in (one, other)
        )
        return float(np.square(first - second).sum()) < _SAME * float(np.square(first).sum())


@dataclass(frozen=True, slots=True)
class Costs:
    """For each matrix what each type would cost, and whether the output matrix also serves for embeddings."""

    choices: Mapping[str, Sequence[Choice]]
    rounded: frozenset[str]  # matrices that are best rounded for their outputs
    tied: bool
    fixed: int  # bytes of the file that no choice changes

    def priced(self, price: Callable[[str, str], int]) -> Costs:
        """The same with something else than bytes to pay: `price` of a matrix in a type, a whole number."""
        choices = {
            name: [replace(choice, bytes=price(name, choice.type)) for choice in options]
            for name, options in self.choices.items()
        }
        return replace(self, choices=choices, fixed=0)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `from_json`."""
        return asdict(self) | {"rounded": sorted(self.rounded)}

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Costs:
        """The reverse of `to_json`."""
        choices = {name: [Choice(**each) for each in options] for name, options in found["choices"].items()}
        return Costs(choices, frozenset(found["rounded"]), found["tied"], found["fixed"])


def measure_costs(
    source: Source,
    divergence: Callable[[Path], float],
    *,
    types: Sequence[str] = TYPES,
    threads: int = 1,
    folder: Path | None = None,
    progress: Update = lambda done, total, detail: None,
    cancel: Event | None = None,
) -> Costs:
    """What each of `types` costs each matrix, and that which it has.

    `divergence` measures a candidate file against the source.

    For every group of matrices (a kind of layer in a third of the depth) a file is written to `folder` in
    which they alone are coarse, rounded by ggml, and another, rounded for their outputs: what is better for the
    model's answers is not known before. Raises `KeyboardInterrupt` when cancelled.
    """
    tied = source.is_doubled()
    groups = _groups(source, tied)
    total = 3 * len(groups)
    added, rounded = dict[str, float](), set[str]()
    with TemporaryDirectory(dir=folder, prefix="edge-probe-") as scratch:
        path = Path(scratch) / "probe.gguf"
        for number, (group, names) in enumerate(groups.items()):
            for way in (False, True):
                if way and source.inputs(names[0]) is None:
                    continue
                progress(2 * number + way, total, f"probing {group}")
                encode = partial(source.encode, rounded=way)
                types_of = dict.fromkeys(names, _PROBE)
                write_gguf(source.model, path, types_of, encode, threads=threads, cancel=cancel)
                found = divergence(path)
                if not way or found < added[group]:
                    added[group] = found
                    rounded |= set(names) if way else set()
    errors = {name: source.error(name, _PROBE, rounded=name in rounded) for name in chain(*groups.values())}
    sensitivity = sensitivities(groups, errors, added)
    choices: dict[str, list[Choice]] = {}
    for number, (group, names) in enumerate(groups.items(), 2 * len(groups)):
        progress(number, total, f"rounding {group}")
        for name in names:
            if cancel is not None and cancel.is_set():
                raise KeyboardInterrupt
            choices[name] = [
                Choice(
                    type,
                    tensor_bytes(source.tensors[name], type),
                    sensitivity[name] * source.error(name, type, rounded=name in rounded),
                )
                for type in source.types(name, types)
            ]
    progress(total, total, "")
    return Costs(choices, frozenset(rounded), tied, _fixed_bytes(source, tied))


def require_budget(source: Source, budget: int) -> None:
    """Raise the `ConfigError` of `plan_for_budget` as far as it is known before anything is measured."""
    tied = source.is_doubled()
    sizes = (
        min(tensor_bytes(source.tensors[name], type) for type in source.types(name, TYPES))
        for name in chain(*_groups(source, tied).values())
    )
    _room(source, budget, _fixed_bytes(source, tied), sum(sizes))


def plan_for_budget(source: Source, costs: Costs, budget: int) -> Plan:
    """A plan of at most `budget` bytes with little divergence. Raises `ConfigError` naming the least possible."""
    room = _room(source, budget, costs.fixed, smallest(costs.choices))
    return plan_of(source, costs, allocate(costs.choices, room))


def _room(source: Source, budget: int, fixed: int, smallest: int) -> int:
    """What the budget leaves for matrices; raises `ConfigError` where they take more even at their smallest."""
    room = budget - fixed - _PADDING * len(source.model.tensors)
    if (short := smallest - room) > 0:
        least = (budget + short) / 1e6
        raise ConfigError(
            f"{source.model.path.name} cannot be made as small as {budget / 1e6:.1f} MB: the least is {least:.1f}",
            hint=f"give --budget-mb {least + 0.05:.1f} or more",
        )
    return room


def _fixed_bytes(source: Source, tied: bool) -> int:
    """Bytes of the file that no choice changes."""
    chosen = {*chain(*_groups(source, tied).values()), *([EMBEDDING] if tied else [])}
    return source.model.header.file_bytes - sum(source.model.tensors[name].bytes for name in chosen)


def plan_of(source: Source, costs: Costs, chosen: Mapping[str, Choice]) -> Plan:
    """The plan that gives every matrix the type that was chosen for it."""
    return Plan(
        types={name: choice.type for name, choice in sorted(chosen.items())},
        rounded=tuple(sorted(costs.rounded)),
        tied=costs.tied,
        expected_divergence=sum(choice.divergence for choice in chosen.values()),
        expected_bytes=source.model.header.file_bytes
        + sum(
            tensor_bytes(source.tensors[name], choice.type) - source.tensors[name].bytes
            for name, choice in chosen.items()
        )
        - (source.tensors[EMBEDDING].bytes if costs.tied else 0),
        source=hash_file(source.model.path),
    )


def build(
    source: Source,
    plan: Plan,
    out: Path,
    *,
    threads: int = 1,
    progress: Update = lambda done, total, detail: None,
    cancel: Event | None = None,
) -> GgufHeader:
    """Write the file of a plan. Raises `ConfigError` where the plan is another model's."""
    if plan.source and plan.source != hash_file(source.model.path):
        raise ConfigError(
            f"the plan was made for another file than {source.model.path.name}", hint="make a new one"
        )
    types, dropped = dict(plan.types), frozenset[str]()
    if plan.tied:
        types[EMBEDDING], dropped = types.pop(OUTPUT), frozenset({OUTPUT})
    unchanged = {name for name, type in types.items() if type == source.model.tensors[name].type}

    def encode(name: str, type: str) -> Bytes:
        taken = OUTPUT if plan.tied and name == EMBEDDING else name
        return source.encode(taken, type, rounded=taken in plan.rounded)

    return write_gguf(
        source.model,
        out,
        {name: type for name, type in types.items() if name not in unchanged or (plan.tied and name == EMBEDDING)},
        encode,
        metadata={"general.file_type": Field(U32, _GUESSED), "general.quantization_version": Field(U32, 2)},
        dropped=dropped,
        threads=threads,
        progress=progress,
        cancel=cancel,
    )


_PADDING = 32  # bytes that a tensor may need to begin at an even place
_GUESSED = 1024  # LLAMA_FTYPE_GUESSED: no one type


def _groups(source: Source, tied: bool) -> dict[str, list[str]]:
    """Names of matrices by kind and depth."""
    groups: dict[str, list[str]] = {}
    layers = source.model.header.n_layer or 1
    for name in source.tensors:
        if tied and name == EMBEDDING:
            continue
        match = _BLOCK_NAME.fullmatch(name)
        group = f"{match[2]} {int(match[1]) * _DEPTHS // layers + 1}/{_DEPTHS}" if match else name
        groups.setdefault(group, []).append(name)
    return groups
