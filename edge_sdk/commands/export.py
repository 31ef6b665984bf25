"""`edge export`: Hugging Face folders to ONNX. The work is done in the toolchain, `quantize.onnx_models`."""

from __future__ import annotations

from pathlib import Path

import click

from ..config import Settings
from .options import console, options, print_json, progress_bar


@click.command()
@click.argument("source", required=False, type=click.Path(path_type=Path))
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option(
    "--make-environment", is_flag=True, help="First build the environment that exports, if it is not there."
)
@click.option(
    "--text", type=click.Path(path_type=Path), help="Texts to compare on, one a line.  [default: made-up ones]"
)
@options("threads")
def export_command(
    settings: Settings,
    source: Path | None,
    out: Path | None,
    make_environment: bool,
    text: Path | None,
    as_json: bool,
) -> None:
    """Make the new folder OUT with an ONNX model from SOURCE, a folder as transformers saves it.

    Text encoders and small decoders. It is there only when it has agreed with the original. The exporter needs
    pinned versions of torch and transformers: --make-environment keeps them apart under EDGE_HOME, some gigabytes,
    and works alone as well.
    """
    from importlib import import_module

    if (source is None or out is None) and not (make_environment and source is None):
        raise click.UsageError("give SOURCE and OUT" + ("" if make_environment else ", or --make-environment"))
    environment = import_module("quantize.onnx_models.environment")  # the toolchain: loaded by name only
    exporter = import_module("quantize.onnx_models.export")
    parity = import_module("quantize.onnx_models.parity")
    with progress_bar("exporting") as bar:
        if source is not None:
            exporter.read_kind(source)  # what cannot be exported is said before gigabytes are fetched
        if make_environment:
            environment.make_environment(settings, progress=bar)
        python = environment.export_python(settings)
        if source is None or out is None:
            if as_json:
                print_json({"command": "edge export", "python": python})
            else:
                console().print(f"exports run with {python}")
            return
        result = exporter.export_onnx(
            source,
            out,
            python=python,
            texts=parity.read_texts(text) if text else None,
            threads=settings.threads,
            progress=bar,
        )
    if as_json:
        print_json({"command": "edge export", **result})
        return
    size = sum(file["bytes"] for file in result["files"])
    agreed = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in result["parity"].items())
    console().print(f"{out}: {result['kind']}, {size / 1e6:.1f} MB; {agreed}")
    if "backend" in result:
        console().print(f"runs on: {result['backend']}")
