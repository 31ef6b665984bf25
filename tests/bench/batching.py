"""Requests at once on one GGUF file: tokens a second together, how long each waits, and how evenly they are served.

    tests/bench/batching.py --model smollm2-135m-instruct --at-once 1,8,16 --rounds 5

`single` is `GgufEngine`, one request after the other, in a process of its own (two pools of OpenMP threads in one
process slow each other down); the others are `BatchEngine`. They take turns in each round, every prompt is new, and
the ratios are medians of those within a round. `alone` compares one long prompt on both. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edge_sdk.bench.engine import made_prompt
from edge_sdk.config import load_settings
from edge_sdk.device import default_threads, describe
from edge_sdk.engines.batch_engine import BatchEngine
from edge_sdk.engines.engine import Engine
from edge_sdk.engines.engine_gguf import GgufEngine
from edge_sdk.hub.models import resolve
from edge_sdk.records import GenerateOptions

ONE_BY_ONE = 4  # requests of a turn that takes them one after the other

Times = list[list[float]]  # of each request: when it was made, and when each of its tokens came


def ask(engine: Engine, prompt: str, tokens: int) -> list[float]:
    started = time.perf_counter()
    return [started, *(time.perf_counter() for _ in engine.generate(prompt, GenerateOptions(max_tokens=tokens)))]


def at_once(engine: Engine, prompts: Sequence[str], tokens: int) -> Times:
    """All prompts in threads of their own."""
    times: Times = [[] for _ in prompts]
    barrier = threading.Barrier(len(prompts))

    def run(number: int) -> None:
        barrier.wait()
        times[number] = ask(engine, prompts[number], tokens)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def one_by_one(engine: Engine, prompts: Sequence[str], tokens: int) -> Times:
    return [ask(engine, prompt, tokens) for prompt in prompts]


# --- processes --------------------------------------------------------------------------------------


def serve(given: argparse.Namespace) -> None:
    """Answer lines of JSON {at_once, prompt_tokens, tokens, seed, shared} with the times of each request."""
    answers, sys.stdout = sys.stdout, sys.stderr
    most, threads = max(given.at_once), given.threads
    longest = -(-(max(given.prompt_tokens, given.alone_tokens) + given.tokens + 32) // 256) * 256
    engine: Engine
    if given.worker == "single":
        engine = GgufEngine.open(given.file, context=longest, threads=threads, speculation=False)
    else:
        cells = 2 * longest if given.share_cells else None
        engine = BatchEngine.open(given.file, context=longest, cells=cells, sequences=most, threads=threads)
    for line in sys.stdin:
        asked = json.loads(line)
        way: Callable[..., Times] = at_once if asked["at_once"] > 1 else one_by_one
        count = max(asked["at_once"], asked["requests"])
        shared = made_prompt(engine.count, asked["shared"], asked["seed"]) + " " if asked["shared"] else ""
        own = asked["prompt_tokens"] - asked["shared"]
        prompts = [shared + made_prompt(engine.count, own, asked["seed"] + at) for at in range(count)]
        times = way(engine, prompts, asked["tokens"])
        size = engine.count(prompts[0])
        answers.write(json.dumps({"times": times, "prompt": size}) + "\n")
        answers.flush()


class Peer:
    """An engine in a process of its own."""

    def __init__(self, worker: str, words: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *words, "--worker", worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **asked: object) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def stop(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


# --- figures ----------------------------------------------------------------------------------------


def figures(times: Times, together: bool) -> dict[str, float]:
    """Of one turn: tokens a second in all and once all have begun, p95 of the waits, Jain's index of the rates."""
    tokens = sum(len(row) - 1 for row in times)
    if together:
        seconds = max(row[-1] for row in times) - min(row[0] for row in times)
        start, end = max(row[1] for row in times), min(row[-1] for row in times)
        inside = sum(start < at <= end for row in times for at in row[1:])
        decode = inside / (end - start) if end > start else 0.0
    else:
        seconds = sum(row[-1] - row[0] for row in times)
        decode = sum(len(row) - 2 for row in times) / sum(row[-1] - row[1] for row in times)
    gaps = [after - before for row in times for before, after in pairwise(row[1:])]
    rates = [(len(row) - 1) / (row[-1] - row[0]) for row in times]
    return {
        "tokens_per_second": tokens / seconds,
        "decode_tokens_per_second": decode,
        "between_tokens_p95_ms": float(np.percentile(gaps, 95)) * 1e3,
        "first_token_p95_ms": float(np.percentile([row[1] - row[0] for row in times], 95)) * 1e3,
        "jain": sum(rates) ** 2 / (len(rates) * sum(rate * rate for rate in rates)),
    }


def measured(given: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    batch, single = Peer("batch", words), Peer("single", words)
    turns = [("single", single, 1), *((f"batch_{count}", batch, count) for count in given.at_once)]
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(given.rounds + 1):
        row: dict[str, dict[str, float]] = {}
        for name, peer, count in turns[number % len(turns) :] + turns[: number % len(turns)]:
            asked = {"tokens": given.tokens, "prompt_tokens": given.prompt_tokens, "shared": given.shared}
            answer = peer.ask(at_once=count, requests=ONE_BY_ONE, seed=1_000 * number + 100 * count, **asked)
            row[name] = figures(answer["times"], count > 1)
        for name, peer in (("single", single), ("batch", batch))[:: 1 if number % 2 else -1]:
            alone = {"tokens": given.tokens, "prompt_tokens": given.alone_tokens, "shared": 0}
            answer = peer.ask(at_once=1, requests=1, seed=9_000 + number, **alone)
            ((start, first, *rest),) = answer["times"]
            row[f"alone_{name}"] = {
                "prefill_tokens_per_second": answer["prompt"] / (first - start),
                "decode_tokens_per_second": len(rest) / (rest[-1] - first),
            }
        if number:  # the first round warms up
            rounds.append(row)
            said = {name: round(value["tokens_per_second"]) for name, value in row.items() if name[:5] != "alone"}
            print(time.strftime("%H:%M:%S"), said, file=sys.stderr, flush=True)
    batch.stop()
    single.stop()

    def ratio(ours: str, theirs: str, measure: str) -> float:
        return round(median(row[ours][measure] / row[theirs][measure] for row in rounds), 3)

    together = [name for name, _, _ in turns[1:]]
    return {
        "figures": {
            name: {measure: round(median(row[name][measure] for row in rounds), 3) for measure in rounds[0][name]}
            for name in rounds[0]
        },
        "ratios": {
            f"{measure}_{name}_to_single": ratio(name, "single", measure)
            for measure in ("tokens_per_second", "decode_tokens_per_second")
            for name in together
        }
        | {
            f"{measure}_alone_to_single": ratio("alone_batch", "alone_single", measure)
            for measure in ("prefill_tokens_per_second", "decode_tokens_per_second")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a name or a GGUF file")
    parser.add_argument("--at-once", default="1,8,16", help="numbers of requests")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--shared", type=int, default=0, help="of them, with which all prompts of a turn begin")
    parser.add_argument("--tokens", type=int, default=96, help="generated for each request, at most")
    parser.add_argument("--alone-tokens", type=int, default=600, help="of the prompt that is alone")
    parser.add_argument("--share-cells", action="store_true", help="as where memory is short; else each its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--worker", choices=("single", "batch"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.at_once = [int(count) for count in given.at_once.split(",")]
    path = Path(given.model)
    given.file = path if path.is_file() else resolve(given.model, load_settings()).path
    if given.worker:
        serve(given)
        return
    result = measured(given, sys.argv[1:])
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    settings = {"prompt_tokens": given.prompt_tokens, "shared": given.shared, "tokens": given.tokens}
    result |= {
        "command": " ".join([".venv/bin/python tests/bench/batching.py", *words]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe(),
        "model": given.file.name,
        "settings": {**settings, "rounds": given.rounds, "threads": given.threads},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
