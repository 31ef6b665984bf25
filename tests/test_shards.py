"""Work in shards gives what the work in one piece gives, here and on a Ray cluster of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from teachers import requests_of

from edge_sdk.encoders.embed import Encoder
from edge_sdk.errors import ContextOverflowError, EdgeError, MissingExtraError
from edge_sdk.fakes import FakeEncoder
from quantize.recipes.shards import Here, OnRay, Runner, ShardedEncoder, ShardedTeacher
from quantize.teachers.teacher import Reply, Request, Teacher

REQUESTS = requests_of(*(f"question {number}" for number in range(10)))


class Shouting:
    """Replies in the reverse order; some requests do not fit."""

    fingerprint = "shouting"

    def replies(self, requests: Sequence[Request], cancel: Event | None = None) -> Iterator[tuple[int, Reply]]:
        for at in reversed(range(len(requests))):
            text = requests[at].messages[-1].content
            if "too long" in text:
                raise ContextOverflowError(9, 9, 9)
            yield at, Reply(text.upper(), "stop", 1, 1)


@dataclass(frozen=True)
class OpenShouting:
    def __call__(self) -> Teacher:
        return Shouting()


@dataclass(frozen=True)
class OpenFake:
    def __call__(self) -> Encoder:
        return FakeEncoder(16)


def check_a_sharded_teacher_answers_as_one(runner: Runner) -> None:
    teacher = ShardedTeacher(OpenShouting(), "shouting", runner, 3)
    found = dict(teacher.replies(REQUESTS))
    assert sorted(found) == list(range(10))
    assert [found[at].text for at in range(10)] == [f"QUESTION {number}" for number in range(10)]


def check_a_sharded_encoder_gives_the_same_vectors(runner: Runner) -> None:
    texts, whole = [f"word{number} tea" for number in range(11)], FakeEncoder(16)
    sharded = ShardedEncoder(OpenFake(), runner, 4, fingerprint=whole.fingerprint, dimension=16)
    assert np.array_equal(sharded.encode(texts), whole.encode(texts))
    assert sharded.encode([]).shape == (0, 16)


def check_an_error_of_a_shard_is_the_users(runner: Runner) -> None:
    """Also one whose class takes more than a message, which cannot be pickled."""
    teacher = ShardedTeacher(OpenShouting(), "shouting", runner, 2)
    with pytest.raises(EdgeError, match="do not fit a context of 9"):
        list(teacher.replies([*REQUESTS[:3], *requests_of("too long")]))


CHECKS = (
    check_a_sharded_teacher_answers_as_one,
    check_a_sharded_encoder_gives_the_same_vectors,
    check_an_error_of_a_shard_is_the_users,
)


@pytest.mark.parametrize("check", CHECKS)
def test_in_this_process(check: Callable[[Runner], None]) -> None:
    check(Here())


@pytest.mark.campaign
def test_on_a_ray_cluster_of_this_machine() -> None:
    """In a process of its own: Ray leaves others behind, of which Python warns. Takes half a minute to start."""
    pytest.importorskip("ray")
    script = (
        "import test_shards as tests\nfrom quantize.recipes.shards import OnRay\n"
        "with OnRay('local') as runner:\n    for check in tests.CHECKS:\n        check(runner)\nprint('all held')"
    )
    folder, patience = Path(__file__).parent, {"RAY_agent_register_timeout_ms": "180000"}
    patience["RAY_raylet_start_wait_time_s"] = "180"  # a busy machine is slow to start its processes
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, **patience, "PYTHONPATH": f"{folder}{os.pathsep}{folder.parent}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.splitlines()[-1:] == ["all held"], done.stderr


def test_a_cancelled_run_begins_no_other_shard() -> None:
    begun: list[Any] = []

    class Counting(Here):
        def map(self, function: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[tuple[int, Any]]:
            for number, shard in enumerate(shards):
                begun.append(shard)
                yield number, function(shard)

    cancel = Event()
    teacher = ShardedTeacher(OpenShouting(), "shouting", Counting(), 2)
    found = []
    for position, _ in teacher.replies(REQUESTS, cancel):
        found.append(position)
        if len(found) == 3:
            cancel.set()
    assert len(begun) == 2 and sorted(found) == [0, 1, 2, 3]


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"edge-sdk\[ray\]"):
        OnRay()
