"""`edge quantize` of ONNX models: what it shows. The work is done in the toolchain, `quantize.onnx_models`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import Settings
from ..hub.models import resolve
from .measure import stamped
from .options import console, print_json, progress_bar


def quantize_onnx(
    settings: Settings,
    source: str,
    out: Path,
    *,
    method: str = "auto",
    text: Path | None = None,
    floor: float | None = None,
    beside: Sequence[str] = (),
    as_json: bool = False,
) -> dict[str, Any]:
    """Make the folder OUT from an ONNX model, a catalog name or a folder, and print what was measured.

    `text` is a file with a text a line; `beside` are models to measure as well. Raises what the toolchain raises.
    """
    from importlib import import_module

    toolchain = import_module("quantize.onnx_models.quantize")
    parity = import_module("quantize.onnx_models.parity")
    model = resolve(source, settings)
    with progress_bar("measuring forms") as bar:
        result: dict[str, Any] = toolchain.quantize_onnx(
            model.directory,
            out,
            name=model.name,
            method=method,
            floor=floor,
            texts=parity.read_texts(text) if text else None,
            beside=[resolve(name, settings).directory for name in beside],
            threads=settings.threads,
            progress=bar,
        )
    if as_json:
        print_json(stamped("quantize", result))
    else:
        _show(out, result)
    return result


def _show(out: Path, result: dict[str, Any]) -> None:
    from rich.table import Table

    agreement = "cosine" if result["kind"] == "encoder" else "top-1"
    table = Table(title="speed beside the source in onnxruntime", box=None)
    for column in ("", "MB", agreement, "here", "onnxruntime"):
        table.add_column(column, justify="right" if column else "left")
    chosen = result["chosen"]["name"]
    for row in (*result["beside"], *result["candidates"]):
        table.add_row(
            f"{row['name']} *" if row["name"] == chosen else row["name"],
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['agreement']:.4f}",
            f"{row['speedup']:.2f}",
            f"{row['native_speedup']:.2f}",
        )
    console().print(table)
    for name, reason in result["failed"].items():
        console().print(f"{name} failed: {reason}")
    figures = f"{result['bytes_ratio']:.3f} of the bytes, {agreement} {result['chosen']['agreement']:.4f}"
    console().print(f"{out}: {chosen}, {figures}")
