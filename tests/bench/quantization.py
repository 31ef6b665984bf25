"""Stock types beside our plans at the same bytes: KL divergence on text that had no part in them, and speed.

All of them use one importance matrix. The reference is the published file de-quantized. Prints one JSON document.

    tests/bench/quantization.py --model smollm2-135m-instruct --text F --types Q4_0,Q8_0 --budgets-mb 92,86 --work D
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from edge_sdk.config import load_settings
from edge_sdk.device import default_threads, describe
from edge_sdk.engines.profile import Tuning
from edge_sdk.hub.models import resolve
from quantize.gguf_models.importance import read_texts
from quantize.gguf_models.mixed import Costs, build, measure_costs, plan_for_budget
from quantize.gguf_models.quantizer import quantize_file
from quantize.gguf_models.tune import race
from quantize.gguf_models.workbench import Workbench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--types", required=True, help="stock types, with commas")
    parser.add_argument("--budgets-mb", required=True, help="megabytes, with commas")
    parser.add_argument("--work", required=True, type=Path, help="a folder for the files")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--tokens", type=int, default=8192, help="to collect the importance matrix from")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of timing; 0 leaves it out")
    options = parser.parse_args()
    settings = load_settings()
    model, work, threads = resolve(options.model, settings).path, options.work, options.threads
    work.mkdir(parents=True, exist_ok=True)

    def say(done: float, total: float | None, detail: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {done:.0f}/{total or 0:.0f} {detail}", file=sys.stderr, flush=True)

    rows: dict[str, dict[str, Any]] = {}
    paths = {"as published": model}
    with Workbench(
        model, read_texts([options.text], []), name=options.text.name, tokens=options.tokens, threads=threads,
        folder=work, progress=say,
    ) as bench:  # fmt: skip

        def row(name: str, path: Path, **more: object) -> None:
            found = bench.judging.compare(path)
            size = path.stat().st_size
            weights = sum(prod(tensor.shape) for tensor in bench.source.model.header.tensors)
            rows[name] = {
                "bytes": size, "bits_per_weight": round(8 * size / weights, 3),
                "kld_mean": round(found.kld_mean, 5),
                "kld_interval": found.kld_mean_interval, "kld_p99": round(found.kld_p99, 4),
                "top1_agreement": round(found.top1_agreement, 4), "perplexity": round(found.ppl_b, 3), **more,
            }  # fmt: skip
            print(name, rows[name], file=sys.stderr, flush=True)

        row("as published", model)
        for type in options.types.split(","):
            path = paths[type] = work / f"stock-{type}.gguf"
            if not path.exists():
                quantize_file(model, path, type, importance=bench.source.importance, threads=threads)
            row(type, path)
        budgets = [float(each) for each in options.budgets_mb.split(",")]
        started = time.monotonic()
        kept = work / "costs.json"
        if not kept.exists():
            found = measure_costs(
                bench.source, lambda path: bench.planning.compare(path).kld_mean, threads=threads, folder=work,
                progress=say,
            )  # fmt: skip
            kept.write_text(json.dumps(found.to_json()))
        costs = Costs.from_json(json.loads(kept.read_text()))
        planning = time.monotonic() - started
        for budget in budgets:
            plan = plan_for_budget(bench.source, costs, int(budget * 1e6))
            path = paths[f"plan {budget:g} MB"] = work / f"plan-{budget:g}.gguf"
            started = time.monotonic()
            build(bench.source, plan, path, threads=threads)
            plan.save(path.with_suffix(".json"))
            row(
                f"plan {budget:g} MB", path, expected=round(plan.expected_divergence or 0, 5), tied=plan.tied,
                types=dict(Counter(plan.types.values())), rounded=len(plan.rounded),
                seconds=round(time.monotonic() - started, 1),
            )  # fmt: skip
        against = {
            f"{budget:g}": _against(rows, f"plan {budget:g} MB", int(budget * 1e6), options.types.split(","))
            for budget in budgets
        }
    if options.repeats:
        speed = race({name: (path, threads, Tuning()) for name, path in paths.items()}, "as published",
                     repeats=options.repeats, progress=say)  # fmt: skip
        rows = {name: {**found, **speed[name]} for name, found in rows.items()}
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    print(json.dumps({
        "command": f".venv/bin/python tests/bench/quantization.py {' '.join(words)}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe(), "model": model.name, "reference": "the published file, de-quantized",
        "positions": bench.judging.positions, "threads": threads, "planning_seconds": round(planning, 1),
        "tuning": asdict(Tuning()), "rows": rows, "of_best_stock": against,
    }))  # fmt: skip


def _against(rows: dict[str, dict[str, Any]], ours: str, budget: int, types: list[str]) -> dict[str, Any] | None:
    """Our divergence as a share of that of the best stock type that is no larger."""
    fitting = [type for type in types if rows[type]["bytes"] <= budget]
    if not fitting:
        return None
    best = min(fitting, key=lambda type: rows[type]["kld_mean"])
    return {"best": best, "share": round(rows[ours]["kld_mean"] / rows[best]["kld_mean"], 3)}


if __name__ == "__main__":
    main()
