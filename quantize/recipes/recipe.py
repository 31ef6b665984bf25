"""What a recipe says: from which documents and which teacher which students are made, and what becomes of them.

A TOML file, read strictly (`tables`). Paths are relative to its folder. A student is made where its table is there;
`examples/distill.toml` shows every table. Knows nothing of how any of it is done.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_sdk.errors import ConfigError
from edge_sdk.fallback.budget import Budget, Prices
from edge_sdk.prompt import Reading

from .tables import between, one_of, read_toml, table

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


@dataclass(frozen=True)
class TeacherPart:
    """Who writes the questions and answers: a local GGUF `model`, or `remote_model` at the server `remote`."""

    model: str | None = None  # a catalog name or a .gguf file
    at_once: int | None = between(1, 256, default=None)  # sequences (else 48), or requests under way (else 8)
    threads: int | None = between(1, 1024, default=None)
    minutes: float | None = between(0.0, 1e6, default=None)  # after which no more passages are asked about
    remote: str | None = None
    remote_model: str | None = None
    key_file: Path | None = None
    prices: str | None = None  # "IN/OUT", money for a million tokens
    budget: str | None = None  # as "5.00/total 1.00/day"
    requests_per_minute: int | None = between(1, 1_000_000, default=None)
    tokens_per_minute: int | None = between(1, 1_000_000_000, default=None)


@dataclass(frozen=True)
class DataPart:
    """What the examples are made from. Shares are of passages, so that a passage's questions stay together."""

    documents: tuple[Path, ...] = ()  # files and folders, as `edge add` takes them; .jsonl: rows {text, title}
    examples: tuple[Path, ...] = ()  # question sets that have their answers (JSONL)
    unlabelled: tuple[Path, ...] = ()  # questions for the teacher to answer from the documents: rows {question}
    encoder: str = "minilm-l6-int8"  # finds near passages that do not answer, and questions that differ
    questions: int = between(1, 8, default=4)  # a passage, at most
    passages: int | None = between(1, 10_000_000, default=None)  # of all documents, at most
    shortest: int = between(0, 10_000, default=0)  # characters of a passage that is asked about
    unanswerable: float = between(0.0, 1.0, default=1 / 3)  # of the answered ones asked of another passage, too
    held_out: float = between(0.02, 0.5, default=0.2)  # share that no student ever sees, for evaluation
    calibration: float = between(0.0, 0.5, default=0.1)  # share that fits probabilities and nothing else


@dataclass(frozen=True)
class CuratePart:
    """What is good enough to learn from."""

    languages: tuple[str, ...] = ()  # codes such as "en"; none: whatever it is
    likeness: float = between(0.3, 1.0, default=0.7)  # from which two passages, or questions about one, are one
    groundedness: float = between(0.0, 1.0, default=1.0)  # share of an answer's words that its passage must hold
    quality: float | None = between(-100.0, 100.0, default=None)  # nats that a passage must add to its question
    judge: str = "smollm2-135m-instruct"  # who tells that
    keep: int | None = between(1, 10_000_000, default=None)  # examples at most, chosen to differ
    away_from: tuple[Path, ...] = ()  # evaluation sets that nothing of may be learned from


@dataclass(frozen=True)
class ReaderPart:
    """An encoder that learns to point at answers."""

    base: str = "minilm-l6"  # a catalog name or a folder: a BERT in float32
    start: Path | None = None  # in its place a reader, as a folder or in a bundle, that learns more
    epochs: int = between(1, 1000, default=3)
    learning_rate: float = between(1e-7, 1.0, default=1e-4)
    tokens: int = between(64, 1 << 20, default=4096)  # of a step, padding counted
    cloze: int = between(0, 8, default=1)  # questions of each passage that are made without a teacher, as practice
    form: str = one_of("int8", "float32")  # of the weights that are shipped


@dataclass(frozen=True)
class DecoderPart:
    """A small language model that learns to answer from passages as the teacher does."""

    base: str = "smollm2-135m-instruct"  # a catalog name or a .gguf file
    start: Path | None = None  # a bundle for it, whose adapter learns more and whose reader it may choose beside
    method: str = one_of("adapter", "full")  # a LoRA adapter beside the base, or a file of its own
    rank: int = between(1, 256, default=16)
    epochs: int = between(1, 1000, default=2)
    learning_rate: float | None = between(1e-7, 1.0, default=None)  # 4e-4 for an adapter, 2e-5 for all weights
    tokens: int = between(64, 1 << 20, default=4096)  # of a step, padding counted
    prompt_tokens: int = between(64, 1 << 16, default=1024)  # of the longest prompt learned from
    evidence_tokens: int = between(0, 1 << 16, default=0)  # of sentences chosen from its passages; 0: all of them
    extractive: bool = False  # whether it learns to choose among a reader's words, where there is a reader
    confidence: float = between(0.0, 1.0, default=0.0)  # share of steps that teach to be sure only when right
    quantize: str | None = None  # type of a full student's file, trained on its grid; none: the base's precision

    @property
    def reading(self) -> Reading:
        """How it is taught to read documents."""
        return Reading(self.prompt_tokens, True, self.evidence_tokens, self.extractive)


@dataclass(frozen=True)
class EncoderPart:
    """A static encoder, fitted to the documents."""

    base: str = "minilm-l6"
    dimension: int | None = between(1, 4096, default=None)


@dataclass(frozen=True)
class HeadPart:
    """A classifier of short texts, from rows {text, label}."""

    examples: Path
    test: Path | None = None  # rows that it is measured on
    kind: str = one_of("neural", "linear")
    base: str = "minilm-l6-int8"  # encoder of the neural one


@dataclass(frozen=True)
class EvaluatePart:
    """What is measured. `floor` has what a student must reach, by the names of the report's columns."""

    data: Path | None = None  # passages.jsonl and questions.jsonl, in place of the held-out examples
    questions: int = between(1, 100_000, default=500)
    distractors: int = between(0, 20, default=2)
    teacher: bool = True  # whether it answers the same questions
    floor: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BundlePart:
    """What is packed: the students, and models of others beside them. Without a `key` it is not signed."""

    out: Path
    version: str = "1.0"
    licence: str = "LicenseRef-own"  # of what is made here; models of the catalog have their own
    key: Path | None = None
    decoder: str | None = None  # where none is trained: without one, `edge ask` takes what the device has
    encoder: str | None = "minilm-l6-int8"
    created: str | None = None
    context: int = between(64, 1 << 20, default=4096)


@dataclass(frozen=True)
class ScalePart:
    """Where labelling and encoding run: here, or on a Ray cluster, `shard` requests or texts at a time."""

    ray: str | None = None  # "local", "auto", or the address of a cluster
    shard: int = between(1, 1_000_000, default=32)


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. `path` is where it stands."""

    name: str
    path: Path
    work: Path
    teacher: TeacherPart | None = None
    data: DataPart = DataPart()
    curate: CuratePart = CuratePart()
    reader: ReaderPart | None = None
    decoder: DecoderPart | None = None
    encoder: EncoderPart | None = None
    head: Mapping[str, HeadPart] = field(default_factory=dict)
    evaluate: EvaluatePart = EvaluatePart()
    bundle: BundlePart | None = None
    scale: ScalePart = ScalePart()
    seed: int = between(0, 2**31 - 1, default=0)


def read_recipe(path: Path) -> Recipe:
    """The recipe of a file. Raises `ConfigError` naming the key and its value."""
    values = read_toml(path)
    if "path" in values:
        raise ConfigError(f"{path.name} has an unknown key path")
    recipe = table(Recipe, {"work": "work", **values, "path": path.name}, path.name, path.parent)
    _check(recipe)
    return recipe


def _check(it: Recipe) -> None:
    """What must hold between keys."""
    where = it.path.name
    if not _NAME.fullmatch(it.name):
        raise ConfigError(f"{where}.name is {it.name[:60]!r}", hint="use small letters, digits, dots and dashes")
    for name in it.head:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{where}.head has the name {name[:60]!r}", hint="use small letters and digits")
    if it.teacher is not None:
        _check_teacher(it.teacher, f"{where}.teacher")
    if it.decoder is not None and it.decoder.extractive and not it.decoder.evidence_tokens:
        hint = "a reader finds its words, so let it choose sentences, too: evidence_tokens = 64"
        raise ConfigError(f"{where}.decoder is extractive but has no evidence_tokens", hint=hint)
    if it.data.unlabelled and not it.data.documents:
        raise ConfigError(f"{where} has questions to answer but no documents", hint="name them in data.documents")
    if it.data.documents and it.teacher is None:
        raise ConfigError(f"{where} has documents but no teacher to ask about them", hint="add [teacher]")
    for made in (it.work, *([it.bundle.out] if it.bundle else [])):
        if inside := [path for path in it.data.documents if made.resolve().is_relative_to(path.resolve())]:
            raise ConfigError(
                f"{where} would read what it writes: {made} is in {inside[0]}", hint="name another place for one"
            )
    if it.decoder is not None and it.decoder.start is not None and it.decoder.method != "adapter":
        hint = 'leave start out, or use method = "adapter"'
        raise ConfigError(f"{where}.decoder starts from an adapter but trains all weights", hint=hint)
    if it.decoder and it.decoder.extractive and it.decoder.start and it.bundle and not it.reader:
        hint = "add [reader], which may start from the same, or leave [bundle] out"
        raise ConfigError(f"{where}.decoder chooses beside a reader that [bundle] would not hold", hint=hint)
    starts = [part.start.resolve() for part in (it.reader, it.decoder) if part and part.start]
    if it.bundle and it.bundle.out.resolve() in starts:
        hint = "name another place for bundle.out"
        raise ConfigError(f"{where} would start from what it writes: {it.bundle.out}", hint=hint)
    if it.data.held_out + it.data.calibration >= 1:
        raise ConfigError(f"{where}.data leaves nothing to learn from", hint="lower held_out or calibration")
    if not (it.reader or it.decoder or it.encoder or it.head):
        raise ConfigError(f"{where} makes nothing", hint="add [reader], [decoder], [encoder] or [head.NAME]")


def _check_teacher(it: TeacherPart, where: str) -> None:
    if (it.model is None) == (it.remote is None):
        raise ConfigError(f"{where} needs either a model or a remote", hint="give one of the two")
    if it.remote is not None and it.remote_model is None:
        raise ConfigError(f"{where} has a remote but no remote_model", hint="name the model that it is asked for")
    if it.prices is not None:
        Prices.parse(it.prices)
    if it.budget is not None and Budget.parse(it.budget).needs_prices and it.prices is None:
        raise ConfigError(f"{where} has a budget but no prices", hint='add prices = "IN/OUT" for a million tokens')
