"""What a process of its own costs: tokens a second, the first token, counting, starting, beside the engine here.

Both engines hold the model and take turns within one run, each with an answer that is not measured first: some
systems take memory back from a process that waits, so the first answer after a pause is slow in either. `back` is
from a kill while streaming to the next answered request. Prints one JSON line:
`.venv/bin/python tests/bench/isolation.py --model-file model.gguf`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

from edge_sdk.device import describe
from edge_sdk.engines.engine import Engine
from edge_sdk.engines.isolated import IsolatedEngine
from edge_sdk.engines.opening import Opening
from edge_sdk.errors import EngineCrashedError
from edge_sdk.records import GenerateOptions

TEXT = "the rain falls on the sea and a small boat waits for the wind that never comes "


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def measure(engine: Engine, turn: int, tokens: int) -> dict[str, float]:
    """One answer to a prompt of some 300 tokens that nobody has seen before."""
    prompt = f"{turn} {TEXT * 18}"
    list(engine.generate(f"before {prompt}", GenerateOptions(max_tokens=4)))
    times = [time.perf_counter()]
    for _ in engine.generate(prompt, GenerateOptions(max_tokens=tokens)):
        times.append(time.perf_counter())
    counting = timed(lambda: [engine.count(TEXT) for _ in range(50)]) / 50
    return {
        "decode_tokens_per_second": (len(times) - 2) / (times[-1] - times[1]),
        "between_tokens_ms": median(late - early for early, late in pairwise(times[1:])) * 1e3,
        "ttft_ms": (times[1] - times[0]) * 1e3,
        "count_us": counting * 1e6,
    }


def starting(opening: Opening) -> dict[str, float]:
    """Seconds to open it in either way, and to be back after a kill."""
    seconds = {"open_here": timed(lambda: opening.open().close())}
    started = time.perf_counter()
    with IsolatedEngine(opening) as engine:
        seconds["open_isolated"] = time.perf_counter() - started
        generation = engine.generate(TEXT, GenerateOptions(max_tokens=200))
        next(generation)
        process = engine._slot.process
        assert process is not None
        process.kill()
        started = time.perf_counter()
        try:
            list(generation)
        except EngineCrashedError:
            engine.count(TEXT)
        seconds["back"] = time.perf_counter() - started
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-file", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    opening = Opening(options.model_file, context=1024, threads=options.threads, speculation=False)
    starts = [starting(opening) for _ in range(options.rounds)]
    rows: dict[str, list[dict[str, float]]] = {"here": [], "isolated": []}
    here = opening.open()
    with IsolatedEngine(opening) as isolated:
        for turn in range(-1, options.rounds):
            for name, engine in sorted({"here": here, "isolated": isolated}.items(), reverse=bool(turn % 2)):
                found = measure(engine, turn, options.tokens)
                if turn >= 0:  # the first is to warm up
                    rows[name].append(found)
        holds = isolated.confinement
    here.close()
    ratios = {
        key: [far[key] / near[key] for far, near in zip(rows["isolated"], rows["here"], strict=True)]
        for key in rows["here"][0]
    }
    print(json.dumps({
        "command": f".venv/bin/python tests/bench/isolation.py {' '.join(map(short, sys.argv[1:]))}",
        "date": time.strftime("%Y-%m-%d"), "machine": describe(), "threads": options.threads,
        "rounds": options.rounds, "tokens": options.tokens, "confinement": holds,
        "medians": {name: {key: round(median(row[key] for row in found), 3) for key in found[0]}
                    for name, found in rows.items()},
        "isolated_to_here": {key: {"median": round(median(each), 4), "least": round(min(each), 4),
                                   "most": round(max(each), 4)} for key, each in ratios.items()},
        "seconds": {key: round(median(each[key] for each in starts), 3) for key in starts[0]},
    }))  # fmt: skip


def short(word: str) -> str:
    return Path(word).name if "/" in word else word


if __name__ == "__main__":
    main()
