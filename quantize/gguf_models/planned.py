"""`edge quantize` with a budget or a bound instead of a type: planned, built, and judged on text kept aside.

Knows no command line; `mixed` measures and builds, `allocation` plans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from threading import Event
from typing import Any

from edge_sdk.errors import ConfigError

from .allocation import Plan, smallest
from .divergence import Divergence
from .gguf_format import Update, temporary
from .importance_matrix import Importance
from .mixed import Costs, Source, build, measure_costs, plan_for_budget, require_budget
from .tensors import GgufModel
from .workbench import Workbench

_TRIES = 5  # files that are built to meet a bound on divergence
_MARGIN = 0.95  # aimed at, of the bound


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file that was made by a plan. `divergence` is None where no text was given to judge by."""

    path: Path
    bytes: int
    source_bytes: int
    bits_per_weight: float
    plan: Plan
    divergence: Divergence | None

    def facts(self) -> dict[str, Any]:
        """The JSON document of the command."""
        found = {} if self.divergence is None else asdict(self.divergence)
        return {
            "bytes": self.bytes,
            "source_bytes": self.source_bytes,
            "bits_per_weight": self.bits_per_weight,
            "types": dict(Counter(self.plan.types.values())),
            "tied": self.plan.tied,
            "expected_divergence": self.plan.expected_divergence,
            "reference": "the source, de-quantized",
            **found,
        }


def quantize_by_plan(
    model: Path,
    out: Path,
    plan: Plan,
    *,
    importance: Importance | None = None,
    threads: int = 1,
    progress: Update = lambda done, total, detail: None,
    cancel: Event | None = None,
) -> PlannedFile:
    """Repeat a plan, edited or not. Raises `ConfigError` where it is for another file or needs an importance."""
    source = Source(GgufModel(model), importance)
    if plan.rounded and importance is None:
        raise ConfigError("the plan rounds for outputs, which needs a text", hint="give --calibration-text")
    return _built(source, plan, out, None, threads, progress, cancel)


def quantize_to_bound(
    model: Path,
    out: Path,
    texts: Sequence[str],
    *,
    name: str,
    budget: int | None = None,
    most_divergence: float | None = None,
    importance: Importance | None = None,
    threads: int = 1,
    progress: Update = lambda done, total, detail: None,
    cancel: Event | None = None,
) -> PlannedFile:
    """The file with the least divergence within `budget` bytes, or the smallest within `most_divergence`.

    `texts`, from `name`, are cut in three: for the importance, for planning, for judging. Nothing is at `out`
    before the file is whole. Raises `ConfigError` naming what can be had where the bound cannot be met.
    """
    if budget is not None:
        require_budget(Source(GgufModel(model)), budget)  # measuring takes minutes
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with Workbench(
        model, texts, name=name, importance=importance, threads=threads, folder=out.absolute().parent,
        progress=progress, cancel=cancel,
    ) as bench:  # fmt: skip
        costs = measure_costs(
            bench.source,
            lambda path: bench.planning.compare(path, cancel=cancel).kld_mean,
            threads=threads,
            folder=out.absolute().parent,
            progress=progress,
            cancel=cancel,
        )
        if budget is not None:
            plan = plan_for_budget(bench.source, costs, budget)
            return _built(bench.source, plan, out, bench, threads, progress, cancel)
        assert most_divergence is not None
        return _smallest_within(bench, costs, most_divergence, out, threads, progress, cancel)


def _smallest_within(
    bench: Workbench, costs: Costs, bound: float, out: Path, threads: int, progress: Update, cancel: Event | None
) -> PlannedFile:
    """Plans that aim ever closer to the bound, by how far the last one's divergence was from what was expected."""
    best: PlannedFile | None = None
    aim, met, closest = _MARGIN * bound, 0.0, float("inf")
    with temporary(out, bench.source.model.header.file_bytes) as partial:
        for left in reversed(range(_TRIES)):
            plan = _plan_within(bench.source, costs, aim)
            candidate = partial.with_suffix(".candidate")
            try:
                found = _built(bench.source, plan, candidate, bench, threads, progress, cancel)
                measured = found.divergence.kld_mean if found.divergence else 0.0
                closest = min(closest, measured)
                if measured <= bound and (best is None or found.bytes < best.bytes):
                    candidate.replace(partial)
                    best = found
            finally:
                candidate.unlink(missing_ok=True)
            if 0.9 * bound <= measured <= bound or aim == 0:
                break
            ratio = _MARGIN * bound / (measured or bound)  # above 1: there is room for fewer bytes
            if measured <= bound:
                met, aim = aim, aim * min(ratio, 2)
            else:
                aim = met + (aim - met) * min(ratio, 0.8) if best or left > 1 else 0.0  # all that can be done
        if best is None:
            raise ConfigError(
                f"a divergence of {bound:g} cannot be met: the closest has {closest:.4f}",
                hint=f"give --max-kld {closest * 1.05:.4f} or more",
            )
        return replace(best, path=out)


def _plan_within(source: Source, costs: Costs, aim: float) -> Plan:
    """The smallest plan whose divergence is expected to be at most `aim`."""
    low = costs.fixed + smallest(costs.choices) + 64 * len(source.model.tensors)
    high = costs.fixed + 64 * len(source.model.tensors)
    high += sum(max(choice.bytes for choice in options) for options in costs.choices.values())
    while high - low > 10_000:
        middle = (low + high) // 2
        if (plan_for_budget(source, costs, middle).expected_divergence or 0.0) <= aim:
            high = middle
        else:
            low = middle
    return plan_for_budget(source, costs, high)


def _built(
    source: Source, plan: Plan, out: Path, bench: Workbench | None, threads: int, progress: Update,
    cancel: Event | None,
) -> PlannedFile:  # fmt: skip
    header = build(source, plan, out, threads=threads, progress=progress, cancel=cancel)
    weights = sum(prod(tensor.shape) for tensor in header.tensors)
    found = None if bench is None else bench.judging.compare(out, progress=progress, cancel=cancel)
    size = out.stat().st_size
    return PlannedFile(out, size, source.model.header.file_bytes, 8 * size / weights, plan, found)
