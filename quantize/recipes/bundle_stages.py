"""The last stages of a recipe: students and models of others as one bundle, calibrated as it is, signed, in place.

The bundle is put together once without calibrations, so that probabilities are fitted on the very files, prompts
and settings that a device will have. Knows nothing of how students are made or measured.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from edge_sdk.bundle.manifest import SCHEMA, check_licence
from edge_sdk.choices import RULE as OFFER
from edge_sdk.confidence.calibration import Calibration, Calibrations
from edge_sdk.confidence.setup import SIGNALS_HASH
from edge_sdk.config import Settings, load_settings
from edge_sdk.documents.chunk import chunk_document
from edge_sdk.edge import Edge
from edge_sdk.errors import CalibrationError, ConfigError
from edge_sdk.evidence import RULE
from edge_sdk.hub.models import InstalledModel, resolve
from edge_sdk.prompt import Reading
from edge_sdk.records import ParsedDocument, Section
from edge_sdk.route import Policy

from .. import pack
from ..asking import ask_all, read_all
from ..calibrate import Target, calibrate, check_enough, halves
from ..collection import fill_store
from ..training_data.example import read_examples
from .cache import input_digest
from .data_stages import CALIBRATION, HELD_OUT, TRAIN
from .decoder_stages import ADAPTER, DECODER, READER
from .ledger_examples import SOURCE as LEDGER
from .recipe import Recipe
from .stages import Job, Stage
from .student_stages import ENCODER, HEAD
from .teacher_stages import kept_passages

DRAFT, CALIBRATIONS, EVALUATION = "draft.edge", "calibrations", "evaluation.jsonl"
_QUESTIONS = 50  # of the mini evaluation set that goes with a bundle
_MAX_TOKENS = 256
"""Of an answer, as for `edge ask`."""


def bundle_stages(recipe: Recipe, settings: Settings, before: Sequence[str]) -> list[Stage]:
    """Stages that put together, calibrate, and pack what the stages `before` have made."""
    part = recipe.bundle
    assert part is not None
    check_licence(part.licence, f"{recipe.path.name}.bundle.licence")
    if part.out.suffix != ".edge":
        raise ConfigError(f"{recipe.path.name}.bundle.out is {part.out}", hint=f"name it {part.out.name}.edge")
    made = tuple(
        name for name in before if name.endswith("-export") or name == "encoder" or name.startswith("head-")
    )
    files = {role: model.path for role, model in _base_models(recipe, settings).items()}
    facts = {
        "name": recipe.name,
        **{name: value for name, value in asdict(part).items() if name not in ("out", "key")},
        "reading": None if recipe.decoder is None else asdict(recipe.decoder.reading),
        "schema": SCHEMA,
    }
    rules = {"sentences": RULE, "offer": OFFER, "signals": SIGNALS_HASH}  # calibrations hold for these alone
    return [
        Stage("assemble", 1, lambda job: _assemble(job, recipe, settings), facts, files, made),
        Stage("calibrate", 4, lambda job: calibrate_bundle(job, settings), rules, {}, ("curate", "assemble")),
        Stage(
            "pack",
            1,
            lambda job: _pack(job, recipe, settings),
            facts,
            files | ({} if part.key is None else {"key": part.key}),
            ("curate", *made, "calibrate", *(("evaluate",) if "evaluate" in before else ())),
        ),
    ]


def place_bundle(recipe: Recipe, packed: Path) -> bool:
    """Copy the packed bundle to where the recipe wants it; whether anything had to be done."""
    assert recipe.bundle is not None
    source, out = packed / recipe.bundle.out.name, recipe.bundle.out
    if out.is_file() and input_digest(out) == input_digest(source):
        return False
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, partial)
        partial.replace(out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}", hint="check bundle.out") from error
    finally:
        partial.unlink(missing_ok=True)
    return True


def _assemble(job: Job, recipe: Recipe, settings: Settings) -> Mapping[str, Any]:
    found = pack.build_bundle(_contents(job, recipe, settings), job.folder / DRAFT)
    return {"roles": list(found.inspection.manifest.roles()), "bytes": found.inspection.bytes}


def _pack(job: Job, recipe: Recipe, settings: Settings) -> Mapping[str, Any]:
    part = recipe.bundle
    assert part is not None
    more = [
        pack.Part("calibration", path, part.licence)
        for path in sorted((job.results["calibrate"].folder / CALIBRATIONS).glob("*.json"))
    ]
    questions = mini_evaluation(job)
    if questions:
        path = job.scratch / EVALUATION
        path.write_text("".join(json.dumps(row) + "\n" for row in questions), encoding="utf-8")
        more.append(pack.Part("evaluation", path, part.licence))
    figures = dict(job.results["evaluate"].figures) if "evaluate" in job.results else {}
    contents = _contents(job, recipe, settings)
    contents = replace(contents, parts=[*contents.parts, *more], figures=figures)
    found = pack.build_bundle(contents, job.folder / part.out.name, private_key=part.key)
    manifest = found.inspection.manifest
    return {
        "id": manifest.id,
        "bytes": found.inspection.bytes,
        "signature": str(found.inspection.signed),
        "roles": list(manifest.roles()),
    }


def mini_evaluation(job: Job) -> list[dict[str, Any]]:
    """Questions that go with the bundle; none that a user has asked."""
    held = read_examples(job.results["curate"].folder / HELD_OUT)
    shown = [each for each in held if each.answers and each.source != LEDGER][:_QUESTIONS]
    return [{"question": each.question, "answers": list(each.answers), "passage": each.passage} for each in shown]


# --- what goes in -----------------------------------------------------------------------------------


def _base_models(recipe: Recipe, settings: Settings) -> dict[str, InstalledModel]:
    """The models of others that are packed beside the students, by role."""
    part = recipe.bundle
    assert part is not None
    wanted: dict[str, str | None] = {"decoder": part.decoder, "encoder": part.encoder}
    if recipe.decoder is not None:
        wanted["decoder"] = None if recipe.decoder.method == "full" else recipe.decoder.base
    if recipe.encoder is not None:
        wanted["encoder"] = None
    found = {role: resolve(name, settings) for role, name in wanted.items() if name is not None}
    for role, model in found.items():
        if model.role != role:
            raise ConfigError(f"{recipe.path.name}: {model.name} is a {model.role}, not a {role}")
    return found


def _contents(job: Job, recipe: Recipe, settings: Settings) -> pack.Recipe:
    part = recipe.bundle
    assert part is not None
    parts, reading = [], Reading()
    for role, model in _base_models(recipe, settings).items():
        path = model.path if model.format == "gguf" else model.directory
        parts.append(pack.Part(role, path, model.spec.licence if model.spec else part.licence, model.name))
        if role == "decoder":
            reading = model.reading
    for stage, result in job.results.items():
        made = _made(stage, result.folder)
        if made is not None:
            role, path = made
            parts.append(pack.Part(role, path, part.licence, f"{recipe.name} {role.partition(':')[0]}"))
            if role == "decoder" and recipe.decoder is not None:
                reading = recipe.decoder.reading
    return pack.Recipe(
        name=recipe.name,
        version=part.version,
        parts=parts,
        created=pack.build_date(part.created, os.environ),
        context=part.context,
        reading=reading,
    )


def _made(stage: str, folder: Path) -> tuple[str, Path] | None:
    """The role and the place of what a stage has made."""
    if stage == "reader-export":
        return "reader", folder / READER
    if stage == "decoder-export":
        adapter = folder / ADAPTER
        return ("adapter:default", adapter) if adapter.is_file() else ("decoder", folder / DECODER)
    if stage == "encoder":
        return "encoder", folder / ENCODER
    if stage.startswith("head-"):
        return f"head:{stage.removeprefix('head-')}", folder / HEAD
    return None


# --- probabilities ----------------------------------------------------------------------------------


def calibrate_bundle(job: Job, settings: Settings) -> Mapping[str, Any]:
    """Ask the assembled bundle what it has not learned from; without enough questions nothing is claimed."""
    out = job.folder / CALIBRATIONS
    out.mkdir()
    asked = [each for each in read_examples(job.results["curate"].folder / CALIBRATION) if each.answers]
    rows = list({each.question.casefold(): (each.question, each.answers, "") for each in asked}.values())
    bundle = job.results["assemble"].folder / DRAFT
    own = load_settings({"home": job.scratch / "home", "store": job.scratch / "store.db", "bundle": bundle,
                         "offline": True, "threads": settings.threads, "prefix_cache": 0}, {})  # fmt: skip
    try:
        check_enough(rows)
        with Edge.open(settings=own, policy=Policy(when_unsure="local")) as edge:
            fill_store(edge.store, edge.encoder, _documents(job), job.progress, job.cancel)
            made = _calibrations(job, edge, rows)
    except CalibrationError as error:
        return {"calibrations": 0, "why": error.message}
    for each in made:
        Calibrations(out).save(each)
    return {"calibrations": len(made), "questions": len(rows)}


def _calibrations(job: Job, edge: Edge, rows: Sequence[tuple[str, tuple[str, ...], str]]) -> list[Calibration]:
    """Of the decoder's answers and the reader's, as far as the bundle has them; each then has half of the risk."""
    has_decoder = "decoder" in job.results["assemble"].figures["roles"]
    target = halves(Target()) if has_decoder and edge.extractor is not None else Target()
    found = []
    if has_decoder:
        kept = job.scratch / "asked.jsonl"
        asked = ask_all(edge, rows, out=kept, max_tokens=_MAX_TOKENS, progress=job.progress, cancel=job.cancel)
        if job.cancel.is_set():
            return []
        found.append(calibrate(asked, edge.setup(), target=target))
    setup = edge.reader_setup()
    if setup is not None:
        read = read_all(edge, rows, progress=job.progress, cancel=job.cancel)
        if not job.cancel.is_set():
            found.append(calibrate(read, setup, target=target))
    return found


def _documents(job: Job) -> list[ParsedDocument]:
    """All passages that there are, each as a document: what is asked is to be found among them."""
    folder = job.results["curate"].folder
    texts = dict.fromkeys(each.text for each in kept_passages(job.results))
    for name in (TRAIN, CALIBRATION, HELD_OUT):
        texts |= dict.fromkeys(each.passage for each in read_examples(folder / name))
    documents = []
    for number, text in enumerate(texts):
        digest = sha256(text.encode("utf-8", "replace")).hexdigest()
        documents.append(
            ParsedDocument(f"passage {number}", "", text, (Section(0, len(text)),), digest, "text/plain")
        )
    return [document for document in documents if chunk_document(document)]
