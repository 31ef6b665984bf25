"""Measures how fast passages become vectors: our encoder beside plain loops over onnxruntime, and whole documents.

Each turn has a process of its own, so that its peak memory is its own, and the contenders take turns, so that a
busy moment hits all of them. Knows nothing of how it is shown.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from os import environ, pathsep
from pathlib import Path
from statistics import median
from typing import Any

from ..device import default_threads, describe
from ..errors import ConfigError, EngineError
from .apart import peak_mb

Progress = Callable[[float, float | None, str], None]
_PASSAGES_A_DOCUMENT = 8


def bench_ingest(
    encoder_directory: Path,
    passages: Sequence[str],
    *,
    reference: Path | None = None,
    batches: Sequence[int] = (1, 16),
    repeats: int = 3,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure the encoder of a folder on `passages`; the JSON document of `edge bench ingest`.

    `encoders` holds medians over `repeats` for `edge` (whatever `open_encoder` takes), for `onnxruntime_1` and
    `onnxruntime_16`, which are loops over the same file with the package's own settings, texts sorted by length,
    and with a `reference` folder (the same model in floats) for `reference_1` and so on. A static encoder is
    measured beside its `reference` alone, which `open_encoder` opens as well (`reference_edge`). `ratio` is the
    median over the rounds of ours to the best of the others. `end_to_end` is `Edge.add` of files, of one passage
    each and of several, to a new store: passages a second, and as `share` of the encoder's rate on the same texts,
    which is taken just before and just after.
    """
    from ..encoders.encoders import is_static  # not above: a turn's process holds only what it measures

    if not passages:
        raise ConfigError("there is no passage to measure with", hint="check --data")
    threads = threads or default_threads()
    contenders = {"edge": ("edge", encoder_directory, 0)}
    static = is_static(encoder_directory)
    if static and reference is None:
        raise ConfigError(f"{encoder_directory} is static: nothing runs in onnxruntime", hint="give a --reference")
    if static and reference is not None:
        contenders["reference_edge"] = ("edge", reference, 0)
    for name, folder in (("onnxruntime", None if static else encoder_directory), ("reference", reference)):
        if folder is not None:
            contenders |= {f"{name}_{batch}": ("onnxruntime", folder, batch) for batch in batches}
    files = {"files_of_one": 1, "files_of_several": _PASSAGES_A_DOCUMENT}
    total, done = repeats * (len(contenders) + len(files)), 0
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as scratch:
        texts = Path(scratch, "passages.json")
        texts.write_text(json.dumps(list(passages)))
        for number in range(repeats):
            turns = {}
            names = [*contenders, *files]
            for name in names[number % len(names) :] + names[: number % len(names)]:
                if progress:
                    progress(done, total, name)
                kind, folder, size = contenders.get(name) or ("add", encoder_directory, files[name])
                turns[name] = _measure(kind, folder, size, texts, threads)
                done += 1
            rounds.append(turns)
    if progress:
        progress(total, total, "")
    others = [name for name in contenders if name != "edge"]
    best = max(others, key=lambda name: median(turn[name]["passages_per_second"] for turn in rounds))
    rate = "passages_per_second"
    return {
        "encoders": {name: _summary([turn[name] for turn in rounds]) for name in contenders},
        "best_other": best,
        "ratio": round(median(turn["edge"][rate] / turn[best][rate] for turn in rounds), 3),
        "end_to_end": {name: _summary([turn[name] for turn in rounds]) for name in files},
        "backend": _backend(encoder_directory),
        "settings": {"passages": len(passages), "repeats": repeats, "threads": threads, "max_tokens": 256},
        "machine": describe(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _backend(directory: Path) -> str:
    from ..encoders.encoders import encoder_backend

    return encoder_backend(directory)


def _summary(turns: Sequence[dict[str, float]]) -> dict[str, Any]:
    figures = {name: [turn[name] for turn in turns] for name in turns[0]}
    return {name: round(median(values), 3) for name, values in figures.items()} | {
        "spread": {name: [round(min(values), 3), round(max(values), 3)] for name, values in figures.items()}
    }


def _measure(kind: str, directory: Path, size: int, texts: Path, threads: int) -> dict[str, float]:
    """One turn in a process of its own."""
    environment = {**environ, "PYTHONPATH": pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    command = [sys.executable, "-m", "edge_sdk.bench.ingest", kind, str(directory), str(size), str(texts)]
    done = subprocess.run([*command, str(threads)], capture_output=True, text=True, env=environment)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise EngineError(f"measuring {kind} failed: {said[-1] if said else 'its process ended'}")
    reply: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return reply


# --- one turn ---------------------------------------------------------------------------------------


def _turn(kind: str, directory: Path, size: int, passages: list[str], threads: int) -> dict[str, float]:
    if kind == "add":
        return _add(directory, size, passages, threads)
    started = time.perf_counter()
    encode = _ours(directory, threads) if kind == "edge" else _plain(directory, size, threads)
    encode(["The first text."])
    opened = time.perf_counter()
    encode(passages)
    ended = time.perf_counter()
    return {
        "passages_per_second": len(passages) / (ended - opened),
        "peak_mb": peak_mb(),
        "open_ms": (opened - started) * 1e3,
    }


def _ours(directory: Path, threads: int) -> Callable[[Sequence[str]], object]:
    from ..encoders.encoders import open_encoder

    return open_encoder(directory, threads=threads).encode


def _plain(directory: Path, batch: int, threads: int) -> Callable[[Sequence[str]], object]:
    """What one writes with onnxruntime and a tokenizer: texts sorted by length, padded batches, mean pooling."""
    import numpy as np

    from ..model_files.onnx_session import find_model, import_onnxruntime
    from ..model_files.tokenizer import Tokenizer

    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(str(find_model(directory)), options, providers=["CPUExecutionProvider"])
    wanted = {given.name for given in session.get_inputs()}
    tokenizer = Tokenizer.open(directory / "tokenizer.json", max_tokens=256)

    def encode(texts: Sequence[str]) -> object:
        tokens = sorted((tokenizer.encode(text, framed=True) for text in texts), key=len)
        vectors = []
        for start in range(0, len(tokens), batch):
            part = tokens[start : start + batch]
            ids = np.zeros((len(part), len(part[-1])), np.int64)
            mask = np.zeros_like(ids)
            for row, one in enumerate(part):
                ids[row, : len(one)], mask[row, : len(one)] = one, 1
            feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            states = session.run(None, {name: feed for name, feed in feeds.items() if name in wanted})[0]
            means = (states * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
            vectors.append(means / np.linalg.norm(means, axis=1, keepdims=True))
        return np.concatenate(vectors)

    return encode


def _add(directory: Path, size: int, passages: list[str], threads: int) -> dict[str, float]:
    """`Edge.add` of files with `size` passages each, between two runs of the encoder alone on the same texts."""
    from ..documents.chunk import chunk_document, embedding_text
    from ..documents.parse import parse_bytes
    from ..edge import Edge
    from ..encoders.encoders import open_encoder
    from ..storage.store import Store

    encoder = open_encoder(directory, threads=threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "documents")
        folder.mkdir()
        texts: list[str] = []
        for start in range(0, len(passages), size):
            data = "\n\n".join(passages[start : start + size]).encode()
            (folder / f"{start:06}.txt").write_bytes(data)
            chunks = chunk_document(parse_bytes(data, str(start), suffix=".txt"))
            texts += [embedding_text(chunk.heading, chunk.text) for chunk in chunks]
        times = [_seconds(lambda: encoder.encode(texts))]
        with Edge(Store.open(Path(scratch, "store.db")), lambda: encoder, _no_engine) as edge:
            added = _seconds(lambda: edge.add([folder]))
            if edge.store.counts().passages != len(texts):
                raise EngineError("some files were not added", hint="give passages that are plain text")
        times.append(_seconds(lambda: encoder.encode(texts)))
    return {"passages_per_second": len(texts) / added, "share": sum(times) / 2 / added, "peak_mb": peak_mb()}


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _no_engine() -> Any:
    raise EngineError("this measures without a language model")


if __name__ == "__main__":
    _kind, _directory, _size, _texts, _threads = sys.argv[1:]
    _passages = json.loads(Path(_texts).read_text())
    print(json.dumps(_turn(_kind, Path(_directory), int(_size), _passages, int(_threads))))  # noqa: T201
