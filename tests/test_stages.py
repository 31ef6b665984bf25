"""Stages run once, in order, and again only where something that decides their result is another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from edge_sdk.errors import ConfigError, EngineError
from quantize.recipes.cache import Work
from quantize.recipes.stages import Job, Stage, needed, plan, run


class Kitchen:
    """Three stages: words of a file, in capitals, and how many there are; `ran` says which have run."""

    def __init__(self, folder: Path) -> None:
        self.source, self.work, self.ran = folder / "source.txt", Work(folder / "work"), list[str]()
        self.source.write_text("some words")
        self.fail: Exception | None = None
        self.versions = {"words": 1, "capitals": 1, "count": 1}

    def stages(self) -> list[Stage]:
        return [
            Stage("words", self.versions["words"], self._words, files={"source": self.source}),
            Stage("capitals", self.versions["capitals"], self._capitals, after=("words",)),
            Stage("count", self.versions["count"], self._count, {"unit": "words"}, after=("words",)),
        ]

    def _words(self, job: Job) -> Mapping[str, Any]:
        self.ran.append("words")
        (job.folder / "words.txt").write_text("\n".join(self.source.read_text().split()))
        job.cost = 0.5
        return {}

    def _capitals(self, job: Job) -> Mapping[str, Any]:
        self.ran.append("capitals")
        words = (job.results["words"].folder / "words.txt").read_text()
        for number, word in enumerate(words.split()):
            mark = job.scratch / str(number)
            if not mark.exists():
                if self.fail is not None and number == 1:
                    raise self.fail
                mark.write_text(word.upper())
                self.ran.append(word)
        (job.folder / "capitals.txt").write_text(words.upper())
        return {}

    def _count(self, job: Job) -> Mapping[str, Any]:
        self.ran.append("count")
        return {"count": len((job.results["words"].folder / "words.txt").read_text().split())}

    def cook(self, **options: Any) -> list[tuple[str, bool]]:
        self.ran.clear()
        with Work(self.work.folder).hold():
            return [(step.name, step.cached) for step in run(self.stages(), Work(self.work.folder), **options)]


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path)


def test_a_second_run_does_nothing(kitchen: Kitchen) -> None:
    assert kitchen.cook() == [("words", False), ("capitals", False), ("count", False)]
    assert kitchen.cook() == [("words", True), ("capitals", True), ("count", True)]
    assert kitchen.ran == []


def test_equal_results_end_the_work(kitchen: Kitchen) -> None:
    """Another file with the same words: what builds on the words stays."""
    kitchen.cook()
    kitchen.source.write_text("some   words\n")
    assert kitchen.cook() == [("words", False), ("capitals", True), ("count", True)]
    kitchen.source.write_text("other words")
    assert kitchen.cook() == [("words", False), ("capitals", False), ("count", False)]


def test_another_version_of_one_stage_runs_that_one(kitchen: Kitchen) -> None:
    kitchen.cook()
    kitchen.versions["count"] = 2
    assert kitchen.cook() == [("words", True), ("capitals", True), ("count", False)]


def test_a_stage_that_fails_goes_on_where_it_was(kitchen: Kitchen) -> None:
    kitchen.fail = EngineError("no memory")
    with pytest.raises(EngineError, match="no memory"):
        kitchen.cook()
    assert kitchen.ran == ["words", "capitals", "some"]
    assert [(each.name, each.state) for each in plan(kitchen.stages(), kitchen.work)] == [
        ("words", "done"),
        ("capitals", "begun"),
        ("count", "to do"),
    ]
    kitchen.fail = None
    assert kitchen.cook() == [("words", True), ("capitals", False), ("count", False)]
    assert kitchen.ran == ["capitals", "words", "count"]


def test_what_was_cancelled_is_not_taken_for_done(kitchen: Kitchen) -> None:
    cancel = Event()
    cancel.set()
    assert kitchen.cook(cancel=cancel) == []
    assert kitchen.cook() == [("words", False), ("capitals", False), ("count", False)]


def test_a_plan_knows_what_waits_and_writes_nothing(kitchen: Kitchen) -> None:
    assert [(each.name, each.state) for each in plan(kitchen.stages(), kitchen.work)] == [
        ("words", "to do"),
        ("capitals", "waits"),
        ("count", "waits"),
    ]
    assert not kitchen.work.folder.exists()
    kitchen.cook()
    done = plan(kitchen.stages(), Work(kitchen.work.folder))
    assert [each.state for each in done] == ["done"] * 3 and done[0].cost == 0.5


def test_what_a_stage_builds_on_is_found(kitchen: Kitchen) -> None:
    assert [stage.name for stage in needed(kitchen.stages(), "count")] == ["words", "count"]
    with pytest.raises(ConfigError, match="no stage 'tea'; its stages are words, capitals, count"):
        needed(kitchen.stages(), "tea")


def test_a_missing_input_is_named(kitchen: Kitchen) -> None:
    kitchen.source.unlink()
    with pytest.raises(ConfigError, match=r"source\.txt cannot be read"):
        kitchen.cook()
