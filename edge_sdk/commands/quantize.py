"""`edge quantize`: a smaller file of the same model. The work is done in the toolchain, `quantize`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ..config import Settings
from ..errors import ConfigError
from .options import console, options, print_json, progress_bar

_DRY_RUN_TOKENS = 64  # enough to learn which tensors the matrix will name


@click.command()
@click.argument("source", metavar="MODEL", required=False)
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("--type", "type_name", metavar="TYPE", help="As llama.cpp calls it, such as Q4_K_M or IQ4_NL.")
@click.option("--list-types", is_flag=True, help="List the types; with MODEL, what each would be for it.")
@click.option(
    "--override", "overrides", multiple=True, metavar="REGEX=TYPE", help="Tensors with another type, several times."
)
@click.option("--imatrix", type=click.Path(path_type=Path), help="An importance matrix, as GGUF.")
@click.option(
    "--calibration-text",
    "texts",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Documents to collect one from: a file or a folder, several times; best those that will be asked about.",
)
@click.option("--calibration-tokens", type=click.IntRange(_DRY_RUN_TOKENS), default=20_000, show_default=True)
@click.option("--save-imatrix", type=click.Path(path_type=Path), help="Keep the matrix that was collected.")
@click.option("--dry-run", is_flag=True, help="Write nothing; say what the file would be, exact to the byte.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
@options("threads")
def quantize_command(
    settings: Settings,
    source: str | None,
    out: Path | None,
    type_name: str | None,
    list_types: bool,
    overrides: tuple[str, ...],
    imatrix: Path | None,
    texts: tuple[Path, ...],
    calibration_tokens: int,
    save_imatrix: Path | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write MODEL, a catalog name or a .gguf file, to the file OUT in a type that takes fewer bits.

    Rows that do not divide into a type's blocks get another type; what got which is reported. A text that is
    like what the model will read (--calibration-text) costs minutes and gains quality, most below 5 bits.
    """
    if list_types:
        _list_types(settings, source, as_json)
        return
    if source is None or out is None or type_name is None:
        raise click.UsageError("give MODEL, OUT and --type, or --list-types")
    if imatrix and texts:
        raise click.UsageError("give --imatrix or --calibration-text, not both")
    if save_imatrix and not texts:
        raise click.UsageError("--save-imatrix needs --calibration-text")
    quantizer = import_module("quantize.gguf_models.quantizer")  # the toolchain: loaded by name only
    model = _gguf_path(source, settings)
    pairs = [_pair(each) for each in overrides]
    for path in (out, save_imatrix):
        if path and not dry_run:
            quantizer.check_out(model, path, overwrite=force)
    quantizer.quantize_file(model, out, type_name, overrides=pairs, dry_run=True)  # what is wrong shows at once
    tokens = _DRY_RUN_TOKENS if dry_run else calibration_tokens
    importance = _importance(model, imatrix, texts, tokens, settings.threads)
    if save_imatrix and not dry_run:
        importance.save(save_imatrix)
    with progress_bar("quantizing") as bar:
        result = quantizer.quantize_file(
            model,
            out,
            type_name,
            overrides=pairs,
            importance=importance,
            threads=settings.threads,
            dry_run=dry_run,
            overwrite=force,
            progress=bar,
        )
    document = {"command": "edge quantize", "source": model, "out": out, "dry_run": dry_run, **_facts(result)}
    if importance:
        document["importance"] = {"source": importance.source, "tokens": importance.tokens}
    if as_json:
        print_json(document)
        return
    _show(model, out, result, importance)


def _gguf_path(source: str, settings: Settings) -> Path:
    from ..hub.models import resolve

    model = resolve(source, settings)
    if model.format != "gguf":
        raise ConfigError(f"{model.name} is {model.format}, not GGUF", hint="give a GGUF model")
    return model.path


def _pair(override: str) -> tuple[str, str]:
    pattern, _, type_name = override.rpartition("=")
    if not pattern or not type_name:
        raise ConfigError(f"--override {override!r} is not REGEX=TYPE", hint="as in --override 'attn_v=Q8_0'")
    return pattern, type_name


def _importance(
    model: Path, imatrix: Path | None, texts: tuple[Path, ...], max_tokens: int, threads: int | None
) -> Any:
    if imatrix:
        return import_module("quantize.gguf_models.importance_matrix").Importance.load(imatrix)
    if not texts:
        return None
    module = import_module("quantize.gguf_models.importance")
    skipped: list[str] = []
    read = module.read_texts(texts, skipped)
    for reason in skipped:
        click.echo(f"skipped: {reason}", err=True)
    with progress_bar("importance matrix") as bar:
        return module.collect_importance(
            model,
            read,
            source=", ".join(path.name for path in texts),  # no paths: it stands in the file that is given away
            max_tokens=max_tokens,
            threads=threads,
            progress=bar,
        )


def _facts(result: Any) -> dict[str, Any]:
    """The JSON of a file that was or would be quantized."""
    names = ("type", "bytes", "bits_per_weight", "types", "fallbacks", "source_bytes", "source_bits_per_weight",
             "source_types", "requantized", "reference")  # fmt: skip
    facts = {name: getattr(result, name) for name in names}
    return {**facts, "needs_importance": len(result.needs_importance)}


def _show(model: Path, out: Path, result: Any, importance: Any) -> None:
    say = console().print
    say(
        f"{model.name}: {result.source_bytes / 1e6:,.1f} MB, {result.source_bits_per_weight:.2f} bits per weight",
        markup=False,
    )
    say(
        f"{out if result.path else 'dry run'}: {result.bytes / 1e6:,.1f} MB, {result.bits_per_weight:.2f} "
        f"bits per weight as {result.type}",
        markup=False,
    )
    for name, share in result.types.items():
        say(f"  {name:<8} {share.tensors:>5} tensors {share.bytes / 1e6:>9,.1f} MB", markup=False)
    for each in result.fallbacks:
        say(
            f"{each.got} instead of {each.asked}: {each.tensors} tensors, {each.bytes / 1e6:,.1f} MB; their rows "
            f"do not divide into blocks of {each.asked}",
            markup=False,
        )
    if importance:
        say(f"importance matrix: {importance.source}, {importance.tokens:,} tokens", markup=False)
    if result.needs_importance:
        say(f"{len(result.needs_importance)} tensors need --imatrix or --calibration-text")
    if result.requantized:
        say(f"the source is quantized already: compare with {result.reference}")


def _list_types(settings: Settings, source: str | None, as_json: bool) -> None:
    """All types by the bits of their blocks, or what they would be for one model."""
    from rich.table import Table

    table = Table(box=None)
    if source is None:
        types = import_module("quantize.gguf_models.file_types").file_types().values()
        for column in ("type", "most tensors", "bits per weight there"):
            table.add_column(column)
        for each in types:
            table.add_row(each.name, each.base, f"{each.bits_per_weight:.2f}")
        document: dict[str, Any] = {"types": list(types)}
    else:
        quantizer, model = import_module("quantize.gguf_models.quantizer"), _gguf_path(source, settings)
        with progress_bar("planning") as bar:
            results = quantizer.survey_types(model, threads=settings.threads, progress=bar)
        for column in ("type", "MB", "bits per weight", "importance matrix", "fallbacks"):
            table.add_column(column, justify="right" if column in ("MB", "bits per weight") else "left")
        for each in results:
            fallbacks = ", ".join(f"{one.got} instead of {one.asked}" for one in each.fallbacks[:2])
            needed = "needed" if each.needs_importance else ""
            table.add_row(each.type, f"{each.bytes / 1e6:,.1f}", f"{each.bits_per_weight:.2f}", needed, fallbacks)
        document = {"source": source, "types": [_facts(each) for each in results]}
    if as_json:
        print_json({"command": "edge quantize", **document})
        return
    console().print(table)
