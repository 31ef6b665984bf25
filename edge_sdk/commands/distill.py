"""`edge distill`: small models made from larger ones. The work is done in the toolchain, `quantize`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ..config import Settings
from .options import cancel_on_interrupt, console, options, print_json, progress_bar


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--plan", "only_plan", is_flag=True, help="Show the stages, and what of them is done already.")
@click.option("--until", metavar="STAGE", help="Run only this stage and those that it builds on.")
@click.option(
    "--from-ledger", is_flag=True, help="Learn from the accepted answers of the remote in the store, too."
)
@options("store", "threads")
def distill_command(
    settings: Settings, recipe: Path, only_plan: bool, until: str | None, from_ledger: bool, as_json: bool
) -> int:
    """Make what RECIPE (TOML) describes: examples by a teacher, students, their figures, a signed bundle.

    Every stage is kept in the recipe's work folder, and made again only where something that decides it has
    changed. Stop it whenever you like: it goes on from there. `examples/distill.toml` explains every table.

    `edge distill static` makes a static encoder alone.
    """
    # The toolchain: loaded by name only.
    recipes, stages_of = (
        import_module("quantize.recipes.recipe"),
        import_module("quantize.recipes.pipeline").stages_of,
    )
    running, cache = import_module("quantize.recipes.stages"), import_module("quantize.recipes.cache")
    read = recipes.read_recipe(recipe)
    stages = stages_of(read, settings, ledger=settings.store if from_ledger else None)
    if until is not None:
        stages = running.needed(stages, until)
    work = cache.Work(read.work)
    if only_plan:
        _show_plan(running.plan(stages, work), recipe, as_json)
        return 0
    steps: dict[str, Any] = {}
    with work.hold(), cancel_on_interrupt() as cancel, ExitStack() as bar:

        def progress(stage: str) -> Callable[[float, float | None, str], None]:
            return bar.enter_context(progress_bar(stage))

        for step in running.run(stages, work, progress=progress, cancel=cancel):
            bar.close()
            steps[step.name] = step
            if not as_json:
                _show_step(step)
        if cancel.is_set():
            bar.close()
            click.echo(f"stopped; what is done is kept in {read.work}", err=True)
            return 130
        out = None
        if "pack" in steps:
            import_module("quantize.recipes.bundle_stages").place_bundle(read, steps["pack"].result.folder)
            out = read.bundle.out
    if as_json:
        print_json(
            {
                "command": "edge distill",
                "recipe": recipe,
                "work": read.work,
                "stages": [_step(step) for step in steps.values()],
                "cost": sum(step.result.cost for step in steps.values() if not step.cached),
                "bundle": out,
            }
        )
    elif out is not None:
        console().print(f"{out} is ready: `edge ask --bundle {out}`")
    return 0


def _step(step: Any) -> Mapping[str, Any]:
    result = step.result
    return {
        "stage": step.name,
        "cached": step.cached,
        "seconds": result.seconds,
        "cost": result.cost,
        "folder": result.folder,
        "figures": result.figures,
    }


def _show_step(step: Any) -> None:
    result, told = step.result, []
    for name, value in result.figures.items():
        if isinstance(value, int | float | str):
            told.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    cost = f", cost {result.cost:.4f}" if result.cost else ""
    took = "as before" if step.cached else f"{result.seconds:,.1f} s"
    console().print(f"{step.name:<16}{took}{cost}; {', '.join(told)}")
    for page in sorted(result.folder.glob("report.*")):
        console().print(f"{'':<16}{page}", style="dim")


def _show_plan(planned: Sequence[Any], recipe: Path, as_json: bool) -> None:
    if as_json:
        print_json({"command": "edge distill --plan", "recipe": recipe, "stages": planned})
        return
    for each in planned:
        told = [each.expects] if each.expects else []
        if each.seconds is not None:
            told.append(
                f"{each.seconds:,.1f} s" if each.state == "done" else f"took {each.seconds:,.1f} s last time"
            )
        if each.cost:
            told.append(f"cost {each.cost:.4f}")
        console().print(f"{each.name:<16}{each.state:<8}{'; '.join(told)}")


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
        console().print(f"skipped: {reason}")
