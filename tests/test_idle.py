"""What is done when nothing has been going on for a while."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from edge_sdk.edge import Edge
from edge_sdk.errors import EngineError
from edge_sdk.fakes import FakeEncoder, FakeEngine
from edge_sdk.idle import IdleTimer
from edge_sdk.prompt import Reading
from edge_sdk.storage.store import Store


def test_it_acts_once_when_the_last_of_several_has_ended() -> None:
    acted: list[str] = []
    done = Event()

    def act() -> None:
        acted.append("now")
        done.set()

    timer = IdleTimer(0.001, act)
    with timer.busy():
        with timer.busy():
            acted.append("inner")
        acted.append("outer")
    assert done.wait(10)
    assert acted == ["inner", "outer", "now"]
    timer.stop()


def test_it_never_acts_while_something_is_open() -> None:
    acted = Event()
    timer = IdleTimer(0.0, acted.set)
    with timer.busy():
        timer._idle()  # a timer that had fired just before
        assert not acted.is_set()
    assert acted.wait(10)
    timer.stop()


def test_when_stopped_or_without_seconds_it_never_acts() -> None:
    acted = Event()
    timer = IdleTimer(0.0, acted.set)
    timer.stop()
    with timer.busy():
        pass
    timer._idle()
    never = IdleTimer(None, acted.set)
    with never.busy():
        pass
    assert never._timer is None
    assert timer._timer is None
    assert not acted.is_set()


# --- in an assistant --------------------------------------------------------------------------------


@pytest.fixture
def engines() -> list[FakeEngine]:
    """The engines that the assistant has loaded, in order."""
    return []


@pytest.fixture
def edge(tmp_path: Path, engines: list[FakeEngine]) -> Iterator[Edge]:
    (tmp_path / "manual.txt").write_text("Press the red button to reset the pump.", encoding="utf-8")

    def load() -> tuple[FakeEngine, Reading]:
        engines.append(FakeEngine("Press the red button [1]."))
        return engines[-1], Reading(600, True)

    with Edge(Store.open(tmp_path / "store.db"), FakeEncoder, load, unload_after=0.001) as opened:
        opened.add([tmp_path / "manual.txt"])
        yield opened


def closed(engine: FakeEngine) -> bool:
    try:
        engine.count("a")
    except EngineError:
        return True
    return False


QUESTION = "How do I reset the pump?"


def test_an_unloaded_model_is_loaded_again_by_the_next_question(edge: Edge, engines: list[FakeEngine]) -> None:
    edge.unload()  # nothing to do
    first = edge.engine
    edge.unload()
    assert closed(engines[0])
    assert edge.engine is not first
    assert edge.ask(QUESTION).route == "local"
    assert len(engines) >= 2


def test_a_slow_reader_of_an_answer_keeps_the_model(edge: Edge, engines: list[FakeEngine]) -> None:
    events = edge.stream(QUESTION)
    while next(events).kind != "provisional":
        pass
    edge.idle._idle()  # a timer that had fired just before
    assert not closed(engines[0])
    assert list(events)[-1].answer is not None


def test_an_idle_assistant_frees_its_model(edge: Edge, engines: list[FakeEngine]) -> None:
    freed = Event()
    unload = edge.idle._act

    def act() -> None:
        unload()
        freed.set()

    edge.idle._act = act
    edge.ask(QUESTION)
    assert freed.wait(10)
    assert closed(engines[0])
    assert edge.ask(QUESTION).route == "local"


def test_a_dropped_answer_is_not_busy_for_ever(edge: Edge) -> None:
    events = edge.stream(QUESTION)
    next(events)
    assert edge.idle._open == 1
    events.close()  # type: ignore[attr-defined]
    assert edge.idle._open == 0
