"""GGUF files quantized by llama.cpp's own quantizer: planned to the byte, checked, written, read again, renamed.

It runs in a child process, which may be stopped at any moment. Knows nothing of what a type costs in quality.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Flag
from typing import Any

from edge_sdk.device import available_memory, free_disk
from edge_sdk.errors import ConfigError, EngineError, ModelDamagedError
from edge_sdk.hub.partial import OUT, disk_full
from edge_sdk.model_files.gguf_header import read_header

from .file_types import FileType, file_type, file_types
from .gguf_format import temporary
from .importance_matrix import Importance
from .quantization_plan import ALIGNMENT, Fallback, QuantizationPlan, TypeShare, read_plan, shares, working_memory
from .quantization_plan import bits_per_weight as average_bits
from .quantizer_job import BUFFER, Overrides, check_overrides, importance_file, quantizer_job
from .quantizer_process import QuantizerProcess
from .tensors import GgufModel

Update = Callable[[float, float | None, str], None]

_PROCESS = 100 << 20  # bytes that the child takes besides, vocabulary included
_STEP = re.compile(r"\[ *(\d+)/ *(\d+)\] (\S+)")


@dataclass(frozen=True, slots=True)
class QuantizedFile:
    """A file that was quantized, or in a dry run would be: `path` is None then, and all else the same.

    `tensor_types` has the type of each tensor. `requantized` says that the source was quantized already, so that
    every comparison is with its de-quantized weights. `needs_importance` (dry runs only) names tensors that
    llama.cpp will not make without an importance matrix; `importance` says what the one used was measured on.
    """

    path: Path | None
    type: str
    bytes: int
    bits_per_weight: float
    types: Mapping[str, TypeShare]
    fallbacks: tuple[Fallback, ...]
    tensor_types: Mapping[str, str]
    source_bytes: int
    source_bits_per_weight: float
    source_types: Mapping[str, TypeShare]
    requantized: bool
    importance: str | None = None
    needs_importance: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """What figures of this file are compared with, for tables."""
        return "the de-quantized published file" if self.requantized else "the source's own weights"


def quantize_file(
    source: Path,
    out: Path,
    type: str,
    *,
    overrides: Overrides = (),
    importance: Importance | None = None,
    threads: int | None = None,
    pure: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    progress: Update = lambda done, total, detail: None,
    cancel: Flag | None = None,
) -> QuantizedFile:
    """Write `source`, a GGUF file of any types, to `out` as `type` ("Q4_K_M", in any case).

    The first of the `overrides`, pairs of a regular expression and a tensor type, that is found in a tensor's name
    gives it its type; `pure` makes every tensor of the base type. A dry run writes nothing, and is exact to the
    byte. `progress` counts tensors. Nothing is at `out` before the file is whole and has been read again.

    Raises `ConfigError` for a type, an override or an importance matrix that does not fit or is missing, and where
    `out` exists unless `overwrite`; `ModelDamagedError` for a source that is no model; `DiskFullError` and
    `EngineError` before any work where disk or memory is too small; `EngineError` with llama.cpp's own words;
    `KeyboardInterrupt` when `cancel` is set.
    """
    wanted, model = file_type(type), _source(source)
    if not dry_run:
        check_out(source, out, overwrite=overwrite)
    if importance:
        importance.check(model.header)
    job = quantizer_job(model, wanted, overrides, importance, threads=threads, pure=pure)
    with ExitStack() as stack:
        process = stack.enter_context(QuantizerProcess(cancel))
        if importance:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-quantize-"))
            job["importance"] = importance_file(importance, Path(folder) / "figures")
        plan = _planned(process, model, wanted, job)
        check_overrides(plan, overrides)
        lacking = plan.lacking_importance(wanted, frozenset(importance.squares if importance else ()))
        if dry_run:
            return _result(None, wanted, plan, importance, lacking)
        if lacking:
            raise ConfigError(
                f"{wanted.name} needs an importance matrix ({len(lacking)} tensors, {lacking[0]} first)",
                hint="give --imatrix FILE or --calibration-text FILE",
            )
        _check_memory(source, plan)
        with temporary(out, plan.bytes) as partial:
            _write(process, job, partial, plan, progress)
    return _result(out, wanted, plan, importance, ())


def survey_types(
    source: Path, *, threads: int | None = None, progress: Update = lambda done, total, detail: None
) -> tuple[QuantizedFile, ...]:
    """What `source` would be as each of llama.cpp's types without an importance matrix, the smallest first.

    These are dry runs. Types that this model cannot have are left out; `EngineError` where it can have none.
    """
    model = _source(source)
    types = sorted(file_types().values(), key=lambda each: each.name != "Q8_0")  # first, for it fits any model
    found: list[QuantizedFile] = []
    process = QuantizerProcess()
    try:
        for done, wanted in enumerate(types):
            progress(done, len(types), wanted.name)
            try:
                job = quantizer_job(model, wanted, (), None, threads=threads, pure=False)
                plan = _planned(process, model, wanted, job)
            except EngineError:  # it ends the process
                if not found:
                    raise
                process = QuantizerProcess()
                continue
            found.append(_result(None, wanted, plan, None, plan.lacking_importance(wanted, frozenset())))
    finally:
        process.close()
    return tuple(sorted(found, key=lambda result: result.bytes))


def _source(path: Path) -> GgufModel:
    model = GgufModel(path)
    alignment = model.header.metadata.get("general.alignment", ALIGNMENT)
    if alignment != ALIGNMENT:
        raise ConfigError(
            f"{path.name} aligns tensors to {alignment} bytes; llama.cpp's quantizer writes {ALIGNMENT}"
        )
    return model


def check_out(source: Path, out: Path, *, overwrite: bool = False) -> None:
    """Raise `ConfigError` where `out` is `source`, a folder or, unless `overwrite`, there already."""
    if out.exists() and out.samefile(source):
        raise ConfigError(f"{out} is the model that is to be quantized", hint="give another file")
    if out.is_dir() or (out.exists() and not overwrite):
        raise ConfigError(f"{out} exists already", hint="give a file that is not there yet, or --force")


def _planned(process: QuantizerProcess, model: GgufModel, type: FileType, job: dict[str, Any]) -> QuantizationPlan:
    lines = process.run({**job, "out": "", "settings": {**job["settings"], "dry_run": True}})
    names = [name for name, _ in job["types"]]
    return read_plan(model, lines, type, metadata=job["metadata"], overridden=names)


def _check_memory(source: Path, plan: QuantizationPlan) -> None:
    needed, free = working_memory(plan, BUFFER) + _PROCESS, available_memory()
    if free is not None and needed > free:
        raise EngineError(
            f"quantizing {source.name} needs {needed >> 20} MiB of memory, {free >> 20} MiB are free",
            hint="close other programs",
        )


def _write(
    process: QuantizerProcess, job: dict[str, Any], partial: Path, plan: QuantizationPlan, progress: Update
) -> None:
    """Have the file written, and compare what is on the disk with the plan."""

    def on_line(line: str) -> None:
        if step := _STEP.match(line):
            progress(int(step[1]), int(step[2]), step[3])

    try:
        process.run({**job, "out": str(partial), "settings": {**job["settings"], "dry_run": False}}, on_line)
    except EngineError as error:
        written = partial.stat().st_size if partial.exists() else 0
        if free_disk(partial) < plan.bytes - written:
            done = f"{written >> 20} of {plan.bytes >> 20} MiB"
            raise disk_full(f"the disk is full after {done}", instead=OUT) from error
        raise
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    header = read_header(partial)
    found = {tensor.name: (tensor.type, _plain(tensor.shape)) for tensor in header.tensors}
    expected = {tensor.name: (plan.types[tensor.name], _plain(tensor.shape)) for tensor in plan.header.tensors}
    if found != expected or header.file_bytes != plan.bytes:
        raise ModelDamagedError(
            f"llama.cpp wrote {header.file_bytes} bytes in {len(found)} tensors, not the {plan.bytes} bytes in "
            f"{len(expected)} that were planned",
            hint="check the disk",
        )


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the ones at its end, which llama.cpp leaves out.

    >>> _plain((576, 1, 1)), _plain((1,))
    ((576,), (1,))
    """
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _result(
    path: Path | None,
    type: FileType,
    plan: QuantizationPlan,
    importance: Importance | None,
    lacking: tuple[str, ...],
) -> QuantizedFile:
    held = shares(plan.header)
    return QuantizedFile(
        path=path,
        type=type.name,
        bytes=plan.bytes,
        bits_per_weight=plan.bits_per_weight,
        types=plan.shares,
        fallbacks=plan.fallbacks,
        tensor_types=plan.types,
        source_bytes=plan.header.file_bytes,
        source_bits_per_weight=average_bits(plan.header),
        source_types=held,
        requantized=not held.keys() <= {"F32", "F16", "BF16"},
        importance=importance.source if importance else None,
        needs_importance=lacking,
    )
