"""`edge distill RECIPE` as a person uses it: a plan, one line for what is wrong, and Ctrl-C."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from loopback import Exchange, Loopback
from made_recipes import facts, passage, teach, toml, write_bert_folder, write_documents

from edge_sdk.cli import main
from quantize.training_data.example import Example, write_examples


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """From given examples to curated ones; nothing is asked."""
    tiny = str(write_bert_folder(tmp_path / "tiny-bert"))
    examples = [Example(question, passage(n), (answer,)) for n in range(12) for question, answer in facts(n)]
    write_examples(tmp_path / "set.jsonl", examples)
    values = {"name": "manuals", "data": {"examples": "set.jsonl", "encoder": tiny}, "reader": {"base": tiny}}
    (tmp_path / "recipe.toml").write_text(toml(values))
    return tmp_path / "recipe.toml"


def distill(recipe: Path, *more: str) -> int:
    return main(["distill", str(recipe), "--home", str(recipe.parent / "home"), *more])


def test_a_plan_and_a_run_are_lines_for_people(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill(recipe, "--plan") == 0
    plan = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert plan == [["data", "to"], ["curate", "waits"], ["reader", "waits"], ["reader-export", "waits"],
                    ["evaluate", "waits"]]  # fmt: skip
    assert not (recipe.parent / "work").exists()
    assert distill(recipe, "--until", "curate") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("data") and "set.jsonl 48" in out[0]
    assert out[1].startswith("curate") and out[2].strip().endswith("report.md")
    assert distill(recipe, "--until", "curate") == 0
    assert "as before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[data]", "[data]\nkeep = 3"), "recipe.toml.data has an unknown key keep"),
        (("set.jsonl", "none.jsonl"), "none.jsonl cannot be read"),
        (("[reader]", "[decoder]\nbase = 'nope'\n[reader]"), "nope"),
    ],
)
def test_what_is_wrong_is_one_line(
    recipe: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], words: str
) -> None:
    recipe.write_text(recipe.read_text().replace(*change))
    assert distill(recipe) == 1
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


def test_an_unknown_stage_and_an_unknown_file_are_named(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill(recipe, "--until", "cook") == 1
    assert "no stage 'cook'; its stages are data, curate, reader" in capsys.readouterr().err
    assert distill(recipe.parent / "none.toml") == 1
    assert "none.toml cannot be read" in capsys.readouterr().err
    assert distill(recipe, "--from-ledger", "--store", str(recipe.parent / "none.db")) == 1
    assert "none.db" in capsys.readouterr().err


def test_ctrl_c_stops_and_the_next_run_goes_on(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = 0

    def interrupted(exchange: Exchange) -> None:
        nonlocal count
        count += 1
        if count == 5:
            os.kill(os.getpid(), signal.SIGINT)
        teach(exchange)

    write_documents(recipe.parent / "manuals", 6)
    with Loopback(interrupted) as server:
        text = recipe.read_text().replace("[data]", '[data]\ndocuments = ["manuals"]')
        recipe.write_text(text + f'[teacher]\nremote = "{server.url}"\nremote_model = "lamp"\nat_once = 2\n')
        assert distill(recipe, "--until", "data") == 130
        assert "stopped; what is done is kept in" in capsys.readouterr().err
        assert distill(recipe, "--until", "data") == 0
    assert 24 <= count <= 26
