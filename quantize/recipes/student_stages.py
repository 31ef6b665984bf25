"""The stages that make students: each is trained, then exported in the form that devices open.

Training needs torch, which is loaded when a stage runs. Knows nothing of how students are trained or judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sdk.bundle.cache import open_bundle
from edge_sdk.bundle.manifest import MANIFEST
from edge_sdk.config import Settings
from edge_sdk.encoders.encoders import open_encoder
from edge_sdk.errors import ConfigError
from edge_sdk.hub.models import InstalledModel, resolve
from edge_sdk.model_files.onnx_session import find_model
from edge_sdk.readers.description import FILE, Description
from edge_sdk.readers.windows import Limits

from ..training_data.cloze import cloze_examples
from ..training_data.example import Example, read_examples
from ..training_data.passages import SourcePassage
from .data_stages import CALIBRATION, HELD_OUT, TRAIN
from .decoder_stages import READER, decoder_stages, import_torch
from .evaluation import tasks_of
from .recipe import EncoderPart, HeadPart, ReaderPart, Recipe
from .stages import Job, Stage
from .teacher_stages import kept_passages

if TYPE_CHECKING:
    from ..students.reader_model import ReaderModel

ENCODER, HEAD = "encoder", "head"
"""Folders in the results of the stages `encoder` and `head-NAME`."""
_WEIGHTS = "weights.pt"
_SAMPLES = 32  # questions on which an export is run beside what it was made from


def student_stages(recipe: Recipe, settings: Settings) -> list[Stage]:
    """A stage or two for each student of the recipe."""
    stages = []
    if recipe.reader is not None:
        stages += _reader_stages(recipe, recipe.reader, settings)
    if recipe.decoder is not None:
        stages += decoder_stages(recipe, recipe.decoder, _gguf(recipe.decoder.base, settings), settings)
    if recipe.encoder is not None:
        stages.append(_encoder_stage(recipe, recipe.encoder, resolve(recipe.encoder.base, settings)))
    stages += [_head_stage(recipe, name, part, settings) for name, part in sorted(recipe.head.items())]
    return stages


# --- the reader -------------------------------------------------------------------------------------


def _reader_stages(recipe: Recipe, part: ReaderPart, settings: Settings) -> list[Stage]:
    base = _reader_base(part, settings)
    learned = {name: value for name, value in asdict(part).items() if name not in ("base", "start", "form")}
    files = {"base": find_model(base), "tokenizer": base / "tokenizer.json"}
    if part.start is not None:
        learned["goes on"] = True
        files["description"] = base / FILE
    return [
        Stage(
            "reader",
            2,
            lambda job: _train_reader(job, part, base, recipe.seed, settings.threads),
            learned | {"seed": recipe.seed},
            files,
            ("curate", *(("passages",) if recipe.data.documents and part.cloze else ())),
        ),
        Stage(
            "reader-export",
            2,
            lambda job: _export_reader(job, part, base),
            {"form": part.form, "distractors": recipe.evaluate.distractors},
            files,
            ("reader", "curate"),
        ),
    ]


def _reader_base(part: ReaderPart, settings: Settings) -> Path:
    """The folder of the encoder, or of the reader that learns more."""
    if part.start is None:
        return resolve(part.base, settings).directory
    if part.start.is_dir() and not (part.start / MANIFEST).is_file():
        return part.start
    shipped = open_bundle(part.start, settings.home).directory("reader")
    if shipped is None:
        raise ConfigError(f"{part.start} holds no reader to start from", hint="see `edge bundle inspect`")
    return shipped


def _opened(part: ReaderPart, base: Path) -> ReaderModel:
    from ..students.reader_model import ReaderModel

    return ReaderModel.open(base) if part.start is None else ReaderModel.go_on(base)


def _limits(part: ReaderPart, base: Path) -> Limits:
    return Limits() if part.start is None else Description.read(base).limits


def _train_reader(job: Job, part: ReaderPart, base: Path, seed: int, threads: int | None) -> Mapping[str, Any]:
    torch = import_torch(threads)
    from edge_sdk.model_files.tokenizer import Tokenizer
    from edge_sdk.readers.windows import Windows

    from ..students.reader_data import ReaderData
    from ..students.reader_training import ReaderTraining, train_reader

    torch.manual_seed(seed)  # the head's first weights
    model = _opened(part, base)
    windows = Windows(Tokenizer.open(base / "tokenizer.json", literal=True), _limits(part, base))
    examples = _examples(job, TRAIN)
    practice = list(cloze_examples(_practice_passages(job, examples), most=part.cloze, seed=seed))
    data = ReaderData([*examples, *practice], windows)
    training = ReaderTraining(epochs=part.epochs, tokens=part.tokens, learning_rate=part.learning_rate, seed=seed)
    trained = train_reader(
        model, data, training, checkpoint=job.scratch / "checkpoint.pt", progress=job.progress, cancel=job.cancel
    )
    torch.save(model.state_dict(), job.folder / _WEIGHTS)
    return asdict(trained) | {"examples": len(data.items), "cloze": len(practice)}


def _practice_passages(job: Job, examples: Sequence[Example]) -> list[SourcePassage]:
    """What may be learned from: the passages of the examples, and of the documents those that judge nothing."""
    judging = {each.passage for name in (CALIBRATION, HELD_OUT) for each in _examples(job, name)}
    found = {each.text: each for each in kept_passages(job.results) if each.text not in judging}
    for example in examples:
        found.setdefault(example.passage, SourcePassage(example.passage))
    return list(found.values())


def _export_reader(job: Job, part: ReaderPart, base: Path) -> Mapping[str, Any]:
    """The folder of a reader, and in its description what a probability is, where there are enough questions."""
    torch = import_torch()
    from edge_sdk.readers.reader import Reader

    from ..students.reader_calibration import Case, fit_description
    from ..students.reader_export import export_reader, parity_row

    model = _opened(part, base)
    model.load_state_dict(torch.load(job.results["reader"].folder / _WEIGHTS, weights_only=True))
    fitting = _examples(job, CALIBRATION)
    out, trained = job.folder / READER, dict(job.results["reader"].figures)
    samples = [(each.question, each.passage) for each in fitting[:_SAMPLES]]
    told = {name: trained[name] for name in ("examples", "steps", "loss")}
    description = Description(_limits(part, base), trained=told)
    tokenizer = base / "tokenizer.json"
    parity = export_reader(model.eval(), tokenizer, out, description, form=part.form, samples=samples)
    cases = [
        Case(each.question, each.passages, each.answers) for each in tasks_of(fitting, distractors=2, absent=1.0)
    ]
    probability = "fitted"
    try:
        fit_description(Reader.open(out, threads=1), cases).write(out)
    except ConfigError as error:
        probability = f"none: {error.message}"
    return {"parity": parity_row(parity), "probability": probability, "bytes": sum(_sizes(out))}


# --- the encoder and heads --------------------------------------------------------------------------


def _encoder_stage(recipe: Recipe, part: EncoderPart, base: InstalledModel) -> Stage:
    """Fitted to the documents that will be searched, or where there are none, to the passages of the examples."""
    return Stage(
        "encoder",
        1,
        lambda job: _distil_encoder(job, part, base),
        {"dimension": part.dimension},
        {"base": base.path},
        ("passages",) if recipe.data.documents else ("curate",),
    )


def _distil_encoder(job: Job, part: EncoderPart, base: InstalledModel) -> Mapping[str, Any]:
    from ..static_encoder import distil_static

    texts: dict[str, list[str]] = {}
    for passage in kept_passages(job.results):
        texts.setdefault(passage.title, []).append(passage.text)
    if "curate" in job.results:
        texts[""] = list(dict.fromkeys(each.passage for each in _examples(job, TRAIN)))
    folder = job.scratch / "texts"
    folder.mkdir(exist_ok=True)
    for number, each in enumerate(texts.values()):
        (folder / f"{number}.txt").write_text("\n\n".join(each), encoding="utf-8")
    return distil_static(
        base.directory,
        job.folder / ENCODER,
        name=base.name,
        dimension=part.dimension,
        texts=[folder],
        progress=job.progress,
    )


def _head_stage(recipe: Recipe, name: str, part: HeadPart, settings: Settings) -> Stage:
    base = resolve(part.base, settings) if part.kind == "neural" else None
    files = {"examples": part.examples} | ({} if base is None else {"base": base.path})
    shared = base is not None and recipe.encoder is None and recipe.bundle is not None
    carry = not (shared and recipe.bundle is not None and recipe.bundle.encoder == part.base)
    return Stage(
        f"head-{name}",
        1,
        lambda job: _fit_head(job, part, base, carry, recipe.seed),
        {"kind": part.kind, "carry": carry, "seed": recipe.seed},
        files,
    )


def _fit_head(job: Job, part: HeadPart, base: InstalledModel | None, carry: bool, seed: int) -> Mapping[str, Any]:
    """With the encoder that it reads, unless that is the bundle's own."""
    from ..students.heads import fit_head, read_labelled

    encoder = None if base is None else open_encoder(base.directory, name=base.name)
    return fit_head(
        read_labelled(part.examples),
        job.folder / HEAD,
        encoder=encoder,
        carry=base.directory if base is not None and carry else None,
        seed=seed,
        progress=job.progress,
    )


def _examples(job: Job, name: str) -> list[Example]:
    return list(read_examples(job.results["curate"].folder / name))


def _gguf(name: str, settings: Settings) -> InstalledModel:
    model = resolve(name, settings)
    if model.format != "gguf":
        raise ConfigError(f"{model.name} cannot be trained: it is no GGUF file", hint="see `edge models`")
    return model


def _sizes(folder: Path) -> Sequence[int]:
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
