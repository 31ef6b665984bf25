"""`edge pull`, `models` and `doctor`: the commands about models and the machine."""

from __future__ import annotations

import click

from ..config import Settings
from .options import console, options, print_json, progress_bar


@click.command()
@click.argument("names", nargs=-1, required=True)
@options()
def pull_command(settings: Settings, names: tuple[str, ...], as_json: bool) -> None:
    """Fetch models by name, check their hashes and keep them under EDGE_HOME.

    An interrupted pull is resumed by the same command; a model that is present costs nothing.
    """
    from ..hub.models import pull

    pulled = []
    for name in names:
        with progress_bar(name, unit="bytes") as bar:
            pulled.append(pull(name, settings, progress=bar))
    if as_json:
        print_json({"models": pulled})
        return
    for model in pulled:
        console().print(f"{model.name} is ready in {model.directory}")


@click.command()
@click.option("--verify", is_flag=True, help="Hash every file again.")
@options()
def models_command(settings: Settings, verify: bool, as_json: bool) -> int:
    """List the models of the catalog and which of them are present."""
    from rich.table import Table

    from ..hub.models import list_models

    rows = list_models(settings, verify=verify)
    if as_json:
        print_json({"home": settings.home, "models": rows})
        return 0
    table = Table(box=None)
    for column in ("model", "role", "format", "size", "licence", "state", "what it is"):
        table.add_column(column, justify="right" if column == "size" else "left", no_wrap=column != "what it is")
    for row in rows:
        table.add_row(
            row.name, row.role, row.format, f"{row.bytes / 1e6:,.0f} MB", row.licence, row.state, row.description
        )
    console().print(table)
    return 0


@click.command()
@options("store", "bundle", "require_signature", "model", "adapter", "encoder", "context", "cache_type", "threads")
def doctor_command(settings: Settings, as_json: bool) -> int:
    """Print versions, CPU, memory, models and settings, and say what is wrong and how to mend it."""
    from ..doctor import diagnose

    report = diagnose(settings)
    if as_json:
        print_json(report)
    else:
        out = console()
        for section in report.sections:
            out.print(section.title, style="bold")
            for name, value in section.rows:
                out.print(f"  {name:<22} {value}")
        out.print("problems", style="bold")
        for problem in report.problems or ("none",):
            out.print(f"  {problem}")
    return 1 if report.problems else 0
