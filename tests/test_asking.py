"""Questions that are asked: files read strictly, runs that resume, the remote beside the local model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from threading import Event

import pytest
from made_calibrations import asked

from edge_sdk.edge import Edge
from edge_sdk.errors import CalibrationError, ConfigError, RemoteTimeoutError
from edge_sdk.fakes import FakeEncoder, FakeEngine
from edge_sdk.fallback.remote import FakeRemote
from edge_sdk.privacy.gate import PrivacyPolicy
from edge_sdk.prompt import Reading
from edge_sdk.route import Policy
from edge_sdk.storage.store import Store
from quantize.asking import ask_all, read_asked, read_questions

Questions = list[tuple[str, tuple[str, ...], str]]
QUESTIONS: Questions = [
    (f"What is the number of pump {at}?", (f"number {at}",), "pumps" if at % 2 else "") for at in range(6)
]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_questions_are_read_with_one_answer_or_several_and_a_task(tmp_path: Path) -> None:
    path = write(
        tmp_path / "q.jsonl",
        {"question": "Who?", "answers": ["Ada", "Lovelace"], "task": "names"},
        {"question": "When?", "answer": "1843"},
    )
    assert read_questions(path) == [("Who?", ("Ada", "Lovelace"), "names"), ("When?", ("1843",), "")]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Who?"},
        {"question": 7, "answers": ["a"]},
        {"answers": ["a"]},
        {"question": "a", "answers": []},
    ],
)
def test_a_row_without_question_and_answers_is_named(tmp_path: Path, row: object) -> None:
    path = write(tmp_path / "q.jsonl", {"question": "Fine?", "answers": ["yes"]}, row)
    with pytest.raises(CalibrationError, match="object 2"):
        read_questions(path)


@pytest.mark.parametrize("again", ["Who was it?", "who  was IT?", " Who was it? "])
def test_a_question_that_stands_there_twice_is_refused(tmp_path: Path, again: str) -> None:
    """One copy could be fitted on and the other counted."""
    path = write(
        tmp_path / "q.jsonl", {"question": "Who was it?", "answer": "a"}, {"question": again, "answer": "b"}
    )
    with pytest.raises(CalibrationError, match="twice"):
        read_questions(path)


Make = Callable[..., tuple[Edge, FakeEngine]]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    edges: list[Edge] = []
    folder = tmp_path / "docs"
    folder.mkdir()
    for at in range(6):
        (folder / f"{at}.txt").write_text(f"Pump {at} has the number {at}. It is red.", encoding="utf-8")

    def build(name: str = "fake") -> tuple[Edge, FakeEngine]:
        engine = FakeEngine("It is number 3.", name=name)
        edge = Edge(
            Store.open(tmp_path / "store.db"),
            FakeEncoder,
            lambda: (engine, Reading(600, False)),
            policy=Policy(when_unsure="local"),
        )
        edge.add([folder])
        edges.append(edge)
        return edge, engine

    yield build
    for edge in edges:
        edge.close()


def test_answers_are_kept_and_a_resumed_run_asks_nothing_twice(make: Make, tmp_path: Path) -> None:
    edge, engine = make()
    out = tmp_path / "asked.jsonl"
    first = ask_all(edge, QUESTIONS[:4], out=out)
    assert len(engine.prompts) == 4
    assert [each.question for each in first] == [question for question, _, _ in QUESTIONS[:4]]
    assert all({"evidence", "mean_logprob", "similarity"} <= each.signals.keys() for each in first)
    assert all(each.route == "local" and len(each.vector) == FakeEncoder().dimension for each in first)
    everything = ask_all(edge, QUESTIONS, out=out)
    assert len(engine.prompts) == 6
    assert everything[:4] == first
    assert ask_all(edge, QUESTIONS, out=out) == everything == read_asked(out)
    assert len(engine.prompts) == 6


def test_corrected_answers_count_when_a_run_is_resumed(make: Make, tmp_path: Path) -> None:
    edge, _ = make()
    out = tmp_path / "asked.jsonl"
    ask_all(edge, QUESTIONS[:1], out=out)
    ((question, _, _),) = QUESTIONS[:1]
    (found,) = ask_all(edge, [(question, ("number 3",), "new")], out=out)
    assert (found.answers, found.task) == (("number 3",), "new")


def test_a_line_that_a_kill_has_cut_is_asked_again(make: Make, tmp_path: Path) -> None:
    edge, engine = make()
    out = tmp_path / "asked.jsonl"
    whole = ask_all(edge, QUESTIONS[:3], out=out)
    content = out.read_bytes()
    out.write_bytes(content[:-40])
    assert ask_all(edge, QUESTIONS[:3], out=out) == whole
    assert len(engine.prompts) == 4
    assert out.read_bytes() == content


def test_answers_of_another_model_are_not_taken_for_this_ones(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "asked.jsonl"
    ask_all(make()[0], QUESTIONS[:2], out=out)
    other, engine = make("another")
    with pytest.raises(CalibrationError, match="another model"):
        ask_all(other, QUESTIONS, out=out)
    with pytest.raises(CalibrationError, match="another model, prompt or retrieval"):
        ask_all(make()[0], QUESTIONS, out=out, k=3)
    assert engine.prompts == []


def remote_edge(make: Make, mode: str, *replies: str | RemoteTimeoutError) -> tuple[Edge, FakeEngine, FakeRemote]:
    edge, engine = make()
    remote = FakeRemote(*replies)
    edge.remote, edge.privacy = remote, PrivacyPolicy(mode)  # type: ignore[arg-type]
    edge.learned = None
    assert edge.handoff is not None
    edge.handoff.queues = False
    return edge, engine, remote


@pytest.mark.parametrize("mode", ["prefer_local", "prefer_remote"])
def test_the_remote_is_asked_once_a_question_beside_the_local_model(make: Make, mode: str) -> None:
    edge, engine, remote = remote_edge(make, mode, "number 0", "number 1")
    found = ask_all(edge, QUESTIONS[:2])
    assert [(each.text, each.route, each.remote) for each in found] == [
        ("It is number 3.", "local", "number 0"),
        ("It is number 3.", "local", "number 1"),
    ]
    assert (len(engine.prompts), len(remote.requests)) == (2, 2)
    assert edge.remote is remote


def test_answers_that_lack_the_remotes_are_asked_again_and_a_failed_call_is_one_line(
    make: Make, tmp_path: Path
) -> None:
    out = tmp_path / "asked.jsonl"
    ask_all(make()[0], QUESTIONS[:2], out=out)
    edge, _, _ = remote_edge(make, "prefer_local", "number 0", RemoteTimeoutError("too slow"))
    with pytest.raises(CalibrationError, match="too slow"):
        ask_all(edge, QUESTIONS[:2], out=out)
    assert [each.remote for each in read_asked(out)] == [None, None, "number 0"]
    again, _, remote = remote_edge(make, "prefer_local", "number 1")
    assert [each.remote for each in ask_all(again, QUESTIONS[:2], out=out)] == ["number 0", "number 1"]
    assert len(remote.requests) == 1


def test_in_local_only_mode_a_configured_remote_is_left_alone(make: Make) -> None:
    edge, _, remote = remote_edge(make, "local_only", "number 0")
    assert [each.remote for each in ask_all(edge, QUESTIONS[:1])] == [None]
    assert remote.requests == []


def test_a_cancelled_run_keeps_what_it_has(make: Make, tmp_path: Path) -> None:
    edge, _ = make()
    cancel, out = Event(), tmp_path / "asked.jsonl"

    def stop(done: float, total: float | None, detail: str) -> None:
        if done == 2:
            cancel.set()

    assert len(ask_all(edge, QUESTIONS, out=out, progress=stop, cancel=cancel)) == 2
    assert len(read_asked(out)) == 2


def test_a_file_that_cannot_be_written_is_one_line(make: Make, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be written"):
        ask_all(make()[0], QUESTIONS, out=tmp_path / "nowhere" / "asked.jsonl")


@pytest.mark.parametrize(
    "change",
    [
        {"vector": None},
        {"vector": ["a"]},
        {"vector": [float("nan")]},
        {"signals": {"evidence": "much"}},
        {"signals": []},
        {"answers": "yes"},
        {"answers": None},
        {"question": 7},
        {"extra": 1},
    ],
)
def test_a_row_that_was_not_kept_by_it_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    good = asdict(asked(1)[0])
    path = write(tmp_path / "asked.jsonl", good, {**good, **change})
    with pytest.raises(CalibrationError, match="object 2"):
        read_asked(path)


def test_a_file_that_is_no_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text("}\n")
    with pytest.raises(ConfigError, match="line 1 is not JSON"):
        read_asked(tmp_path / "asked.jsonl")
    assert read_asked(None) == read_asked(tmp_path / "none.jsonl") == []
