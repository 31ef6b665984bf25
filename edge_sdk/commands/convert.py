"""`edge convert` and `edge prune-vocabulary`: models in another form. The toolchain, `quantize`, does the work."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..config import Settings, given_path
from ..errors import ConfigError
from .options import console, options, print_json, progress_bar

if TYPE_CHECKING:
    from ..hub.models import InstalledModel


@click.command()
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--type",
    "kind",
    type=click.Choice(["F32", "F16", "BF16", "Q8_0"], case_sensitive=False),
    help="Of the weights.  [default: F16, to a folder F32]",
)
@click.option("--pre", help="llama.cpp's name of the pre-tokenizer, where it is not recognised.")
@options()
def convert_command(
    settings: Settings, source: str, out: Path, kind: str | None, pre: str | None, as_json: bool
) -> None:
    """Write the Hugging Face model in the folder SOURCE as the GGUF file OUT, or a GGUF model as the folder OUT.

    Llama and Qwen2 decoders with byte-level BPE, from safetensors. A GGUF model, named by its file or in the
    catalog, is de-quantized into a folder that can be trained and converted again.
    """
    from importlib import import_module

    convert = import_module("quantize.gguf_models.convert")  # the toolchain: loaded by name only
    if (folder := given_path(source, "SOURCE")).is_dir():
        with progress_bar("converting", unit="bytes") as bar:
            result = asdict(convert.convert(folder, out, type=kind or "F16", pre=pre, progress=bar))
        checked = "not checked: llama-cpp-python is missing"
        if result["agreement"] is not None:
            checked = f"agrees on all samples and {result['agreement']:.1%} of the vocabulary"
        line = (
            f"{out}: {result['architecture']} of {result['parameters'] / 1e6:,.1f} M parameters "
            f"as {result['type']}, {result['bytes'] / 1e6:,.1f} MB; tokenizer {result['pre_tokenizer']} {checked}"
        )
    else:
        if pre is not None:
            raise click.UsageError("--pre is for converting a folder")
        with progress_bar("converting") as bar:
            convert.to_huggingface(_decoder(source, settings).path, out, type=kind or "F32", progress=bar)
        size = sum(file.stat().st_size for file in out.iterdir())
        result = {"path": out, "type": kind or "F32", "bytes": size}
        line = f"{out}: {size / 1e6:,.1f} MB as {result['type']}"
    if as_json:
        print_json({"command": "edge convert", **result})
    else:
        console().print(line)


@click.command()
@click.argument("source", metavar="MODEL")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--text",
    "texts",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path, exists=True),
    help="What the model will read and write: a file or a folder, several times.",
)
@click.option("--size", type=click.IntRange(1), help="Tokens to keep at most.  [default: all that occur]")
@click.option(
    "--coverage",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Share of the texts' tokens that the kept ones make up, the most frequent first.",
)
@click.option(
    "--held-out",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Texts that are not counted, to measure how many tokens more an unseen text takes.",
)
@options()
def prune_vocabulary_command(
    settings: Settings,
    source: str,
    out: Path,
    texts: tuple[Path, ...],
    size: int | None,
    coverage: float,
    held_out: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Write the GGUF model MODEL as OUT with only the tokens that the texts need.

    MODEL is a catalog name or a file. Every other text can still be read, in more tokens; weights are copied, not
    quantized again.
    """
    from importlib import import_module

    vocabulary = import_module("quantize.gguf_models.vocabulary")  # the toolchain: loaded by name only
    model = _decoder(source, settings)
    with progress_bar("pruning") as bar:
        found = vocabulary.prune_vocabulary(
            model.path, out, texts, size=size, coverage=coverage, held_out=held_out, progress=bar
        )
    result = asdict(found)
    result["texts"]["growth"] = found.texts.growth
    if found.held_out is not None:
        result["held_out"]["growth"] = found.held_out.growth
    if as_json:
        print_json({"command": "edge prune-vocabulary", "model": model.name, **result})
        return
    saved = 1 - found.bytes_after / found.bytes_before
    console().print(
        f"{out}: {found.tokens_after:,} of {found.tokens_before:,} tokens, {found.bytes_after / 1e6:,.1f} MB, "
        f"{saved:.1%} smaller",
    )
    for name, reading in (("texts", found.texts), ("held out", found.held_out)):
        if reading is not None:
            same = f"{reading.identical:.1%} of {reading.passages:,} passages read as before"
            console().print(f"  {name:<10}{reading.growth:+.2%} tokens, {same}")
    for reason in found.skipped:
        console().print(f"skipped: {reason}")


def _decoder(name: str, settings: Settings) -> InstalledModel:
    from ..hub.models import resolve

    model = resolve(name, settings)
    if (model.role, model.format) != ("decoder", "gguf"):
        raise ConfigError(f"{name} is an {model.format} {model.role}", hint="give a language model as GGUF")
    return model
