"""What the quantizer's child process is told: parameters by name, types for tensors, metadata, importance.

Everything that can be wrong with them is found here, before native code sees it. Knows nothing of the process.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edge_sdk.device import default_threads
from edge_sdk.engines.llama_library import library
from edge_sdk.errors import ConfigError, EngineError
from edge_sdk.model_files.gguf_header import GgufHeader

from .file_types import FileType, tensor_number
from .importance_matrix import Importance
from .quantization_plan import QuantizationPlan
from .tensors import GgufModel

Overrides = Sequence[tuple[str, str]]

BUFFER = 256 << 20  # bytes of rows that the quantizer keeps at once
_FIELDS = ("nthread", "ftype", "allow_requantize", "pure", "dry_run", "max_buf_size",
           "imatrix", "kv_overrides", "tt_overrides")  # fmt: skip
_LONGEST = 127  # bytes of a text that the library takes as metadata


def quantizer_job(
    model: GgufModel,
    type: FileType,
    overrides: Overrides,
    importance: Importance | None,
    *,
    threads: int | None,
    pure: bool,
) -> dict[str, Any]:
    """What the child process is told. Raises where the library's parameters are not those that are known."""
    known = {name for name, _ in library().llama_model_quantize_params._fields_}
    if missing := [name for name in _FIELDS if name not in known]:
        raise EngineError(
            f"the quantizer of llama-cpp-python {version('llama-cpp-python')} has no {', '.join(missing)}",
            hint="pip install 'llama-cpp-python>=0.3.36,<0.4'",
        )
    settings = {
        "nthread": threads or default_threads(),
        "ftype": type.number,
        "allow_requantize": True,
        "pure": pure,
        "max_buf_size": BUFFER,
    }
    return {
        "source": str(model.path),
        "settings": settings,
        "types": list(_exact_overrides(model.header, type, overrides).items()),
        "metadata": _metadata(model.header, importance),
        "importance": None,
    }


def _exact_overrides(header: GgufHeader, type: FileType, overrides: Overrides) -> dict[str, int]:
    """ggml's number of the type for each tensor by its name, so that Python's rules hold and not those of C++."""
    if overrides and type.base in ("F32", "F16", "BF16"):
        raise ConfigError(f"llama.cpp knows no overrides for {type.name}", hint="take Q8_0 and override the others")
    exact: dict[str, int] = {}
    for pattern, wanted in overrides:
        number = tensor_number(wanted)
        try:
            found = [tensor.name for tensor in header.tensors if re.search(pattern, tensor.name)]
        except re.error as error:
            raise ConfigError(f"override {pattern!r} is no regular expression: {error}") from error
        if not found:
            some = next((tensor.name for tensor in header.tensors if tensor.name.startswith("blk.")), "")
            raise ConfigError(f"override {pattern!r} matches no tensor", hint=f"names look like {some}")
        for name in found:
            exact.setdefault(name, number)
    return exact


def check_overrides(plan: QuantizationPlan, overrides: Overrides) -> None:
    for pattern, wanted in overrides:
        if not any(
            wanted.upper() in (plan.types[name], plan.asked.get(name))
            for name in plan.types
            if re.search(pattern, name)
        ):
            raise ConfigError(
                f"override {pattern}={wanted} changes nothing: llama.cpp quantizes none of its tensors, or an "
                "earlier override takes them all"
            )


def _metadata(header: GgufHeader, importance: Importance | None) -> dict[str, str | int]:
    """What llama.cpp's own program notes of the matrix; without one, that of an earlier quantization is undone."""
    if importance is None:
        stale = {key: value for key, value in header.metadata.items() if key.startswith("quantize.imatrix.")}
        return {key: "none" if isinstance(value, str) else 0 for key, value in stale.items()}
    text = importance.source.encode()[:_LONGEST].decode("utf-8", "ignore").replace("\0", " ")
    return {
        "quantize.imatrix.file": text,
        "quantize.imatrix.dataset": text,
        "quantize.imatrix.entries_count": len(importance.squares),
        "quantize.imatrix.chunks_count": -(-importance.tokens // importance.context),
    }


def importance_file(importance: Importance, path: Path) -> dict[str, Any]:
    parts = {name: values for name in importance.squares if (values := importance.weights(name)) is not None}
    path.write_bytes(b"".join(values.tobytes() for values in parts.values()))
    return {"file": str(path), "parts": [(name, values.size) for name, values in parts.items()]}
