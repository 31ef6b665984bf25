"""`edge quantize`: a smaller file of the same model. The work is done in the toolchain, `quantize`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ..config import Settings
from ..device import default_threads
from ..errors import ConfigError
from .options import cancel_on_interrupt, console, options, print_json, progress_bar

_DRY_RUN_TOKENS = 64  # enough to learn which tensors the matrix will name


@click.command()
@click.argument("source", metavar="MODEL", required=False)
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("--type", "type_name", metavar="TYPE", help="As llama.cpp calls it, such as Q4_K_M or IQ4_NL.")
@click.option(
    "--budget-mb",
    type=click.FloatRange(min=0, min_open=True),
    help="Instead of a type: the most megabytes; each tensor gets what it needs.",
)
@click.option("--max-kld", type=float, help="Instead of a type: the most KL divergence; the smallest such file.")
@click.option(
    "--plan", type=click.Path(path_type=Path), help="Instead of a type: a plan made before, edited or not."
)
@click.option(
    "--save-plan", type=click.Path(path_type=Path), help="Write the plan here, as JSON that can be edited."
)
@click.option("--method", default="auto", show_default=True, help="For ONNX: int8, int4, ...; auto measures them.")
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
    budget_mb: float | None,
    max_kld: float | None,
    plan: Path | None,
    save_plan: Path | None,
    method: str,
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
    """Write MODEL, a catalog name or a file, to OUT with fewer bits: GGUF in a type, or ONNX by a method.

    Rows that do not divide into a type's blocks get another type; what got which is reported. A text that is
    like what the model will read (--calibration-text) costs minutes and gains quality, most below 5 bits. With
    --budget-mb or --max-kld every tensor gets the type that it needs: what each costs is measured on that text.
    """
    if list_types:
        _list_types(settings, source, as_json)
        return
    wanted = [type_name, budget_mb, max_kld, plan]
    if source is None or out is None:
        raise click.UsageError("give MODEL and OUT, or --list-types")
    if _is_onnx(settings, source):
        from .quantize_onnx import quantize_onnx

        if out.exists() and not force:
            raise ConfigError(f"{out} exists", hint="name another folder")
        text = texts[0] if texts else None
        quantize_onnx(settings, source, out, method=method, text=text, as_json=as_json)
        return
    if sum(each is not None for each in wanted) != 1:
        raise click.UsageError("give one of --type, --budget-mb, --max-kld and --plan")
    if imatrix and texts:
        raise click.UsageError("give --imatrix or --calibration-text, not both")
    if save_imatrix and not texts:
        raise click.UsageError("--save-imatrix needs --calibration-text")
    quantizer = import_module("quantize.gguf_models.quantizer")  # the toolchain: loaded by name only
    model = _gguf_path(source, settings)
    if type_name is None:
        quantizer.check_out(model, out, overwrite=force)
        found = _planned(settings, model, out, texts, imatrix, budget_mb, max_kld, plan, calibration_tokens)
        if save_plan:
            found.plan.save(save_plan)
        if as_json:
            print_json({"command": "edge quantize", "source": model, "out": out, **found.facts()})
        else:
            _show_planned(model, found)
        return
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


def _is_onnx(settings: Settings, source: str) -> bool:
    from ..hub.models import resolve

    return resolve(source, settings).format == "onnx"


def _planned(
    settings: Settings,
    model: Path,
    out: Path,
    texts: tuple[Path, ...],
    imatrix: Path | None,
    budget_mb: float | None,
    max_kld: float | None,
    plan: Path | None,
    tokens: int,
) -> Any:
    planned = import_module("quantize.gguf_models.planned")
    threads = settings.threads or default_threads()
    if plan is not None:
        read = import_module("quantize.gguf_models.allocation").Plan.load(plan)
        importance = _importance(model, imatrix, texts, tokens, threads, products=read.rounded)
        with progress_bar("quantizing") as bar:
            return planned.quantize_by_plan(model, out, read, importance=importance, threads=threads, progress=bar)
    if not texts:
        raise ConfigError("what each tensor needs is measured on a text", hint="give --calibration-text")
    found = import_module("quantize.gguf_models.importance").read_texts(texts, [])
    with cancel_on_interrupt() as cancel, progress_bar("measuring") as bar:
        return planned.quantize_to_bound(
            model,
            out,
            found,
            name=", ".join(path.name for path in texts),
            budget=None if budget_mb is None else int(budget_mb * 1e6),
            most_divergence=max_kld,
            threads=threads,
            progress=bar,
            cancel=cancel,
        )


def _show_planned(model: Path, found: Any) -> None:
    say = console().print
    facts = found.facts()
    say(f"{model.name}: {found.source_bytes / 1e6:,.1f} MB")
    say(f"{found.path}: {found.bytes / 1e6:,.1f} MB, {found.bits_per_weight:.2f} bits per weight")
    say("  " + ", ".join(f"{count} {name}" for name, count in sorted(facts["types"].items())))
    if found.plan.tied:
        say("  the output matrix was the embeddings once more: it is left out")
    if found.divergence is not None:
        seen = found.divergence
        say(
            f"  KL divergence {seen.kld_mean:.4f}, top-1 agreement {seen.top1_agreement:.3f}, perplexity "
            f"{seen.ppl_a:.2f} to {seen.ppl_b:.2f}, on text kept aside, from the source de-quantized"
        )


def _pair(override: str) -> tuple[str, str]:
    pattern, _, type_name = override.rpartition("=")
    if not pattern or not type_name:
        raise ConfigError(f"--override {override!r} is not REGEX=TYPE", hint="as in --override 'attn_v=Q8_0'")
    return pattern, type_name


def _importance(
    model: Path,
    imatrix: Path | None,
    texts: tuple[Path, ...],
    max_tokens: int,
    threads: int | None,
    *,
    products: Sequence[str] = (),
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
            products=products,
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
    )
    say(
        f"{out if result.path else 'dry run'}: {result.bytes / 1e6:,.1f} MB, {result.bits_per_weight:.2f} "
        f"bits per weight as {result.type}",
    )
    for name, share in result.types.items():
        say(f"  {name:<8} {share.tensors:>5} tensors {share.bytes / 1e6:>9,.1f} MB")
    for each in result.fallbacks:
        say(
            f"{each.got} instead of {each.asked}: {each.tensors} tensors, {each.bytes / 1e6:,.1f} MB; their rows "
            f"do not divide into blocks of {each.asked}",
        )
    if importance:
        say(f"importance matrix: {importance.source}, {importance.tokens:,} tokens")
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
