"""Opens what a recipe works with: its teacher, and the encoder of its data, here or on a Ray cluster.

Knows nothing of what they are asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_sdk.config import Settings
from edge_sdk.encoders.embed import Encoder
from edge_sdk.encoders.encoders import open_encoder
from edge_sdk.errors import ModelError
from edge_sdk.fallback.budget import Budget, Prices
from edge_sdk.fallback.endpoint import read_key
from edge_sdk.hub.models import InstalledModel, resolve

from ..teachers.endpoint_teacher import EndpointTeacher
from ..teachers.gguf_teacher import GgufTeacher
from ..teachers.kept import Kept
from ..teachers.rate import Rate
from ..teachers.teacher import Teacher
from .cache import input_digest
from .recipe import Recipe, TeacherPart
from .shards import OnRay, ShardedEncoder, ShardedTeacher

_SEQUENCES = 48  # of a local teacher: below 16 a batch gains nothing on two cores, above 48 little
_REQUESTS = 8  # under way at a server


@dataclass(frozen=True)
class OpenGguf:
    """Opens a file as a teacher wherever it is called."""

    path: Path
    sequences: int
    threads: int | None
    sha256: str | None

    def __call__(self) -> GgufTeacher:
        return GgufTeacher.open(self.path, sequences=self.sequences, threads=self.threads, sha256=self.sha256)


@contextmanager
def open_teacher(recipe: Recipe, settings: Settings, kept: Kept) -> Iterator[Teacher]:
    """The teacher, closed at the end. Raises `EdgeError` where it cannot be opened."""
    part = recipe.teacher
    assert part is not None
    if part.remote is not None:
        yield _endpoint(part, settings, kept)
        return
    model = _local(part, settings)
    opening = OpenGguf(model.path, part.at_once or _SEQUENCES, part.threads or settings.threads, model.sha256)
    with opening() as teacher:
        if recipe.scale.ray is None:
            yield teacher
            return
        fingerprint = teacher.fingerprint
    with OnRay(recipe.scale.ray, processors=part.threads or 1) as runner:
        yield ShardedTeacher(opening, fingerprint, runner, recipe.scale.shard)


@dataclass(frozen=True)
class OpenEncoder:
    """Opens a folder as an encoder wherever it is called."""

    folder: Path
    name: str

    def __call__(self) -> Encoder:
        return open_encoder(self.folder, name=self.name)


@contextmanager
def open_near(recipe: Recipe, settings: Settings) -> Iterator[Encoder]:
    """What tells which texts are near each other."""
    model = resolve(recipe.data.encoder, settings)
    opening = OpenEncoder(model.directory, model.name)
    encoder = opening()
    if recipe.scale.ray is None:
        yield encoder
        return
    with OnRay(recipe.scale.ray) as runner:
        yield ShardedEncoder(
            opening, runner, recipe.scale.shard, fingerprint=encoder.fingerprint, dimension=encoder.dimension
        )


def teacher_facts(part: TeacherPart, settings: Settings) -> dict[str, Any]:
    """What of a teacher decides its replies, found without loading it."""
    if part.remote is not None:
        return {"remote": part.remote, "model": part.remote_model}
    model = _local(part, settings)
    return {"sha256": model.sha256 or input_digest(model.path)}


def teacher_name(part: TeacherPart) -> str:
    """As people know it."""
    return str(part.remote_model or Path(str(part.model)).stem)


def _endpoint(part: TeacherPart, settings: Settings, kept: Kept) -> EndpointTeacher:
    # A key is sent only where the recipe itself names its file: EDGE_REMOTE_KEY is for another server, perhaps.
    own = replace(settings, remote_key_file=part.key_file, sources={**settings.sources, "remote_key_file": "flag"})
    return EndpointTeacher(
        str(part.remote),
        str(part.remote_model),
        ledger=kept.ledger,
        key=(lambda: read_key(own)) if part.key_file is not None else None,
        concurrency=part.at_once or _REQUESTS,
        rate=Rate(requests=part.requests_per_minute, tokens=part.tokens_per_minute),
        budget=Budget.parse(part.budget or ""),
        prices=Prices.parse(part.prices) if part.prices else None,
        offline=settings.offline,
    )


def _local(part: TeacherPart, settings: Settings) -> InstalledModel:
    model = resolve(str(part.model), settings)
    if model.format != "gguf":
        raise ModelError(f"{model.name} cannot teach: it is no GGUF file", hint="see `edge models`")
    return model
