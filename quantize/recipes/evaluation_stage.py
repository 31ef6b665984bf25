"""The stage that measures: every student beside its baseline and the teacher, the cascade of all, and a report.

Answers are kept as they come, so an interrupted run goes on. What is measured on had no part in training: the
examples that were held out, or a set of the user's own. Knows nothing of how figures are worked out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from edge_sdk.choices import RULE as OFFER
from edge_sdk.config import Settings
from edge_sdk.encoders.encoders import open_encoder
from edge_sdk.engines.engine_gguf import GgufEngine
from edge_sdk.errors import CalibrationError
from edge_sdk.evidence import RULE
from edge_sdk.hub.models import InstalledModel, resolve
from edge_sdk.readers.reader import Reader

from ..metrics import contains
from ..teachers.kept import Kept
from ..training_data.data_files import read_data
from ..training_data.example import Example, read_examples
from . import report, smallest
from .cascade import Tier, evaluate_cascade
from .data_stages import HELD_OUT
from .decoder_stages import ADAPTER, DECODER, READER, begun, reader_beside
from .evaluation import (
    LOWER_IS_BETTER,
    Given,
    System,
    Task,
    answer_all,
    compare,
    measure,
    probabilities,
    rights,
    tasks_of,
)
from .opening import open_teacher, teacher_facts, teacher_name
from .other_figures import other_figures
from .recipe import Recipe
from .stages import Job, Stage
from .student_stages import ENCODER
from .systems import DecoderSystem, Evidence, ReaderSystem, SentenceRule, TeacherSystem, size_of
from .teacher_stages import REPLIES, KeptTeacher

DOCUMENT, PAGE, TEXT = "evaluation.json", "report.html", "report.md"
_CONTEXT = 4096
_COMPARED = ("token_f1", "contains")


def evaluation_stage(recipe: Recipe, settings: Settings, before: Sequence[str]) -> Stage:
    """Measures what the stages `before` have made."""
    made = [name for name in before if name.endswith("-export") or name == "encoder" or name.startswith("head-")]
    files = {} if recipe.evaluate.data is None else {"data": recipe.evaluate.data}
    files |= {f"test {name}": part.test for name, part in recipe.head.items() if part.test is not None}
    facts = {**asdict(recipe.evaluate), "data": None, "seed": recipe.seed}
    if recipe.decoder is not None:
        files["decoder"] = resolve(recipe.decoder.base, settings).path
        facts["reading"] = {**asdict(recipe.decoder.reading), "rule": RULE}
        if recipe.decoder.extractive:
            facts["offer"] = OFFER
            if recipe.reader is None:
                files |= begun(recipe.decoder, settings).reader_files
        if recipe.decoder.evidence_tokens:
            files["encoder"] = resolve(recipe.data.encoder, settings).path
    if recipe.teacher is not None and recipe.evaluate.teacher:
        facts["answers"] = teacher_facts(recipe.teacher, settings)
    return Stage("evaluate", 3, lambda job: _evaluate(job, recipe, settings), facts, files, ("curate", *made))


def _evaluate(job: Job, recipe: Recipe, settings: Settings) -> Mapping[str, Any]:
    examples = _held_out(job, recipe)
    tasks = tasks_of(
        examples, distractors=recipe.evaluate.distractors, most=recipe.evaluate.questions, seed=recipe.seed
    )
    given: dict[str, list[Given]] = {}
    systems: dict[str, dict[str, Any]] = {}
    for role, opened in _systems(job, recipe, settings):
        with opened as system:
            answers = answer_all(
                system,
                tasks,
                kept=job.scratch / f"{role}-{len(systems)}.jsonl",
                progress=job.progress,
                cancel=job.cancel,
            )
            if answers is None:
                return {}
            given[system.name] = answers
            systems[system.name] = {
                "role": role,
                "megabytes": None if system.bytes is None else system.bytes / 1e6,
                "figures": measure(tasks, answers),
            }
            if isinstance(system, TeacherSystem):
                job.cost += system.cost
    others = dict(other_figures(job, recipe, settings, examples))
    document = evaluation_document(recipe, tasks, systems, given) | {"others": others}
    rows = {name: [asdict(each) for each in answers] for name, answers in given.items()}
    _write(job.folder / DOCUMENT, document)
    _write(job.folder / "answers.json", {"tasks": [asdict(task) for task in tasks], "given": rows})
    (job.folder / TEXT).write_text(report.markdown(document), encoding="utf-8")
    (job.folder / PAGE).write_text(report.page(document), encoding="utf-8")
    return {"smallest": document["smallest"], "figures": _means(systems), **({"others": others} if others else {})}


def _held_out(job: Job, recipe: Recipe) -> list[Example]:
    if recipe.evaluate.data is None:
        return list(read_examples(job.results["curate"].folder / HELD_OUT))
    return list(read_data(recipe.evaluate.data))


# --- who answers ------------------------------------------------------------------------------------


def _systems(job: Job, recipe: Recipe, settings: Settings) -> Iterator[tuple[str, Any]]:
    """The role of each system and a context in which it is open: one at a time, as devices have little memory."""
    if recipe.reader is not None:
        yield "student", _reader(job, settings)
        yield "baseline", _rule()
    if recipe.decoder is not None:
        base = resolve(recipe.decoder.base, settings)
        evidence = _evidence(job, recipe, settings)
        made = job.results["decoder-export"].folder
        held = recipe.decoder.extractive
        reader = reader_beside(job, recipe, settings)
        beside = [reader] if evidence and reader else []
        yield "student", _decoder(base, made, "decoder", settings, evidence, extractive=held, beside=beside)
        yield "baseline", _decoder(base, None, f"{base.name}, untrained", settings, evidence, beside=beside)
    if recipe.teacher is not None and recipe.evaluate.teacher and (recipe.reader or recipe.decoder):
        yield "teacher", _teacher(recipe, settings)


@contextmanager
def _reader(job: Job, settings: Settings) -> Iterator[System]:
    folder = job.results["reader-export"].folder / READER
    yield ReaderSystem(Reader.open(folder, threads=settings.threads), folder, "reader")


@contextmanager
def _rule() -> Iterator[System]:
    yield SentenceRule()


def _evidence(job: Job, recipe: Recipe, settings: Settings) -> Evidence | None:
    """What chooses sentences for the decoder and its baseline, where it was taught with such: the models made here,
    as far as there are any."""
    if recipe.decoder is None or not (tokens := recipe.decoder.evidence_tokens):
        return None
    encoder, reader = job.results.get("encoder"), reader_beside(job, recipe, settings)
    vectors = encoder.folder / ENCODER if encoder is not None else resolve(recipe.data.encoder, settings).directory
    return Evidence(
        tokens,
        open_encoder(vectors),
        None if reader is None else Reader.open(reader, threads=settings.threads),
    )


@contextmanager
def _decoder(
    base: InstalledModel,
    made: Path | None,
    name: str,
    settings: Settings,
    evidence: Evidence | None,
    *,
    extractive: bool = False,
    beside: Sequence[Path] = (),
) -> Iterator[System]:
    """The base with the adapter in `made`, the file there in its place, or the base alone; `beside` is what else a
    device needs for it, but for the encoder that finds the passages."""
    adapter = made / ADAPTER if made is not None and (made / ADAPTER).is_file() else None
    path = made / DECODER if made is not None and adapter is None else base.path
    engine = GgufEngine.open(path, name=name, context=_CONTEXT, threads=settings.threads, adapter=adapter)
    try:
        numbered = made is not None or base.reading.numbered
        files = [path, *([adapter] if adapter else []), *beside]
        yield DecoderSystem(engine, files, name, numbered=numbered, evidence=evidence, extractive=extractive)
    finally:
        engine.close()


@contextmanager
def _teacher(recipe: Recipe, settings: Settings) -> Iterator[System]:
    assert recipe.teacher is not None
    local = recipe.teacher.remote is None
    size = size_of(resolve(str(recipe.teacher.model), settings).path) if local else None
    with ExitStack() as stack:
        kept = stack.enter_context(Kept(recipe.work / REPLIES))
        opened = stack.enter_context(open_teacher(recipe, settings, kept))
        yield TeacherSystem(KeptTeacher(opened, kept), f"{teacher_name(recipe.teacher)} (teacher)", size)


# --- what it comes to -------------------------------------------------------------------------------


def evaluation_document(
    recipe: Recipe, tasks: Sequence[Task], systems: Mapping[str, Any], given: Mapping[str, Sequence[Given]]
) -> dict[str, Any]:
    """The JSON document: figures, students beside their baselines, the smallest that passes, the cascade.

    `systems` has each one's role, megabytes and figures (`measure`), `given` its answers to `tasks`.
    """
    candidates = [_candidate(name, system) for name, system in systems.items() if system["megabytes"] is not None]
    verdicts = [smallest.judge(each, recipe.evaluate.floor) for each in candidates]
    chosen = smallest.smallest(verdicts) if recipe.evaluate.floor else None
    sure = {name: probabilities(tasks, answers) for name, answers in given.items()}
    return {
        "name": recipe.name,
        "tasks": {
            "present": sum(task.gold is not None for task in tasks),
            "absent": sum(task.gold is None for task in tasks),
            "passages": recipe.evaluate.distractors + 1,
        },
        "systems": systems,
        "comparisons": list(_comparisons(tasks, systems, given)),
        "floor": dict(recipe.evaluate.floor),
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "smallest": chosen.name if chosen is not None else None,
        "reliability": {
            name: {"probability": values, "right": rights(tasks, given[name])}
            for name, values in sure.items()
            if values is not None and systems[name]["role"] == "student"
        },
        "cascade": _cascade(tasks, systems, given),
    }


def _candidate(name: str, system: Mapping[str, Any]) -> smallest.Candidate:
    figures = system["figures"]
    means = {each: value["mean"] for each, value in figures.items()} | {"megabytes": system["megabytes"]}
    worst = {each: value["high" if each in LOWER_IS_BETTER else "low"] for each, value in figures.items()}
    return smallest.Candidate(name, round(system["megabytes"] * 1e6), means, worst)


def _comparisons(
    tasks: Sequence[Task], systems: Mapping[str, Any], given: Mapping[str, Sequence[Given]]
) -> Iterator[dict[str, Any]]:
    """Each student beside the system that follows it, which is its baseline."""
    for name, other in pairwise(systems):
        if systems[name]["role"] == "student" and systems[other]["role"] == "baseline":
            gained = {metric: compare(metric, tasks, given[name], given[other]) for metric in _COMPARED}
            yield {"name": name, "baseline": other, "gained": gained}


def _cascade(
    tasks: Sequence[Task], systems: Mapping[str, Any], given: Mapping[str, Sequence[Given]]
) -> dict[str, Any] | None:
    """The students in the order of their size with the teacher as the remote; None where that cannot be measured.

    Over the tasks with an answer; an answer is worth 1 where it contains an accepted one.
    """
    at = [number for number, task in enumerate(tasks) if task.gold is not None]

    def quality(name: str) -> list[float]:
        return [contains(given[name][each].text, tasks[each].answers) for each in at]

    students = sorted(
        (name for name in systems if systems[name]["role"] == "student"),
        key=lambda each: systems[each]["megabytes"],
    )
    remote = next((name for name in systems if systems[name]["role"] == "teacher"), None)
    if remote is None or not students or not at:
        return None
    tiers = [_tier(name, quality(name), [given[name][each] for each in at]) for name in students]
    try:
        return evaluate_cascade(tiers, quality(remote))
    except CalibrationError:  # nearly all answers are right or wrong: there is nothing to route by
        return None


def _tier(name: str, quality: Sequence[float], given: Sequence[Given]) -> Tier:
    names = sorted({signal for each in given for signal in each.signals})
    signals = {signal: [each.signals.get(signal, float("nan")) for each in given] for signal in names}
    return Tier(name, quality, signals, [each.text for each in given], [each.milliseconds for each in given])


def _means(systems: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {
        name: {each: value["mean"] for each, value in system["figures"].items()}
        | ({} if system["megabytes"] is None else {"megabytes": system["megabytes"]})
        for name, system in systems.items()
    }


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
