"""The peak of resident memory beside the estimate made from the header, for models and contexts.

Each pair runs in a process of its own: import, open, a prefill of a whole batch, some tokens. What counts is the
peak above that of the interpreter with this package imported, before llama.cpp is. Prints one JSON line:
`.venv/bin/python tests/bench/memory.py --model a.gguf --model b.gguf --context 1024 --context 4096`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from edge_sdk.device import describe
from edge_sdk.engines.memory import estimate_memory
from edge_sdk.engines.profile import Tuning
from edge_sdk.model_files.gguf_header import read_header


def peak() -> int:
    """Bytes: VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    raise SystemExit("this system does not say what a process has had resident at most")


def work(path: Path, context: int, tuning: Tuning, threads: int, tokens: int) -> dict[str, int]:
    """In a process of its own: what opening the model, a full batch and an answer add to the peak."""
    from edge_sdk.engines.engine_gguf import GgufEngine
    from edge_sdk.records import GenerateOptions

    before = peak()
    with GgufEngine.open(path, context=context, threads=threads, tuning=tuning) as engine:
        opened = peak()
        wanted = min(tuning.batch, engine.context - tokens - 32)
        prompt = "the " * wanted
        while engine.count(prompt) > wanted:
            prompt = prompt[: -4 * max(1, (engine.count(prompt) - wanted))]
        for _ in engine.generate(prompt, GenerateOptions(max_tokens=tokens)):
            pass
    return {"before": before, "opened": opened - before, "peak": peak() - before}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, action="append", required=True)
    parser.add_argument("--context", type=int, action="append", required=True)
    parser.add_argument("--cache-type", default="F16")
    parser.add_argument("--batch", type=int, default=Tuning().batch)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tuning = Tuning(batch=arguments.batch, cache_type=arguments.cache_type)
    if arguments.worker:
        found = work(arguments.model[0], arguments.context[0], tuning, arguments.threads, arguments.tokens)
        print(json.dumps(found))
        return
    rows: list[dict[str, Any]] = []
    for path in arguments.model:
        header = read_header(path)
        for context in arguments.context:
            length = min(context, header.context_length or context)
            estimate = estimate_memory(header, length, tuning)
            turns = [_worker(path, context, arguments) for _ in range(arguments.repeats)]
            measured = median(turn["peak"] for turn in turns)
            rows.append(
                {
                    "model": path.name,
                    "context": length,
                    "estimate_mib": round(estimate.peak / (1 << 20), 1),
                    "parts_mib": {name: size >> 20 for name, size in estimate.parts().items()},
                    "spare_mib": estimate.spare >> 20,
                    "peak_mib": round(measured / (1 << 20), 1),
                    "interpreter_mib": round(median(turn["before"] for turn in turns) / (1 << 20), 1),
                    "estimate_to_peak": round(estimate.peak / measured, 3),
                }
            )
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    print(
        json.dumps(
            {
                "command": " ".join([".venv/bin/python tests/bench/memory.py", *words]),
                "date": time.strftime("%Y-%m-%d"),
                "machine": describe(),
                "batch": arguments.batch,
                "cache_type": arguments.cache_type,
                "repeats": arguments.repeats,
                "rows": rows,
            }
        )
    )


def _worker(path: Path, context: int, arguments: argparse.Namespace) -> dict[str, int]:
    command = [sys.executable, __file__, "--worker", "--model", str(path), "--context", str(context)]
    command += ["--cache-type", arguments.cache_type, "--batch", str(arguments.batch)]
    command += ["--threads", str(arguments.threads), "--tokens", str(arguments.tokens)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
