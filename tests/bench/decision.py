"""What judging adds to a question, beside the decode time of a real answer, and the memory of a calibration.

Run it with EDGE_HOME where the models are: `EDGE_HOME=~/.edge .venv/bin/python tests/bench/decision.py`. Prints one
JSON line. The calibration is made up (300 questions, every signal), so its size is real and its numbers are not.
"""

from __future__ import annotations

import datetime
import json
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import edge_sdk.walk
from edge_sdk.confidence.calibration import Calibrations, load
from edge_sdk.confidence.setup import Setup
from edge_sdk.confidence.signals import SIGNALS
from edge_sdk.config import load_settings
from edge_sdk.device import cpu_name
from edge_sdk.edge import Edge
from edge_sdk.judge import Judge
from edge_sdk.route import Policy
from edge_sdk.walk import Walk
from quantize.asking import Asked
from quantize.calibrate import fitted

QUESTIONS = 300
ASKED = (
    "How do I write a dictionary to a JSON file?",
    "What does csv.DictReader return?",
    "How is a temporary folder removed?",
    "Which exception is raised for invalid JSON?",
    "How do I copy a whole directory tree?",
    "What is the default delimiter of csv.reader?",
    "How do I pretty print JSON with sorted keys?",
    "What does shutil.which do?",
)
DOCUMENTS = ["py:json", "py:csv", "py:shutil", "py:tempfile"]
MAX_TOKENS = 64
PARTS = ("calibration", "vector", "before", "during", "after", "kept")

spent: dict[str, float] = {}


@contextmanager
def clock(part: str) -> Any:
    started = time.perf_counter()
    try:
        yield
    finally:
        spent[part] = spent.get(part, 0.0) + (time.perf_counter() - started) * 1000


def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        with clock(part):
            return function(*arguments, **options)

    return call


class TimedJudge(Judge):
    """Counts the time of what a question costs beside its answer."""

    __init__ = timed("before", Judge.__init__)
    sees = timed("during", Judge.sees)
    ends = timed("after", Judge.ends)


def made_up(setup: Setup, dimension: int) -> Any:
    """A calibration with every signal and limits that no answer passes."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((QUESTIONS, dimension))
    rows: list[Asked] = []
    for vector in vectors / np.linalg.norm(vectors, axis=1, keepdims=True):
        signals = {signal.name: float(random.normal()) for signal in SIGNALS}
        right = random.random() < 1 / (1 + np.exp(-sum(s.sign * signals[s.name] for s in SIGNALS) / 5))
        question = f"A made-up question of a usual length, number {len(rows)}?"
        text, numbers = "yes" if right else "no", tuple(map(float, vector))
        rows.append(Asked(question, ("yes",), "", text, "local", signals, numbers))
    return replace(fitted(rows, setup, "contains"), hand_off_before=0.0, hand_off_window=-1e6)


def memory_of(path: Path) -> float:
    """MiB that a loaded calibration keeps, everything else being loaded already."""
    load(path)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = load(path)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return (after - before) / 2**20


def one(edge: Edge, question: str) -> dict[str, float]:
    """Milliseconds of the parts and of the decode."""
    spent.clear()
    answer = edge.ask(question, max_tokens=MAX_TOKENS)
    if answer.probability is None or answer.timings.decode_ms is None:
        raise SystemExit(f"not judged: {answer.reasons}")
    judging = {part: spent.get(part, 0.0) for part in PARTS}
    return judging | {"decode": answer.timings.decode_ms, "tokens": float(answer.tokens.completion)}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(
            {"store": Path(folder) / "s.db", "model": "smollm2", "threads": 1, "offline": True}
        )
        with Edge.open(settings=settings, policy=Policy("local")) as edge:
            edge.add(DOCUMENTS)
            edge.calibrations = Calibrations(Path(folder) / "calibrations")
            path = edge.calibrations.save(made_up(edge.setup(), edge.encoder.dimension))
            edge.calibrations.look_up = timed("calibration", edge.calibrations.look_up)  # type: ignore[method-assign]
            vars(edge_sdk.walk)["Judge"] = TimedJudge
            Walk._kept = timed("kept", Walk._kept)  # type: ignore[method-assign]
            edge.__dict__["vector"] = timed("vector", edge.vector)
            one(edge, ASKED[0])  # loads and warms everything
            rows = [one(edge, question) for question in ASKED]
            size, megabytes = path.stat().st_size / 2**20, memory_of(path)
            model = edge.engine.name
    total = [sum(row[part] for part in PARTS if part != "kept") for row in rows]
    result = {
        "command": ".venv/bin/python tests/bench/decision.py",
        "date": datetime.date.today().isoformat(),
        "machine": {"cpu": cpu_name(), "python": sys.version.split()[0]},
        "model": model,
        "threads": 1,
        "questions": len(rows),
        "tokens": statistics.median(row["tokens"] for row in rows),
        "milliseconds": {part: statistics.median(row[part] for row in rows) for part in (*PARTS, "decode")},
        "judging_ms": statistics.median(total),
        "judging_to_decode": statistics.median(ms / row["decode"] for ms, row in zip(total, rows, strict=True)),
        "calibration": {"questions": QUESTIONS, "file_mb": size, "memory_mb": megabytes},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
