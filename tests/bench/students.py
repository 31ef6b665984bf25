"""The students of a bundle beside their untrained selves and the model they replace, and the cascade of all.

    .venv/bin/python tests/bench/students.py examples/assistant/assistant.edge --data squad --kept answers/

Every question comes with its passage among distractors, and some of them again without it. The decoder is the
adapter's base with the adapter, given sentences where it was taught so, the untrained base both those and whole
passages. `--remote` is given whole passages too, and is what the cascade falls back to.
Answers are kept in `--kept`, so an interrupted run goes on. One JSON document is the last line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from edge_sdk.bundle.cache import open_bundle
from edge_sdk.commands.measure import stamped
from edge_sdk.config import Settings, load_settings
from edge_sdk.engines.engine_gguf import GgufEngine
from edge_sdk.hub.models import resolve
from edge_sdk.loading import load_encoder
from edge_sdk.model_files.gguf_adapter import read_adapter
from edge_sdk.readers.reader import Reader
from quantize.recipes.evaluation import Given, System, answer_all, measure, tasks_of
from quantize.recipes.evaluation_stage import evaluation_document
from quantize.recipes.recipe import EvaluatePart, Recipe
from quantize.recipes.systems import DecoderSystem, Evidence, ReaderSystem, SentenceRule
from quantize.training_data.data_files import read_data

CONTEXT = 4096


def systems(bundle: Path, remote: str, settings: Settings) -> Iterator[tuple[str, AbstractContextManager[System]]]:
    """Each with its role, open for as long as it answers: students, each before its baseline, then the remote."""
    opened = open_bundle(bundle, settings.home)
    if (folder := opened.directory("reader")) is not None:
        yield "student", nullcontext(ReaderSystem(Reader.open(folder, threads=settings.threads), folder, "reader"))
        yield "baseline", nullcontext(SentenceRule())
    if adapters := opened.paths("adapter:default"):
        taught = read_adapter(adapters[0])
        base, untrained = str(taught.base), f"{taught.base}, untrained"
        yield "student", decoder(base, "decoder", settings, adapters[0], taught.evidence_tokens, folder)
        if taught.evidence_tokens:
            titled = f"{untrained}, the same sentences"
            yield "baseline", decoder(base, titled, settings, None, taught.evidence_tokens, folder)
        yield "baseline", decoder(base, untrained, settings)
    yield "teacher", decoder(remote, f"{remote} (remote)", settings)


@contextmanager
def decoder(
    name: str,
    title: str,
    settings: Settings,
    adapter: Path | None = None,
    evidence_tokens: int = 0,
    reader: Path | None = None,
) -> Iterator[System]:
    """A model of the catalog, with an adapter or as it is, given whole passages or sentences."""
    model = resolve(name, settings)
    files = [path for path in (model.path, adapter, reader) if path is not None]
    evidence = None
    if evidence_tokens:
        opened = None if reader is None else Reader.open(reader, threads=settings.threads)
        evidence = Evidence(evidence_tokens, load_encoder(settings), opened)
    with GgufEngine.open(
        model.path, name=title, context=CONTEXT, threads=settings.threads, sha256=model.sha256, adapter=adapter
    ) as engine:
        numbered = adapter is not None or model.reading.numbered
        extractive = adapter is not None and read_adapter(adapter).extractive
        yield DecoderSystem(engine, files, title, numbered=numbered, evidence=evidence, extractive=extractive)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--remote", default="qwen2.5-coder-1.5b-instruct")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kept", type=Path, required=True, help="folder of answers, to go on from")
    asked = parser.parse_args()
    settings = load_settings({"threads": asked.threads})
    recipe = Recipe(
        name=asked.bundle.stem,
        path=asked.bundle,
        work=asked.kept,
        evaluate=EvaluatePart(data=asked.data, questions=asked.questions),
    )
    tasks = tasks_of(list(read_data(asked.data)), distractors=2, most=asked.questions)
    asked.kept.mkdir(parents=True, exist_ok=True)
    given: dict[str, list[Given]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for role, opened in systems(asked.bundle, asked.remote, settings):
        with opened as system:
            print(f"{system.name}: {len(tasks)} tasks", file=sys.stderr, flush=True)
            answers = answer_all(system, tasks, kept=asked.kept / f"{len(rows)}.jsonl")
            assert answers is not None and system.bytes is not None
            given[system.name] = answers
            figures = measure(tasks, answers)
            rows[system.name] = {"role": role, "megabytes": system.bytes / 1e6, "figures": figures}
    result = stamped(
        "", {"data": asked.data.name, "threads": asked.threads, **evaluation_document(recipe, tasks, rows, given)}
    )
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    print(json.dumps(result | {"command": " ".join([".venv/bin/python tests/bench/students.py", *words])}))


if __name__ == "__main__":
    main()
