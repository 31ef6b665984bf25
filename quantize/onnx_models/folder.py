"""The folder of a finished ONNX model: all of it or nothing, with a record of what is in it and how it was made.

Knows nothing of how a model is exported or made smaller.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from edge_sdk.device import describe, free_disk
from edge_sdk.errors import ConfigError, DiskFullError, MissingExtraError
from edge_sdk.hub.partial import OUT, hash_file, storage_errors
from edge_sdk.model_files.onnx_session import OnnxFile

COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
)
"""Files beside a model that belong to it; only the first has to be there."""
_TOOLS = ("onnx", "onnxruntime", "numpy")


def import_onnx() -> ModuleType:
    """The onnx package, which making models needs and running them does not; or `MissingExtraError`."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("making ONNX models", "quantize") from error
    return onnx


@contextmanager
def new_folder(out: Path, *, room: int) -> Iterator[Path]:
    """A temporary folder beside `out` that gets its name at the end, if nothing was raised; else it is deleted.

    Raises `ConfigError` when `out` exists, `DiskFullError` when less than `room` bytes are free or the disk fills,
    and `ModelError` when the folder cannot be written.
    """
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists already", hint="give a folder that is not there yet")
    free = free_disk(out)
    if free < room:
        raise DiskFullError(
            f"{out} needs about {room / 1e6:,.0f} MB while it is made, and {free / 1e6:,.0f} MB are free"
        )
    with storage_errors(out, instead=OUT):
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            yield part
            part.chmod(0o755)  # a temporary folder is its owner's alone
            part.rename(out)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the files that belong to a model, as far as there are any."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def describe_graph(file: OnnxFile) -> dict[str, Any]:
    """Operators with their counts, those of subgraphs too, and the version of each operator set."""
    model = import_onnx().load(str(file.path), load_external_data=False)
    counts: Counter[str] = Counter()
    graphs = [model.graph]
    while graphs:
        for node in graphs.pop().node:
            counts[node.op_type] += 1
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else attribute.graphs
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    return {"operators": dict(sorted(counts.items())), "opset": dict(sorted(opsets.items()))}


def describe_files(folder: Path) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of every file of a folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [{"name": path.name, "bytes": path.stat().st_size, "sha256": hash_file(path)} for path in files]


def write_record(folder: Path, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write a JSON file with `record`, what is in the folder, the tools, the machine and the date; return it."""
    whole = {
        **record,
        "files": describe_files(folder),
        "tools": {**tool_versions(), **record.get("tools", {})},
        "machine": describe(),
        "date": time.strftime("%Y-%m-%d"),
    }
    (folder / name).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return whole


def tool_versions() -> dict[str, str]:
    """Versions of the packages that decide what comes out, as far as they are installed."""
    found = {}
    for name in _TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
