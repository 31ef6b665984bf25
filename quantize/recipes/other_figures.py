"""Figures of students that answer no questions: encoders find passages, heads label texts.

Each stands beside what it was made from, or beside the simpler one. Knows nothing of reports.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_sdk.config import Settings
from edge_sdk.encoders.encoders import open_encoder
from edge_sdk.errors import ConfigError
from edge_sdk.heads.classifier import IntentHead
from edge_sdk.hub.models import resolve

from ..evaluate_intents import judge, milliseconds
from ..evaluate_retrieval import evaluate_retrieval
from ..students.heads import OUT_OF_SCOPE, fit_head, read_labelled
from ..training_data.example import Example, read_examples
from .data_stages import CALIBRATION, TRAIN
from .recipe import HeadPart, Recipe
from .stages import Job
from .student_stages import ENCODER, HEAD
from .systems import size_of


def other_figures(
    job: Job, recipe: Recipe, settings: Settings, examples: Sequence[Example]
) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """A heading and the figures of the systems under it, each a number or {mean, low, high}."""
    if recipe.encoder is not None:
        yield (
            "Encoder: finding the passage among all, by vectors and as `edge search` ranks",
            _encoders(job, recipe, settings, examples),
        )
    for name, part in recipe.head.items():
        if part.test is not None:
            yield f"Head: {name}", _heads(job, name, part, settings)


def _encoders(
    job: Job, recipe: Recipe, settings: Settings, examples: Sequence[Example]
) -> dict[str, dict[str, Any]]:
    assert recipe.encoder is not None
    data = job.scratch / "retrieval"
    passages = dict.fromkeys(each.passage for each in examples)
    for name in () if recipe.evaluate.data else (TRAIN, CALIBRATION):  # all that a question could be about
        passages |= dict.fromkeys(each.passage for each in read_examples(job.results["curate"].folder / name))
    data.mkdir(exist_ok=True)
    ids = {text: f"p{number}" for number, text in enumerate(passages)}
    _rows(data / "passages.jsonl", [{"id": id, "text": text} for text, id in ids.items()])
    pairs = [(each.question, ids[each.passage]) for each in examples if each.answers]
    questions = [{"id": f"q{at}", "question": text, "passage_id": id} for at, (text, id) in enumerate(pairs)]
    _rows(data / "questions.jsonl", questions)
    base = resolve(recipe.encoder.base, settings)
    found: dict[str, dict[str, Any]] = {}
    for name, folder in (("student", job.results["encoder"].folder / ENCODER), (base.name, base.directory)):
        own = replace(settings, encoder=str(folder), home=job.scratch)
        figures: Any = evaluate_retrieval(data, own, progress=job.progress, cancel=job.cancel)
        if "systems" not in figures:
            continue
        found[name] = {
            "MB": size_of(folder) / 1e6,
            "vectors, nDCG@10": _with_interval(figures["systems"]["vector"]),
            "ranking, nDCG@10": _with_interval(figures["systems"]["edge"]),
            "ms a question": figures["encode_ms_per_query"],
        }
    return found


def _with_interval(system: Mapping[str, Any]) -> dict[str, float]:
    low, high = system["intervals"]["ndcg_at_10"]
    return {"mean": system["ndcg_at_10"], "low": low, "high": high}


def _heads(job: Job, name: str, part: HeadPart, settings: Settings) -> dict[str, dict[str, Any]]:
    """The head, and beside it the one on words, whose reasons can be read."""
    assert part.test is not None
    labelled = read_labelled(part.test)
    parts = {
        "test": [(each.text, each.label) for each in labelled if each.label is not None],
        "oos_test": [(each.text, OUT_OF_SCOPE) for each in labelled if each.label is None],
    }
    if not parts["test"]:
        raise ConfigError(f"{part.test} has no text with a label", hint="give some of each label")
    folders = {part.kind: job.results[f"head-{name}"].folder / HEAD}
    if part.kind == "neural":
        folders["linear"] = job.scratch / f"{name}-linear"
        if not folders["linear"].exists():
            fit_head(read_labelled(part.examples), folders["linear"])

    def shared() -> Any:
        base = resolve(part.base, settings)
        return open_encoder(base.directory, name=base.name)

    found = {}
    for kind, folder in folders.items():
        head = IntentHead.open(folder, shared)
        figures = judge(head, parts) if parts["oos_test"] else _accuracy(head, parts["test"])
        found[kind] = {"MB": size_of(folder) / 1e6, **figures, **milliseconds(head, parts["test"][:100])}
    return found


def _accuracy(head: IntentHead, rows: Sequence[tuple[str, str]]) -> dict[str, float]:
    found = head.classify_all([text for text, _ in rows])
    return {"accuracy": sum(each.label == label for each, (_, label) in zip(found, rows, strict=True)) / len(rows)}


def _rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
