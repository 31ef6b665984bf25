"""Tokens a second on one thread, on two, and with the number re-chosen, alone and beside one busy process.

Each contender has a process of its own, for the OpenMP threads of several callers disturb each other, and they take
turns. The busy process (a Python that counts, pinned nowhere) runs for half of each round; `fresh` is started while
it runs. Prints one JSON line:
`.venv/bin/python tests/bench/threads.py --model model.gguf`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from edge_sdk.device import describe
from edge_sdk.engines.handover import MOMENT
from edge_sdk.engines.llama import LlamaModel

CONTEXT = 2048
CONTENDERS = {
    "one": (1, False),
    "all": (0, False),
    "paced": (0, True),
}  # threads (0: as asked for), whether they yield


@contextmanager
def busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def measure(model: LlamaModel, prompt: int, tokens: int, seconds: float) -> dict[str, float]:
    """Prefill and decode, tokens a second; decoding ends after `seconds`."""
    row = [1000 + 7 * at % 4000 for at in range(prompt)]
    model.keep_prefix([-1])
    started = time.perf_counter()
    model.prefill(row, lambda: False)
    prefill = time.perf_counter() - started
    started, done = time.perf_counter(), 0

    def decode() -> bool:
        """As greedy answers are: tokens that come within a moment in one call."""
        nonlocal done
        token = 1000
        while done < tokens and time.perf_counter() - started < seconds:
            found = model.advance_greedily(token, tokens - done, MOMENT)
            if not found:
                model.advance(token)
            done += len(found) or 1
            token = found[-1].chosen if found else 1000 + done
        return True

    model._thread.run(decode)
    return {"prefill": prompt / prefill, "decode": done / (time.perf_counter() - started)}


class Contender:
    """A model in a process of its own that measures when it is told to."""

    def __init__(self, arguments: argparse.Namespace, threads: int, yielding: bool) -> None:
        command = [
            sys.executable,
            __file__,
            *sys.argv[1:],
            "--worker",
            f"{threads or arguments.threads} {yielding:d}",
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.measure()  # loaded and warm

    def measure(self) -> dict[str, float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print("go", file=self._process.stdin, flush=True)
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def work(arguments: argparse.Namespace) -> None:
    threads, yielding = map(int, arguments.worker.split())
    model = LlamaModel(arguments.model, context=CONTEXT, threads=threads, gpu_layers=0, yielding=bool(yielding))
    short = True
    for _ in sys.stdin:
        prompt, tokens = (16, 2) if short else (arguments.prompt, arguments.tokens)
        print(json.dumps(measure(model, prompt, tokens, arguments.seconds)), flush=True)
        short = False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--seconds", type=float, default=0.8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    contenders = {name: Contender(arguments, *how) for name, how in CONTENDERS.items()}
    rounds: dict[str, list[dict[str, float]]] = {}

    def take_turns(turn: dict[str, Contender], state: str) -> None:
        for name, contender in turn.items():
            figures = contender.measure()
            rounds.setdefault(f"{name}, {state}", []).append(figures)
            print(name, state, *(round(figure, 1) for figure in figures.values()), file=sys.stderr, flush=True)

    for _ in range(arguments.rounds):
        take_turns(contenders, "alone")
        with busy_process():
            fresh = Contender(arguments, *CONTENDERS["paced"])
            take_turns({**contenders, "fresh": fresh}, "busy")
            fresh.close()
    for contender in contenders.values():
        contender.close()

    def column(name: str, what: str) -> list[float]:
        return [row[what] for row in rounds[name]]

    def ratio(name: str, base: str, what: str) -> float:
        pairs = zip(column(name, what), column(base, what), strict=True)
        return round(median(mine / other for mine, other in pairs), 3)

    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    print(
        json.dumps(
            {
                "command": " ".join([".venv/bin/python tests/bench/threads.py", *words]),
                "date": time.strftime("%Y-%m-%d"),
                "machine": describe(),
                "tokens_per_second": {
                    name: {
                        what: {
                            "median": round(median(column(name, what)), 1),
                            "spread": [round(min(column(name, what)), 1), round(max(column(name, what)), 1)],
                        }
                        for what in ("prefill", "decode")
                    }
                    for name in rounds
                },
                "to_one_thread_alone": {
                    name: {what: ratio(name, "one, alone", what) for what in ("prefill", "decode")}
                    for name in rounds
                },
            }
        )
    )


if __name__ == "__main__":
    main()
