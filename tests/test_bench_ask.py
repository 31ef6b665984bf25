"""Questions measured end to end with tiny random models: real processes; the figures mean nothing here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bert_models import random_weights, write_bert
from gguf_files import tiny_llama

pytest.importorskip("llama_cpp")

from edge_sdk.bench.ask import MEASURES, bench_ask, private_store, settings_flags
from edge_sdk.bench.start import PARTS, bench_start
from edge_sdk.bench.summary import summarise
from edge_sdk.cli import main
from edge_sdk.config import Settings, load_settings
from edge_sdk.edge import Edge
from edge_sdk.errors import ConfigError, EngineError, StoreError
from edge_sdk.storage.store import Store

QUESTIONS = ["Who built the tower?", "When did it rain?", "Where is the river?"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A store of a few documents, and models with random weights."""
    folder = tmp_path_factory.mktemp("ask")
    write_bert(
        folder / "encoder",
        random_weights(hidden=64, heads=2, inner=96, layers=1, words=259, positions=256),
        "int8",
    )
    model = tiny_llama(folder / "tiny.gguf", context=2048)
    texts = ("Eiffel built the tower in 1889.", "It rained in May.", "The river is in Basel.")
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    flags = {"home": folder / "home", "store": folder / "store.db", "encoder": str(folder / "encoder")}
    settings = load_settings({**flags, "model": str(model), "context": 1024, "threads": 1}, {})
    with Edge.open(settings=settings) as edge:
        assert all(report.status == "added" for report in edge.add(sorted(folder.glob("*.txt"))))
    return settings


def test_every_contender_has_every_measure_and_ours_its_parts(made: Settings) -> None:
    steps: list[str] = []
    result = bench_ask(
        made,
        QUESTIONS,
        style="brief",
        max_tokens=6,
        peer_tokens=600,
        progress=lambda done, total, detail: steps.append(detail),
    )
    assert json.loads(json.dumps(result)) == result
    assert list(result["contenders"]) == ["edge", "llama_class"]
    for figures in result["contenders"].values():
        assert {*MEASURES, "joules"} <= figures.keys()
        for measure in ("first_token_ms", "whole_ms", "prompt_tokens"):
            least, most = figures["spread"][measure]
            assert 0 < least <= figures[measure] <= most <= figures["p95"][measure]
    ours = result["contenders"]["edge"]
    assert 0 < ours["prefill_ms"] <= ours["first_token_ms"] <= ours["whole_ms"]
    assert ours["retrieve_ms"] > 0
    assert result["ratios"]["llama_class_to_edge"]["first_token_ms"] > 0
    assert result["first_question_ms"] > 0
    assert {"llama_class", "llama_cpp_server", "llama_server"} - {*result["contenders"]} == {*result["left_out"]}
    assert result["settings"]["model"] == "tiny"
    assert result["settings"]["questions"] == 3
    assert steps[-4:] == [*QUESTIONS, ""]


def test_without_peers_ours_is_alone_and_the_users_store_is_as_it_was(made: Settings) -> None:
    before = made.store.read_bytes()
    result = bench_ask(made, QUESTIONS[:1], max_tokens=4, with_peers=False)
    assert (list(result["contenders"]), result["ratios"], result["left_out"]) == (["edge"], {}, {})
    assert made.store.read_bytes() == before  # no decision was kept in it
    with private_store(made) as own:
        copy = own.store
        with Store.open(copy) as store:
            assert store.counts().documents == 3
    assert not copy.exists()


def test_a_start_is_measured_in_parts_that_add_up(made: Settings) -> None:
    result = bench_start(made, QUESTIONS[0], rounds=1, style="brief", max_tokens=4, peer_tokens=600)
    assert json.loads(json.dumps(result)) == result
    ours, peer = result["contenders"]["edge"], result["contenders"]["llama_class"]
    assert [name for name in ours["parts_ms"] if name not in ("p95", "spread")] == list(PARTS)
    for figures in (ours, peer):
        parts = [value for name, value in figures["parts_ms"].items() if name not in ("p95", "spread", "rest")]
        assert sum(parts) == pytest.approx(figures["first_token_ms"], rel=0.01)
        assert 0 < figures["first_token_ms"] <= figures["whole_ms"]
        assert figures["peak_mb"] > 1
    assert result["ratios"]["llama_class_to_edge"]["first_token_ms"] > 0
    assert result["python_ms"].keys() >= {"bare", "import", "help"}
    assert result["python_to_bare"]["import"] > 0


def test_what_cannot_be_asked_is_one_line(made: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no question"):
        bench_ask(made, [])
    absent = load_settings({"home": tmp_path, "store": tmp_path / "none.db"}, {})
    with pytest.raises(ConfigError, match="there is no store"):
        bench_ask(absent, QUESTIONS)
    (tmp_path / "damaged.db").write_bytes(b"no store at all" * 100)
    with pytest.raises(StoreError, match="cannot be copied"):
        bench_ask(load_settings({"home": tmp_path, "store": tmp_path / "damaged.db"}, {}), QUESTIONS)
    none = {"encoder": made.encoder, "model": str(tmp_path / "none.gguf")}
    without = load_settings({"home": tmp_path, "store": made.store, **none}, {})
    with pytest.raises(EngineError, match=r"measuring edge failed: .*none\.gguf"):
        bench_ask(without, QUESTIONS)


def test_a_process_is_told_the_flags_and_no_remote(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('threads = 3\nremote = "http://localhost:1/v1"\n')
    settings = load_settings({"home": tmp_path, "context": 777}, {})
    flags = settings_flags(settings)
    assert {name: flags[name] for name in ("context", "remote", "home")} == {
        "context": "777",
        "remote": "",
        "home": str(tmp_path),
    }
    again = load_settings(flags, {})
    assert (again.remote, again.threads, again.context, again.store) == (None, 3, 777, settings.store)
    assert again.prefix_cache == 0
    assert again.sources["encoder"] == settings.sources["encoder"] == "default"


def test_the_commands_print_a_table_a_picture_and_one_document(
    made: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("home", "store", "model", "encoder", "context", "threads")
    given = [part for name in names for part in (f"--{name}", str(getattr(made, name)))]
    plot = tmp_path / "ask.svg"
    asked = ["bench", "ask", QUESTIONS[0], "--no-peers", "--max-tokens", "4", "--plot", str(plot), *given]
    assert main(asked) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["command"].startswith("edge bench ask")
    assert str(tmp_path) not in result["command"]
    assert any("first token ms" in line for line in shown)
    assert plot.read_text().startswith("<?xml")
    assert main(["bench", "start", *given]) == 1
    assert main(["bench", "start", "two", "questions", *given]) == 2


def test_medians_have_the_interval_that_ranks_give_them() -> None:
    found = summarise([{"ms": float(number), "joules": None} for number in range(1, 41)])
    assert (found["ms"], found["p95"], found["spread"]) == (20.5, {"ms": 38.0}, {"ms": [14.0, 27.0]})
    assert found["joules"] is None
