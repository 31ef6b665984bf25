"""Stages: functions from results to a result, each run once for one content of what it reads.

A stage that is interrupted goes on where its own journals and checkpoints are; one that is done is never run again
until its code, its part of the recipe or the content of its inputs differs. Knows nothing of what stages do.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Literal

from edge_sdk.errors import ConfigError

from ..collection import Update
from .cache import SCRATCH, Result, Work, input_digest, stage_key

State = Literal["done", "begun", "to do", "waits"]


@dataclass
class Job:
    """One run of a stage. Results go into `folder`; `scratch`, below it, survives an interruption and nothing else.

    `results` are those of the stages before it, by name. A stage returns early, whatever it has, once `cancel` is
    set. `cost` is money spent, where prices are known.
    """

    folder: Path
    results: Mapping[str, Result]
    progress: Update
    cancel: Event
    cost: float = 0.0

    @property
    def scratch(self) -> Path:
        """For journals and checkpoints."""
        return self.folder / SCRATCH


@dataclass(frozen=True)
class Stage:
    """What a stage does and all that decides its result.

    `version` is raised whenever the same inputs would give another result. `settings` is its part of the recipe,
    `files` what it reads of the user's, `after` the stages whose results it reads. `make` returns figures for
    people and for later stages. `expects` says in words what it will take, from the results before it.
    """

    name: str
    version: int
    make: Callable[[Job], Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    expects: Callable[[Mapping[str, Result]], str] | None = None

    def key(self, results: Mapping[str, Result]) -> str:
        """The hash under which its result is kept. Raises `ConfigError` for a file that cannot be read."""
        inputs = {name: input_digest(path) for name, path in self.files.items()}
        inputs |= {f"stage {name}": results[name].digest for name in self.after}
        return stage_key(self.name, self.version, self.settings, inputs)


@dataclass(frozen=True)
class Planned:
    """A stage before a run: it `waits` where a stage before it has to be run first, so nothing more is known.

    `seconds` is what it has taken the last time, whatever its inputs were.
    """

    name: str
    state: State
    seconds: float | None = None
    cost: float | None = None
    expects: str = ""


@dataclass(frozen=True)
class Step:
    """A stage that is done, now or (`cached`) before."""

    name: str
    result: Result
    cached: bool


def plan(stages: Sequence[Stage], work: Work) -> list[Planned]:
    """What a run would do. Nothing is written."""
    found: list[Planned] = []
    results: dict[str, Result] = {}
    for stage in stages:
        last = work.last_seconds(stage.name)
        if any(name not in results for name in stage.after):
            found.append(Planned(stage.name, "waits", last))
            continue
        key = stage.key(results)
        if (result := work.find(stage.name, key)) is not None:
            results[stage.name] = result
            found.append(Planned(stage.name, "done", result.seconds, result.cost))
        else:
            expects = stage.expects(results) if stage.expects else ""
            found.append(
                Planned(stage.name, "begun" if work.begun(stage.name, key) else "to do", last, None, expects)
            )
    return found


def run(
    stages: Sequence[Stage],
    work: Work,
    *,
    progress: Callable[[str], Update] = lambda stage: lambda done, total, detail: None,
    cancel: Event | None = None,
) -> Iterator[Step]:
    """Run the stages in their order, each when it is asked for; ends without an error once `cancel` is set.

    `progress` gives the function that a stage tells how far it is. What a stage raises goes through; what it has
    kept in its `scratch` is there for the next run. Hold the work folder meanwhile (`Work.hold`).
    """
    cancel = cancel or Event()
    results: dict[str, Result] = {}
    for stage in stages:
        key = stage.key(results)
        result = work.find(stage.name, key)
        cached = result is not None
        if result is None:
            started = time.perf_counter()
            job = Job(work.begin(stage.name, key), results, progress(stage.name), cancel)
            figures = stage.make(job)
            if cancel.is_set():
                return
            result = work.finish(stage.name, key, figures, time.perf_counter() - started, job.cost)
            _give_back()
        results[stage.name] = result
        yield Step(stage.name, result, cached)


def _give_back() -> None:
    """What a stage has freed goes back to the system, for the next one: a C library would keep gigabytes of it."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # where there is no glibc
        ctypes.CDLL(None).malloc_trim(0)


def needed(stages: Sequence[Stage], last: str) -> list[Stage]:
    """The stage `last` and those that it builds on. Raises `ConfigError` where there is none of that name."""
    by_name = {stage.name: stage for stage in stages}
    if last not in by_name:
        raise ConfigError(f"the recipe has no stage {last!r}", hint=f"its stages are {', '.join(by_name)}")
    wanted, queue = set(), [last]
    while queue:
        name = queue.pop()
        if name not in wanted:
            wanted.add(name)
            queue += by_name[name].after
    return [stage for stage in stages if stage.name in wanted]
