"""`edge tune`: the fastest form of a model that keeps its behaviour on this device. The work is in `quantize`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click

from ..config import Settings
from ..errors import ConfigError
from .measure import stamped
from .options import cancel_on_interrupt, console, options, png_path, print_json, progress_bar

if TYPE_CHECKING:
    from ..hub.models import InstalledModel


@click.command()
@click.argument("source", metavar="MODEL")
@click.option(
    "--text",
    "texts",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Text like that which will be read: files or folders.  [default: Python's language reference]",
)
@click.option("--max-kld", default=0.01, show_default=True, help="The most that answers may diverge.")
@click.option("--max-mb", type=float, help="The most bytes that the file may take, in MB.")
@click.option("--type", "types", multiple=True, help="Types of whole files to try.  [default: the four fastest]")
@click.option("--questions", type=click.Path(path_type=Path), help="A question set, to count right answers with.")
@click.option("--limit", default=200, show_default=True, type=click.IntRange(1), help="Only the first questions.")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="Rounds of timing.")
@click.option("--plot", type=click.Path(path_type=Path), callback=png_path, help="Draw the front here (PNG).")
@click.option("--forget", is_flag=True, help="Drop the profile: load the model's own file again.")
@options("encoder", "threads")
def tune_command(
    settings: Settings,
    source: str,
    texts: tuple[Path, ...],
    max_kld: float,
    max_mb: float | None,
    types: tuple[str, ...],
    questions: Path | None,
    limit: int,
    repeats: int,
    plot: Path | None,
    forget: bool,
    as_json: bool,
) -> int:
    """Measure other forms of the GGUF model MODEL on this device, and use the best from now on.

    Files of several types, and mixed ones, are compared with the model's own: KL divergence on text that had no
    part in making them, bytes, prefill and decoding, taking turns; then threads and other settings. The fastest
    within the bounds becomes the model's profile. Stop it whenever you like: it goes on from there. Run it on a
    quiet machine.
    """
    from ..engines.profile import profile_path
    from ..hub.models import resolve

    model = resolve(source, settings)
    if model.format != "gguf" or model.role != "decoder":
        raise ConfigError(f"{model.name} is no GGUF language model", hint="see `edge models`")
    if forget:
        profile_path(settings.home, model.path.stem, model.path.stat().st_size).unlink(missing_ok=True)
        console().print(f"{model.name} is loaded from its own file again")
        return 0
    tune, workbench = (import_module(f"quantize.gguf_models.{name}") for name in ("tune", "workbench"))
    read = import_module("quantize.gguf_models.importance").read_texts(texts, []) if texts else None
    text = read or workbench.language_reference()
    digest = sha256("\n\n".join(text).encode("utf-8", "replace")).hexdigest()[:12]  # other text, other figures
    folder = settings.home / "tuned" / f"{model.path.stem}-{model.path.stat().st_size}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    with cancel_on_interrupt() as cancel, progress_bar("tuning") as bar:
        try:
            with workbench.Workbench(
                model.path,
                text,
                name=", ".join(path.name for path in texts) or "Python's language reference",
                threads=settings.threads,
                folder=folder,
                progress=bar,
                cancel=cancel,
            ) as bench:
                tuner = tune.Tuner(
                    bench,
                    folder,
                    threads=settings.threads,
                    repeats=repeats,
                    answers=_answers(model, settings, questions, limit) if questions else None,
                    asked=f"{limit} of {questions.resolve()}" if questions else "",
                    progress=bar,
                    cancel=cancel,
                )
                found = tuner.candidates(types or tune.UNIFORM)
                chosen = tune.choose(
                    found, most_divergence=max_kld, most_bytes=None if max_mb is None else int(max_mb * 1e6)
                )
                tried = tuner.settings(tuner.path(chosen.name))
                setting = tune.choose_setting(tried)
        except KeyboardInterrupt:
            console().print(f"stopped; what was measured is kept in {folder}")
            return 130
        figures = {"divergence": chosen.divergence, "prefill_ratio": chosen.prefill_ratio}
        profile = tune.make_profile(bench.source, tuner.path(chosen.name), setting, figures)
    profile.save(settings.home)
    best = {each.name for each in tune.front(found)}
    result = {
        "model": model.name,
        "reference": "the published file, de-quantized",
        "candidates": [{**asdict(each), "front": each.name in best} for each in found],
        "settings": [asdict(each) for each in tried],
        "chosen": chosen.name,
        "threads": setting.threads,
        "tuning": asdict(setting.tuning),
    }
    if plot is not None:
        import_module("quantize.plot_front").draw(found, best, chosen.name, plot)
    if not as_json:
        _show(found, best, chosen.name)
        _show_settings(tried, setting)
        console().print(f"{model.name} is loaded as {chosen.name!r} from now on; `--forget` undoes it")
    print_json(stamped("tune", result))
    return 0


def _answers(model: InstalledModel, settings: Settings, questions: Path, limit: int) -> Callable[[Path], float]:
    """The share of questions that a file answers rightly, over the passages of the folder.

    Every file is opened as it is, whatever the model's profile says, and gets the prompts that suit the model.
    """
    flips, calibrate = import_module("quantize.gguf_models.flips"), import_module("quantize.calibrate")
    is_right, _ = calibrate.LABELLERS["contains"]

    def contained(path: Path) -> float:
        rows = flips.answer_questions(path, questions, settings, reading=model.reading, limit=limit)
        return fmean(is_right(row.text, row.answers) for row in rows)

    return contained


def _show(found: Sequence[Any], best: set[str], chosen: str) -> None:
    from rich.table import Table

    asked = any(each.contained is not None for each in found)
    table = Table(box=None)
    columns = ("", "MB", "KL divergence", "prefill/s", "of own", "decode/s", "of own", *(["right"] * asked), "")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for each in sorted(found, key=lambda each: -each.prefill_ratio):
        table.add_row(
            each.name,
            f"{each.bytes / 1e6:,.1f}",
            f"{each.divergence:.4f}",
            f"{each.prefill:,.0f}",
            f"{each.prefill_ratio:.2f}",
            f"{each.decode:,.0f}",
            f"{each.decode_ratio:.2f}",
            *([f"{each.contained:.3f}"] if asked else []),
            "chosen" if each.name == chosen else "on the front" if each.name in best else "",
        )
    console().print(table)


def _show_settings(tried: Sequence[Any], chosen: Any) -> None:
    from rich.table import Table

    table = Table(box=None)
    for column in (
        "threads",
        "batch",
        "flash attention",
        "KV cache",
        "repacked",
        "prefill of default",
        "decode of default",
        "",
    ):
        table.add_column(column, justify="right")
    for each in tried:
        flash = {None: "auto", True: "on", False: "off"}[each.tuning.flash_attention]
        repacked = {None: "auto", True: "yes", False: "no"}[each.tuning.repack]
        table.add_row(
            *(str(each.threads), str(each.tuning.batch), flash, each.tuning.cache_type, repacked),
            *(f"{each.prefill_ratio:.2f}", f"{each.decode_ratio:.2f}", "chosen" if each == chosen else ""),
        )
    console().print(table)
