"""Measures how long a question takes in a large store: `Edge.search`, first and warm, with its parts.

The store is made up (words as frequent as in real text, vectors as close as real ones), the file, the encoder and
the search are real. What is measured runs in fresh processes. Knows nothing of how the result is shown.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from os import environ, pathsep
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ..device import describe, process_memory
from ..errors import EngineError

if TYPE_CHECKING:
    from ..config import Settings
    from ..edge import Edge
    from ..encoders.embed import Encoder
    from .text import MadeText

Progress = Callable[[float, float | None, str], None]
PROCESSES = 3
"""Fresh ones that share the questions: a first search is measured in each."""
LONG = 60
"""Words of every eighth question; the others have 6 to 14."""
_PASSAGES_A_DOCUMENT = 50
PARTS = {
    "encode": ("encode",),
    "text": ("count_text", "search_text"),
    "vectors": ("top_k",),
    "passages": ("passages",),
}
"""Parts of a search and the methods that each of them is."""


def bench_retrieve(
    settings: Settings,
    *,
    passages: int = 100_000,
    questions: int = 200,
    progress: Progress = lambda done, total, detail: None,
) -> dict[str, Any]:
    """Make a store of so many passages, search it with the encoder of the settings; `edge bench retrieve`.

    `first_ms` is the median over `PROCESSES`: to `open` the store (with the imports), to load the `encoder`, to
    read the vectors (`index`), and the first `search`; the file is in the system's cache. `warm_ms` is of the
    searches that follow, every question a new one; its `parts` are medians of what each search spent in encoding
    the question, full text, vectors and reading passages, and of the `rest`. `long_ms` is the same for questions of
    `LONG` words. `resident_mb` is a process's after its last search. Raises `ModelNotFoundError` without encoder.
    """
    from ..loading import load_encoder
    from .text import MadeText

    with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
        path = Path(folder, "store.db")
        started = time.perf_counter()
        text = MadeText(seed=0)
        _fill(path, text, load_encoder(settings), passages, progress)
        built = time.perf_counter() - started
        asked = [text.question(LONG if n % 8 == 7 else 6 + n % 9) for n in range(max(questions, 2 * PROCESSES))]
        size = path.stat().st_size
        runs = []
        for number in range(PROCESSES):
            progress(passages, passages, f"searching, process {number + 1} of {PROCESSES}")
            runs.append(_measure_apart(settings, path, asked[number::PROCESSES]))
    turns = [turn for run in runs for turn in run["turns"]]
    return {
        "passages": passages,
        "first_ms": _medians([run["first"] for run in runs]),
        "warm_ms": _summary([turn for turn in turns if turn["words"] < LONG]),
        "long_ms": _summary([turn for turn in turns if turn["words"] == LONG]),
        "resident_mb": _median([run["resident_mb"] for run in runs]),
        "store_mb": round(size / 2**20, 1),
        "build_seconds": round(built, 1),
        "settings": {"questions": len(asked), "processes": PROCESSES, "k": 8, "encoder": settings.encoder},
        "machine": describe(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(median(known), 3) if known else None


def _medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    return {name: _median([row[name] for row in rows]) for name in (rows[0] if rows else {})}


def _summary(turns: Sequence[Mapping[str, float]]) -> dict[str, object]:
    """Median, 99th percentile and maximum of the searches, and the medians of their parts."""
    import numpy as np

    total = [turn["search"] for turn in turns]
    figures: dict[str, object] = {"questions": len(turns), "parts": {}}
    if turns:
        p99 = round(float(np.quantile(total, 0.99)), 3)
        figures |= {"median": _median(total), "p99": p99, "max": round(max(total), 3)}
        figures["parts"] = _medians([{name: turn[name] for name in (*PARTS, "rest")} for turn in turns])
    return figures


def _fill(path: Path, text: MadeText, encoder: Encoder, passages: int, progress: Progress) -> None:
    from ..storage.store import Store
    from .search import clustered_rows

    vectors, _ = clustered_rows(passages, encoder.dimension, 1)
    with Store.open(path, encoder_fingerprint=encoder.fingerprint, dimension=encoder.dimension) as store:
        for start in range(0, passages, _PASSAGES_A_DOCUMENT):
            progress(start, passages, "making a store")
            rows = vectors[start : start + _PASSAGES_A_DOCUMENT]
            store.put(*text.document(f"{start:09}.txt", len(rows)), rows)


# --- one process ------------------------------------------------------------------------------------


def _measure_apart(settings: Settings, store: Path, questions: Sequence[str]) -> dict[str, Any]:
    """`_measure` in a fresh process."""
    environment = {**environ, "PYTHONPATH": pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    flags = {"home": str(settings.home), "encoder": settings.encoder, "store": str(store), "offline": "1"}
    command = [sys.executable, "-m", "edge_sdk.bench.retrieve", json.dumps(flags)]
    given = json.dumps(questions)
    done = subprocess.run(command, input=given, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise EngineError(f"measuring the search failed: {said[-1] if said else 'its process ended'}")
    reply: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return reply


def _measure(flags: Mapping[str, object], questions: Sequence[str]) -> dict[str, Any]:
    """All times in milliseconds. Modules are imported where they are first needed, as in an app."""
    marks = [time.perf_counter()]
    from ..config import load_settings
    from ..edge import Edge

    with Edge.open(settings=load_settings(flags)) as edge:
        marks.append(time.perf_counter())
        encoder = edge.encoder
        marks.append(time.perf_counter())
        edge.store.use_encoder(encoder.fingerprint, encoder.dimension)
        edge.store.vector_index()
        marks.append(time.perf_counter())
        edge.search(questions[0])
        marks.append(time.perf_counter())
        names = ("open", "encoder", "index", "search")
        first = {name: 1e3 * (end - start) for name, start, end in zip(names, marks, marks[1:], strict=False)}
        first["total"] = sum(first.values())
        spent = _watch_parts(edge)
        turns = []
        for question in questions[1:]:
            spent.clear()
            started = time.perf_counter()
            edge.search(question)
            search = 1e3 * (time.perf_counter() - started)
            parts = {name: spent[name] for name in PARTS}
            rest = search - sum(parts.values())
            turns.append({"words": len(question.split()), "search": search, **parts, "rest": rest})
    memory = process_memory()
    return {"first": first, "turns": turns, "resident_mb": None if memory is None else memory / 2**20}


def _watch_parts(edge: Edge) -> dict[str, float]:
    """Milliseconds that each of `PARTS` takes from now on: the very calls that a search makes."""
    from ..storage.store import Store
    from ..storage.vectors import VectorIndex

    spent = defaultdict[str, float](float)
    for part, methods in PARTS.items():
        for method in methods:
            owner: type = next(kind for kind in (Store, VectorIndex, type(edge.encoder)) if hasattr(kind, method))
            setattr(owner, method, _timed(getattr(owner, method), part, spent))
    return spent


def _timed(function: Callable[..., Any], part: str, spent: dict[str, float]) -> Callable[..., Any]:
    def run(*values: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*values, **named)
        finally:
            spent[part] += 1e3 * (time.perf_counter() - started)

    return run


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]), json.load(sys.stdin))))  # noqa: T201
