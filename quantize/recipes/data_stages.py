"""All examples of a recipe together, then the good ones, in three parts that share no passage.

One part is learned from, one fits probabilities, one judges. Knows nothing of teachers or students.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edge_sdk.config import Settings
from edge_sdk.errors import ConfigError
from edge_sdk.hub.models import resolve

from ..training_data.curate import Curated, Rules, curate
from ..training_data.data_files import read_data, read_titles
from ..training_data.drops import Drops
from ..training_data.example import Example, read_examples, write_examples
from ..training_data.leakage import Leakage
from ..training_data.passages import SourcePassage
from ..training_data.quality import question_scores
from ..training_data.unanswerable import unanswerable_examples
from .ledger_examples import ledger_examples
from .opening import open_near
from .recipe import CuratePart, Recipe
from .stages import Job, Stage
from .teacher_stages import EXAMPLES, evaluation_files, kept_passages, leakage_of

TRAIN, CALIBRATION, HELD_OUT = "train.jsonl", "calibration.jsonl", "held_out.jsonl"


def data_stages(
    recipe: Recipe, settings: Settings, before: Sequence[str], *, ledger: Path | None = None
) -> list[Stage]:
    """Stages behind those of the teacher, `before`; `ledger` is a store whose learned answers become examples."""
    data = recipe.data
    files = {f"examples {at}": path for at, path in enumerate(data.examples)}
    if ledger is not None:
        files["store"] = ledger
    near = {"encoder": resolve(data.encoder, settings).path}
    rules = asdict(replace(recipe.curate, away_from=()))
    return [
        Stage(
            "data",
            1,
            lambda job: _data(job, recipe, settings, ledger),
            {"unanswerable": data.unanswerable},
            files | (near if data.unanswerable else {}),
            tuple(before),
        ),
        Stage(
            "curate",
            1,
            lambda job: _curate(job, recipe, settings),
            {"rules": rules, "held_out": data.held_out, "calibration": data.calibration},
            evaluation_files(recipe) | (near if recipe.curate.keep else {}),
            ("data", *(name for name in before if name == "passages")),
        ),
    ]


def _data(job: Job, recipe: Recipe, settings: Settings, ledger: Path | None) -> Mapping[str, Any]:
    found: list[Example] = []
    counts: dict[str, int] = {}
    drops = Drops()
    if "teacher" in job.results:
        found += read_examples(job.results["teacher"].folder / EXAMPLES)
        counts["teacher"] = len(found)
    for path in recipe.data.examples:
        given = list(read_data(path))
        found, counts[path.name] = found + given, len(given)
    if ledger is not None:
        learned = list(ledger_examples(ledger, drops))
        found, counts["ledger"] = found + learned, len(learned)
    if not found:
        raise ConfigError(f"{recipe.path.name} gives no examples", hint="name documents or examples in [data]")
    if recipe.data.unanswerable:
        passages = kept_passages(job.results) + [SourcePassage(each.passage) for each in found]
        with open_near(recipe, settings) as encoder:
            made = list(unanswerable_examples(found, passages, encoder, share=recipe.data.unanswerable))
        found, counts["made unanswerable"] = found + made, len(made)
    write_examples(job.folder / EXAMPLES, found)
    return {"examples": len(found), **counts, **({"ledger": drops.to_dict()} if ledger is not None else {})}


def _curate(job: Job, recipe: Recipe, settings: Settings) -> Mapping[str, Any]:
    """Good examples in three parts that share no passage; what is learned from gives nothing of the others away."""
    examples = list(read_examples(job.results["data"].folder / EXAMPLES))
    titles = {each.text: each.title for each in kept_passages(job.results)}
    for path in recipe.data.examples:
        titles |= read_titles(path)
    with ExitStack() as stack:
        curated = curate(
            examples,
            _rules(recipe.curate),
            leakage=leakage_of(recipe),
            titles=titles,
            scores=stack.enter_context(_scores(recipe.curate, settings, job)),
            encoder=stack.enter_context(open_near(recipe, settings)) if recipe.curate.keep else None,
        )
    held, rest = _split(curated.examples, 0.0, recipe.data.held_out)
    fitting, rest = _split(rest, recipe.data.held_out, recipe.data.held_out + recipe.data.calibration)
    near = Leakage([*held, *fitting])
    train = [each for each in rest if not near.of(each)]
    for name, part in ((TRAIN, train), (CALIBRATION, fitting), (HELD_OUT, held)):
        write_examples(job.folder / name, part)
    for name, part, key in (("learn from", train, "held_out"), ("hold out", held, "held_out")):
        if not any(each.answers for each in part):
            raise ConfigError(
                f"of {len(curated.examples)} good examples none is left to {name}",
                hint=f"give more data, or change {recipe.path.name}.data.{key}",
            )
    report = _report(curated, len(rest) - len(train), {"learned": train, "calibration": fitting, "held out": held})
    (job.folder / "report.md").write_text(report, encoding="utf-8")
    sizes = {"learned": len(train), "calibration": len(fitting), "held out": len(held)}
    return {**sizes, "too near to what is held out": len(rest) - len(train), **curated.to_dict()}


def _split(examples: Sequence[Example], least: float, most: float) -> tuple[list[Example], list[Example]]:
    inside = [each for each in examples if least <= each.held_out < most]
    return inside, [each for each in examples if not least <= each.held_out < most]


def _rules(part: CuratePart) -> Rules:
    return Rules(
        languages=part.languages,
        groundedness=part.groundedness,
        passage_likeness=part.likeness,
        question_likeness=part.likeness,
        quality=part.quality,
        budget=part.keep,
    )


def _scores(part: CuratePart, settings: Settings, job: Job) -> AbstractContextManager[Any]:
    if part.quality is None:
        return nullcontext()
    model = resolve(part.judge, settings)
    return question_scores(
        model.path, kept=job.scratch / "scores.jsonl", threads=settings.threads, cancel=job.cancel
    )


def _report(curated: Curated, near: int, parts: Mapping[str, Sequence[Example]]) -> str:
    sizes = "".join(
        f"| {name} | {len(part):,} | {len({each.passage for each in part}):,} |\n" for name, part in parts.items()
    )
    table = f"| part | examples | passages |\n| --- | ---: | ---: |\n{sizes}"
    told = f"{near:,} examples were left out as too near to what is held out.\n"
    return f"# Training data\n\n{curated.markdown()}\n{table}\n{told}"
