"""Answers of two models compared question by question, and the way to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from threading import Event as Flag
from typing import Any

import pytest
from gguf_files import tiny_llama

from edge_sdk.cli import main
from edge_sdk.config import Settings, load_settings
from edge_sdk.errors import CalibrationError, ConfigError
from edge_sdk.fakes import FakeEncoder, FakeEngine
from edge_sdk.prompt import Reading
from quantize.asking import Asked
from quantize.gguf_models.flips import answer_questions, compare_answers, measure_flips

PASSAGES = [
    {"id": "p1", "title": "Rivers", "text": "The Rhine flows through Basel and Cologne to Rotterdam."},
    {"id": "p2", "title": "Stars", "text": "Sirius is the brightest star of the night sky."},
    {"id": "p3", "title": "Tea", "text": "Green tea is brewed with water of eighty degrees."},
]
QUESTIONS = [
    {"id": "q1", "question": "Which river flows through Basel?", "answers": ["Rhine"], "passage_id": "p1"},
    {"id": "q2", "question": "What is the brightest star?", "answers": ["Sirius"], "passage_id": "p2"},
    {"id": "q3", "question": "How hot is water for green tea?", "answers": ["eighty degrees"], "passage_id": "p3"},
]
ANSWERS = {"a.gguf": "Rhine", "b.gguf": "Sirius, the star"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, rows in (("passages", PASSAGES), ("questions", QUESTIONS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """Engines that say one thing each, by the name of their file."""
    opened: list[FakeEngine] = []

    def open_(path: Path, *, context: int, threads: int | None) -> FakeEngine:
        opened.append(FakeEngine(ANSWERS[path.name], name=path.stem))
        return opened[-1]

    monkeypatch.setattr("edge_sdk.engines.engine_gguf.GgufEngine.open", open_)
    monkeypatch.setattr("quantize.gguf_models.flips.load_encoder", lambda settings: FakeEncoder())
    return opened


def settings(home: Path) -> Settings:
    return load_settings({"home": home / "home"}, {})


def asked(question: str, text: str, logprob: float | None = -1.0, answers: tuple[str, ...] = ("tea",)) -> Asked:
    signals = {} if logprob is None else {"mean_logprob": logprob}
    return Asked(question, answers, "", text, "local", signals, (0.0,))


def test_a_comparison_is_worked_out_as_by_hand() -> None:
    a = [asked("1", "tea", -0.1), asked("2", "tea", -0.2), asked("3", "ale", -2.0), asked("4", "ale", -3.0)]
    b = [asked("4", "tea", -0.5), asked("3", "ale", -2.5), asked("2", "rum", -0.4), asked("1", "the tea", -0.3)]
    found = compare_answers(a, [*b, asked("5", "only B", -9.0)])
    assert (found.n, found.right_a, found.right_b, found.right_change) == (4, 0.5, 0.5, 0.0)
    assert (found.lost, found.gained, found.identical) == (1, 1, 0.25)
    assert found.mean_logprob_a == pytest.approx(-5.3 / 4)
    assert found.mean_logprob_b == pytest.approx(-3.7 / 4)
    assert found.logprob_change == pytest.approx(1.6 / 4)
    low, high = found.logprob_change_interval
    assert -0.5 <= low < 0.4 < high <= 2.5
    assert (found.auroc_a, found.auroc_b) == (1.0, 0.75)


def test_the_same_answers_do_not_flip() -> None:
    answers = [asked(str(at), "tea" if at % 3 else "ale", -0.1 * at) for at in range(12)]
    found = compare_answers(answers, answers)
    assert (found.lost, found.gained, found.identical, found.right_change) == (0, 0, 1.0, 0.0)
    assert found.right_change_interval == found.logprob_change_interval == (0.0, 0.0)


def test_one_kind_of_answer_has_no_auroc_and_no_signal_no_logprob() -> None:
    found = compare_answers([asked("1", "tea", None)], [asked("1", "tea", -1.0)])
    assert found.auroc_a is found.auroc_b is None
    assert (found.mean_logprob_a, found.mean_logprob_b) == (0.0, 0.0)


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no question was answered by both"):
        compare_answers([asked("1", "tea")], [asked("2", "tea")])


def test_both_models_get_the_same_prompts(data: Path, engines: list[FakeEngine]) -> None:
    found = measure_flips(data / "a.gguf", data / "b.gguf", data, settings(data), reading=Reading(300, False))
    assert [engine.name for engine in engines] == ["a", "b"]
    assert engines[0].prompts == engines[1].prompts and len(engines[0].prompts) == 3
    assert (found.n, found.right_a, found.right_b) == (3, pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (found.lost, found.gained) == (1, 1)


def test_answers_are_kept_and_not_asked_for_again(data: Path, engines: list[FakeEngine]) -> None:
    out, own = data / "kept.jsonl", settings(data)
    part = measure_flips(data / "a.gguf", data / "b.gguf", data, own, limit=2, out=out)
    found = measure_flips(data / "a.gguf", data / "b.gguf", data, own, out=out)
    assert (part.n, found.n) == (2, 3)
    assert [len(engine.prompts) for engine in engines] == [2, 2, 1, 1]
    with pytest.raises(CalibrationError, match="another model"):
        answer_questions(data / "b.gguf", data, own, out=data / "kept.a.jsonl")


def test_cancelling_early_is_an_interrupt_and_late_compares_what_there_is(
    data: Path, engines: list[FakeEngine]
) -> None:
    def stop_at(questions: int) -> Callable[[float, float | None, str], None]:
        seen = []

        def progress(done: float, total: float | None, detail: str) -> None:
            seen.extend([detail] if "?" in detail else [])
            if len(seen) == questions:
                cancel.set()

        return progress

    cancel = Flag()
    with pytest.raises(KeyboardInterrupt):
        measure_flips(data / "a.gguf", data / "b.gguf", data, settings(data), progress=stop_at(2), cancel=cancel)
    cancel.clear()
    found = measure_flips(
        data / "a.gguf", data / "b.gguf", data, settings(data), progress=stop_at(5), cancel=cancel
    )
    assert found.n == 1


def test_the_command_reports_flips_of_real_engines(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("quantize.gguf_models.flips.load_encoder", lambda settings: FakeEncoder())
    models = [tiny_llama(data / f"{name}.gguf", seed=seed, context=2048) for seed, name in enumerate("ab", 1)]
    text = data / "text.txt"
    text.write_text("the rhine flows through basel and the stars are in the sky; " * 20, encoding="utf-8")
    arguments = [*map(str, models), "--text", str(text), "--window", "64", "--windows", "2", "--threads", "1"]
    more = ["--questions", str(data), "--limit", "2", "--context", "2048", "--home", str(data / "home")]
    assert main(["eval", "divergence", *arguments, *more]) == 0
    printed = capsys.readouterr().out
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])["questions"]
    assert found["n"] == 2 and found["mean_logprob_a"] < 0 and "flips" in printed
