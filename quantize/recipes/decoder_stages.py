"""The stages of the decoder: it learns from sheets of passages, then becomes a LoRA adapter or a file of its own.

Prompts are those of the engine that it will run in. Needs torch, which is loaded when a stage runs. Knows nothing
of how a decoder is trained or judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edge_sdk.bundle.cache import open_bundle
from edge_sdk.choices import RULE as OFFER
from edge_sdk.config import Settings
from edge_sdk.device import cpu_features
from edge_sdk.errors import ConfigError, MissingExtraError
from edge_sdk.evidence import RULE
from edge_sdk.hub.models import InstalledModel
from edge_sdk.model_files.gguf_adapter import read_adapter
from edge_sdk.model_files.gguf_header import read_header

from ..training_data.example import read_examples
from .data_stages import TRAIN
from .recipe import DecoderPart, Recipe
from .stages import Job, Stage

if TYPE_CHECKING:
    from ..students.decoder_data import Sheet
    from ..students.decoder_model import DecoderModel

ADAPTER, DECODER = "adapter.gguf", "decoder.gguf"
"""The file in the result of `decoder-export`: one of the two."""
READER = "reader"
"""The folder in the result of `reader-export`."""
_WEIGHTS = "weights.pt"
_RATES = {"adapter": 4e-4, "full": 2e-5}
_ALPHA = 2.0  # times the rank
_FAST = "avx512_bf16"  # processors that multiply in bfloat16


def decoder_stages(recipe: Recipe, part: DecoderPart, base: InstalledModel, settings: Settings) -> list[Stage]:
    """Training and export. Raises `ConfigError` for a bundle to start from that has no adapter which fits."""
    learned = {name: value for name, value in asdict(part).items() if name not in ("base", "start", "extractive")}
    own, start = part.extractive and recipe.reader is not None, begun(part, settings)
    files = {"base": base.path}
    if start.adapter is not None:
        _check_start(start.adapter, part, base)
        files["start"] = start.adapter
    if part.extractive and not own:
        files |= start.reader_files
    if own or (part.extractive and start.reader is not None):
        learned["offer"] = OFFER
    return [
        Stage(
            "decoder",
            1,
            lambda job: _train(job, recipe, part, base, settings),
            learned | {"seed": recipe.seed, "sentences": RULE},
            files,
            ("curate", "reader-export") if own else ("curate",),
        ),
        Stage(
            "decoder-export",
            1,
            lambda job: _export(job, part, base, recipe),
            {"name": recipe.name, "licence": recipe.bundle.licence if recipe.bundle else None, "of": base.name}
            | asdict(part.reading),
            {"base": base.path},
            ("decoder",),
        ),
    ]


class Begun(NamedTuple):
    """What of a bundle a decoder starts with: the adapter's file and the reader's folder."""

    adapter: Path | None = None
    reader: Path | None = None

    @property
    def reader_files(self) -> dict[str, Path]:
        """The files of the reader by their names, none without one."""
        found = () if self.reader is None else sorted(self.reader.iterdir())
        return {f"reader {path.name}": path for path in found}


def begun(part: DecoderPart, settings: Settings) -> Begun:
    """What the bundle holds that the recipe names to start from."""
    if part.start is None:
        return Begun()
    bundle = open_bundle(part.start, settings.home)
    adapter = bundle.paths("adapter:default")
    if not adapter:
        raise ConfigError(f"{part.start} holds no adapter named default", hint="see `edge bundle inspect`")
    return Begun(adapter[0], bundle.directory("reader"))


def reader_beside(job: Job, recipe: Recipe, settings: Settings) -> Path | None:
    """The folder of the reader beside the recipe's decoder: made here, or that of the bundle it starts from.

    Of a bundle only where the decoder is extractive, and so has learned beside it.
    """
    if (made := job.results.get("reader-export")) is not None:
        return made.folder / READER
    part = recipe.decoder
    return begun(part, settings).reader if part is not None and part.extractive else None


def _check_start(adapter: Path, part: DecoderPart, base: InstalledModel) -> None:
    header, name = read_adapter(adapter, read_header(base.path)), base.spec.name if base.spec else None
    if None not in (header.base, name) and header.base != name:
        raise ConfigError(
            f"{part.start} holds an adapter for {header.base}, not {name}", hint=f"use base = {header.base!r}"
        )
    if (header.rank, header.alpha) != (part.rank, _ALPHA * part.rank):
        raise ConfigError(
            f"{part.start} holds an adapter of rank {header.rank} and alpha {header.alpha:g}, not {part.rank} and "
            f"{_ALPHA * part.rank:g}",
            hint="use its rank, where alpha is twice that, or leave start out",
        )


def _train(
    job: Job, recipe: Recipe, part: DecoderPart, base: InstalledModel, settings: Settings
) -> Mapping[str, Any]:
    torch = import_torch(settings.threads)
    from edge_sdk.engines.engine_gguf import GgufEngine
    from edge_sdk.readers.reader import Reader

    from ..students.decoder_data import Lessons, TaskMaker, make_sheets
    from ..students.decoder_export import load_adapter
    from ..students.decoder_training import DecoderTraining, train_decoder

    end = read_header(base.path).metadata.get("tokenizer.ggml.eos_token_id")
    if not isinstance(end, int):
        raise ConfigError(f"{base.name} names no token that ends an answer", hint="take a model made for chats")
    examples = list(read_examples(job.results["curate"].folder / TRAIN))
    maker, reading = TaskMaker(examples, Lessons()), part.reading
    engine = GgufEngine.open(base.path, context=part.prompt_tokens, threads=settings.threads, sha256=base.sha256)

    reader = reader_beside(job, recipe, settings) if part.extractive else None
    read = Reader.open(reader, threads=settings.threads).read if reader is not None else None
    seed, start = recipe.seed, begun(part, settings).adapter

    @lru_cache(maxsize=1)
    def epoch(number: int) -> list[Sheet]:
        return make_sheets(
            maker,
            engine,
            reading,
            end,
            read=read,
            seed=seed * 1_000 + number,
            progress=job.progress,
            cancel=job.cancel,
        )

    model, training = _model(part, base, seed), DecoderTraining(
        epochs=part.epochs,
        tokens=part.tokens,
        learning_rate=part.learning_rate or _RATES[part.method],
        confidence=part.confidence,
        mixed=part.method == "full" and _fast(),
        seed=seed,
    )  # fmt: skip
    try:
        if start is not None:
            load_adapter(model, start)
        epoch(0)
        if job.cancel.is_set():
            return {}
        trained = train_decoder(
            model,
            epoch,
            training,
            checkpoint=job.scratch / "checkpoint.pt",
            progress=job.progress,
            cancel=job.cancel,
        )
    finally:
        engine.close()
    learned = {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}
    torch.save(learned, job.folder / _WEIGHTS)
    return asdict(trained)


def _model(part: DecoderPart, base: InstalledModel, seed: int) -> DecoderModel:
    """The base, ready to be trained as the recipe wants it."""
    torch = import_torch()
    from ..students.decoder_lora import Lora, add_grid, add_lora
    from ..students.decoder_model import DecoderModel

    model = DecoderModel.from_gguf(base.path)
    if part.method == "adapter":
        lora = Lora(rank=part.rank, alpha=_ALPHA * part.rank)
        add_lora(model, lora, frozen=torch.bfloat16 if _fast() else torch.float32, seed=seed)
    elif part.quantize is not None:
        add_grid(model, part.quantize)
    return model


def _export(job: Job, part: DecoderPart, base: InstalledModel, recipe: Recipe) -> Mapping[str, Any]:
    torch = import_torch()
    from ..students.decoder_export import AdapterFacts, write_adapter, write_model

    model = _model(part, base, recipe.seed)
    learned = torch.load(job.results["decoder"].folder / _WEIGHTS, weights_only=True)
    model.load_state_dict(learned, strict=False)
    if part.method == "full":
        out = job.folder / DECODER
        write_model(model, base.path, out, type=part.quantize or "F16", progress=job.progress, cancel=job.cancel)
        return {"bytes": out.stat().st_size}
    out, licence = job.folder / ADAPTER, recipe.bundle.licence if recipe.bundle else None
    facts = AdapterFacts(
        f"{recipe.name} adapter", base.spec.name if base.spec else None, reading=part.reading, licence=licence
    )
    header = write_adapter(model, base.path, out, facts)
    return {"bytes": out.stat().st_size, "rank": header.rank, "matrices": len(header.adapted)}


def _fast() -> bool:
    """Whether bfloat16 is faster than single precision here."""
    cuda: bool = import_torch().cuda.is_available()
    return cuda or _FAST in cpu_features()


def import_torch(threads: int | None = None) -> Any:
    """The torch package, held to so many threads where a number is given; or `MissingExtraError`."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError("training", "distill") from None
    if threads is not None:
        torch.set_num_threads(threads)
    return torch
