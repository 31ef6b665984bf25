"""`edge distill`: small models made from larger ones. The work is done in the toolchain, `quantize`."""

from __future__ import annotations

from pathlib import Path

import click

from ..config import Settings
from .options import console, options, print_json, progress_bar


@click.command()
@click.argument("source", metavar="ENCODER")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--dimension", type=click.IntRange(1), help="Length of a vector.  [default: 256, or the encoder's]")
@click.option(
    "--text",
    "texts",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Documents to fit: a file or a folder, several times; best those that will be searched.",
)
@options()
def distill_static_command(
    settings: Settings, source: str, out: Path, dimension: int | None, texts: tuple[Path, ...], as_json: bool
) -> None:
    """Make a static encoder in the new folder OUT from ENCODER, a catalog name or a folder.

    It needs no transformer at run time. Fitted to the documents that it will search, it ranks nearly as
    well as ENCODER; without --text far worse. Use it with `--encoder OUT`.
    """
    from importlib import import_module

    from ..hub.models import resolve

    static_encoder = import_module("quantize.static_encoder")  # the toolchain: loaded by name only
    model = resolve(source, settings)
    with progress_bar("distilling") as bar:
        result = static_encoder.distil_static(
            model.directory, out, name=model.name, dimension=dimension, texts=texts, progress=bar
        )
    if as_json:
        print_json({"command": "edge distill static", **result})
        return
    console().print(
        f"{out}: {result['tokens']:,} tokens of {result['dimension']} dimensions, "
        f"{result['bytes'] / 1e6:.1f} MB, fitted to {result['passages']:,} passages"
    )
    for reason in result["skipped"]:
        console().print(f"skipped: {reason}", markup=False)
