"""Stages of a recipe one by one: what is interrupted goes on, what is too near to the evaluation is not learned."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from gguf_files import tiny_llama
from loopback import Exchange, Loopback
from made_recipes import facts, passage, teach, toml, write_bert_folder, write_documents
from test_ledger_examples import fill

from edge_sdk.config import Settings, load_settings
from edge_sdk.errors import ConfigError, EdgeError, OfflineError
from quantize.collection import Update
from quantize.recipes import teacher_stages
from quantize.recipes.bundle_stages import mini_evaluation
from quantize.recipes.cache import Result, Work
from quantize.recipes.pipeline import stages_of
from quantize.recipes.recipe import read_recipe
from quantize.recipes.stages import Job, needed, plan, run
from quantize.training_data.example import Example, read_examples, write_examples


class Bench:
    """A recipe that ends with curated examples."""

    def __init__(self, folder: Path, documents: int = 6) -> None:
        self.folder, self.path = folder, folder / "recipe.toml"
        write_documents(folder / "manuals", documents)
        self.tiny = str(write_bert_folder(folder / "tiny-bert"))
        self.settings: Settings = load_settings({"home": folder / "home", "threads": 1}, {})

    def write(self, data: dict[str, Any], **tables: Any) -> None:
        values = {"name": "manuals", "data": {"encoder": self.tiny, "unanswerable": 0.0, **data}}
        self.path.write_text(toml({**values, "reader": {"base": self.tiny}, **tables}))

    def remote(self, server: Loopback, **more: Any) -> dict[str, Any]:
        return {"remote": server.url, "remote_model": "lamp", "prices": "1.00/2.00", **more}

    def run(self, until: str, cancel: Event | None = None, **options: Any) -> dict[str, Result]:
        recipe = read_recipe(self.path)
        stages, work = needed(stages_of(recipe, self.settings, **options), until), Work(recipe.work)
        with work.hold():
            return {step.name: step.result for step in run(stages, work, cancel=cancel)}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback(teach) as found:
        yield found


def test_a_teacher_that_was_interrupted_is_asked_for_the_rest_alone(bench: Bench) -> None:
    """Six passages, then their questions: in all six and eighteen requests, whenever the run was stopped."""
    cancel, count = Event(), [0]

    def interrupted(exchange: Exchange) -> None:
        count[0] += 1
        if count[0] == 9:
            cancel.set()
        teach(exchange)

    with Loopback(interrupted) as server:
        bench.write({"documents": "manuals"}, teacher=bench.remote(server, at_once=2))
        assert list(bench.run("teacher", cancel)) == ["passages"]
        state = {
            each.name: each.state
            for each in plan(stages_of(read_recipe(bench.path), bench.settings), Work(bench.folder / "work"))
        }
        assert state["teacher"] == "begun"
        done = bench.run("teacher")["teacher"]
    assert done.figures["kept"] == 18 and done.figures["answered"] == 24
    assert 24 <= count[0] <= 24 + 2  # those under way when it was stopped
    assert done.cost == pytest.approx(24 * (50 * 1.00 + 10 * 2.00) / 1e6)


def test_after_its_minutes_a_teacher_is_asked_about_no_more_passages(
    bench: Bench, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 30)
    monkeypatch.setattr(teacher_stages, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    bench.write({"documents": "manuals"}, teacher=bench.remote(server, minutes=1.5))
    done = bench.run("teacher")["teacher"]
    assert done.figures["answered"] == 2 * 4 and done.figures["kept"] == 2 * 3, "what was begun is finished"


def test_passages_that_are_too_short_are_not_asked_about(bench: Bench, server: Loopback) -> None:
    (bench.folder / "manuals" / "short.md").write_text("# Tarn\n\nA town.\n")
    bench.write({"documents": "manuals", "shortest": 60}, teacher=bench.remote(server))
    assert bench.run("passages")["passages"].figures["passages"] == 6
    bench.write({"documents": "manuals", "shortest": 9_000}, teacher=bench.remote(server))
    with pytest.raises(ConfigError, match=r"all are too short: lower data\.shortest"):
        bench.run("passages")


def test_a_plan_says_what_the_teacher_may_take(bench: Bench, server: Loopback) -> None:
    bench.write({"documents": "manuals"}, teacher=bench.remote(server))
    bench.run("passages")
    stages = stages_of(read_recipe(bench.path), bench.settings)
    told = {each.name: each.expects for each in plan(stages, Work(bench.folder / "work"))}["teacher"]
    assert told.startswith("up to 30 requests, about 0.0")
    assert float(told.split("about ")[1].split()[0]) > bench.run("teacher")["teacher"].cost


def test_a_teacher_that_fails_too_often_leaves_the_stage_undone(bench: Bench) -> None:
    """Two of six passages are refused; once they are not, only they are asked about."""
    refused = ["Norrin", "Aldra"]

    def refusing(exchange: Exchange) -> None:
        asked = exchange.request.json["messages"][-1]["content"]
        if any(f"tower of {name}" in asked for name in refused):
            exchange.send(b"HTTP/1.1 400 Bad\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        else:
            teach(exchange)

    with Loopback(refusing) as server:
        bench.write({"documents": "manuals"}, teacher=bench.remote(server))
        with pytest.raises(EdgeError, match="2 of 18 requests were not answered"):
            bench.run("teacher")
        refused.clear()
        before = len(server.requests)
        assert bench.run("teacher")["teacher"].figures["kept"] == 18
        assert len(server.requests) - before == 2 + 6


def test_questions_of_the_users_own_are_answered_from_the_documents(tmp_path: Path, server: Loopback) -> None:
    """Four documents: all are near, whatever an encoder of random weights makes of them."""
    bench = Bench(tmp_path, 4)
    rows = [{"question": facts(2)[1][0]}, {"question": "Who owns the lighthouse of Aldra?"}]
    (bench.folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bench.write({"documents": "manuals", "unlabelled": "asked.jsonl"}, teacher=bench.remote(server))
    found = list(read_examples(bench.run("teacher")["teacher"].folder / "examples.jsonl"))
    own = {each.question: each for each in found[12:]}
    answered = own[rows[0]["question"]]
    assert answered.answers == (facts(2)[1][1],) and "Bexley" in answered.passage
    assert own[rows[1]["question"]].answers == ()


def test_what_is_learned_from_shares_nothing_with_what_judges(bench: Bench) -> None:
    examples = [Example(question, passage(n), (answer,)) for n in range(24) for question, answer in facts(n)]
    examples += [Example(facts(n)[0][0], passage((n + 5) % 24)) for n in range(24)]
    write_examples(bench.folder / "set.jsonl", examples)
    judged = [Example(facts(3)[2][0], passage(3), (facts(3)[2][1],))]
    write_examples(bench.folder / "judged.jsonl", judged)
    bench.write({"examples": "set.jsonl"}, curate={"away_from": "judged.jsonl"})
    folder = bench.run("curate")["curate"].folder
    parts = [list(read_examples(folder / f"{name}.jsonl")) for name in ("train", "calibration", "held_out")]
    train, rest = parts[0], [*parts[1], *parts[2]]
    assert train and parts[1] and parts[2]
    assert not {each.passage for each in train} & {each.passage for each in rest}
    assert not {each.question for each in train} & {each.question for each in rest}
    assert passage(3) not in {each.passage for part in parts for each in part}
    assert "question of the evaluation set" in (folder / "report.md").read_text()


def test_too_little_data_is_said(bench: Bench) -> None:
    write_examples(bench.folder / "set.jsonl", [Example("Who came here?", "Ann came here." * 6, ("Ann",))])
    bench.write({"examples": "set.jsonl"})
    with pytest.raises(ConfigError, match="of 1 good examples none is left to"):
        bench.run("curate")
    (bench.folder / "set.jsonl").write_text("")
    with pytest.raises(ConfigError, match="gives no examples"):
        bench.run("curate")


def test_the_teacher_elsewhere_is_not_asked_offline(bench: Bench) -> None:
    bench.write({"documents": "manuals"}, teacher={"remote": "http://127.0.0.1:1", "remote_model": "x"})
    bench.settings = load_settings({"home": bench.folder, "offline": True}, {})
    with pytest.raises(OfflineError, match="EDGE_OFFLINE is set"):
        bench.run("teacher")


def test_the_key_of_another_server_is_not_sent(
    bench: Bench, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_REMOTE_KEY", "sk-not-for-this-server")
    bench.write({"documents": "manuals", "passages": 1}, teacher=bench.remote(server))
    bench.run("teacher")
    assert server.requests and b"sk-not-for-this-server" not in server.received
    (bench.folder / "key.txt").write_text("sk-for-this-one\n")
    bench.write({"documents": "manuals", "passages": 2}, teacher=bench.remote(server, key_file="key.txt"))
    bench.run("teacher")
    assert b"Bearer sk-for-this-one" in server.received


def given_set(bench: Bench, count: int = 12) -> str:
    examples = [Example(question, passage(n), (answer,)) for n in range(count) for question, answer in facts(n)]
    write_examples(bench.folder / "set.jsonl", examples)
    return "set.jsonl"


def test_answers_of_the_ledger_are_examples_that_are_never_packed(bench: Bench) -> None:
    fill(bench.folder / "s.db", ("How is the boiler of the Aldra drained?", "through the brass valve", False))
    bench.write({"examples": given_set(bench)})
    made = bench.run("data", ledger=bench.folder / "s.db")["data"]
    assert made.figures["set.jsonl"] == 48 and made.figures["ledger"]["kept"] == 1
    assert [each.source for each in read_examples(made.folder / "examples.jsonl")].count("ledger") == 1
    assert bench.run("data")["data"].figures["examples"] == 48

    held = [
        Example("Who looks after the lamp?", passage(1), ("the keeper",), "ledger"),
        Example("Who?", passage(2), ("x",), "set"),
    ]
    write_examples(bench.folder / "held_out.jsonl", held)
    job = Job(bench.folder, {"curate": Result(bench.folder, "")}, lambda done, total, detail: None, Event())
    assert [row["question"] for row in mini_evaluation(job)] == ["Who?"]


def test_a_whole_decoder_is_trained_on_the_grid_that_it_ships_with(bench: Bench) -> None:
    for package in ("torch", "llama_cpp"):
        pytest.importorskip(package)
    from edge_sdk.engines.engine_gguf import GgufEngine

    base = str(tiny_llama(bench.folder / "tiny-f32.gguf", context=4096))
    part = {"base": base, "method": "full", "quantize": "Q8_0", "epochs": 1, "prompt_tokens": 2000}
    bench.write({"examples": given_set(bench)}, decoder=part)
    made = bench.run("decoder-export")
    assert made["decoder"].figures["finished"] and made["decoder"].figures["steps"] > 0
    engine = GgufEngine.open(made["decoder-export"].folder / "decoder.gguf", context=256)
    assert engine.count("the keeper") > 0
    engine.close()
    bench.write({"examples": "set.jsonl"}, decoder=part | {"quantize": "Q4_K"})
    with pytest.raises(ConfigError, match="do not fill"):
        bench.run("decoder-export")


def test_to_choose_among_a_readers_words_is_learned_after_the_reader(bench: Bench) -> None:
    base = str(tiny_llama(bench.folder / "tiny-f32.gguf", context=4096))
    part = {"base": base, "evidence_tokens": 60}
    given, found = given_set(bench), list[dict[str, Mapping[str, Any]]]()
    for more in ({}, {"extractive": True}):
        bench.write({"examples": given}, decoder=part | more, bundle={"out": "m.edge", "encoder": bench.tiny})
        stages = stages_of(read_recipe(bench.path), bench.settings)
        found.append({stage.name: stage.settings for stage in stages})
    before, after = found
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"decoder", "decoder-export", "evaluate", "assemble", "pack"}


def test_an_interrupted_training_goes_on(bench: Bench) -> None:
    pytest.importorskip("torch")
    bench.write({"examples": given_set(bench)})
    whole = bench.run("reader")["reader"]
    bench.path.write_text(bench.path.read_text().replace('name = "manuals"', 'name = "manuals"\nwork = "again"'))
    cancel = Event()
    recipe = read_recipe(bench.path)
    stages, work = needed(stages_of(recipe, bench.settings), "reader"), Work(recipe.work)

    def progress(stage: str) -> Update:
        def update(done: float, total: float | None, detail: str) -> None:
            if stage == "reader" and done > 0.4:
                cancel.set()

        return update

    with work.hold():
        assert [step.name for step in run(stages, work, progress=progress, cancel=cancel)] == ["data", "curate"]
        again = {step.name: step.result for step in run(stages, work)}["reader"]
    assert again.digest == whole.digest
    assert again.figures["steps"] == whole.figures["steps"] and again.figures["loss"] == whole.figures["loss"]
