"""`edge calibrate`, `edge route report` and `edge route explain`, and the answers that follow from them."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_calibrations import SETUP, calibration

from edge_sdk import loading
from edge_sdk.cli import main
from edge_sdk.commands.route import _as_answer
from edge_sdk.confidence.calibration import Calibrations
from edge_sdk.confidence.setup import Setup
from edge_sdk.config import load_settings
from edge_sdk.edge import Edge
from edge_sdk.fakes import FakeEncoder, FakeEngine, FakeReader
from edge_sdk.prompt import Reading
from edge_sdk.records import Answer
from edge_sdk.storage.store import Store
from quantize import plot_route

COUNT = 90


def say(prompt: str) -> str:
    """Right on two pumps of three; on the others a number that no passage holds."""
    number = int(re.findall(r"pressure of pump (\d+)", prompt)[-1])
    return f"The pressure is {number + 500} bar." if number % 3 else "It might be 12345 volts, perhaps."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of ninety pumps, questions on them, and a calibration made of these."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "pumps").mkdir()
    for at in range(COUNT):
        text = f"The pressure of pump {at} is {at + 500} bar. It is red."
        (folder / "pumps" / f"{at}.txt").write_text(text, encoding="utf-8")
    with Edge(Store.open(folder / "s.db"), FakeEncoder, lambda: (FakeEngine(), Reading())) as edge:
        edge.add([folder / "pumps"])
    rows = [{"question": f"What is the pressure of pump {at}?", "answers": [str(at + 500)]} for at in range(COUNT)]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_HOME", str(folder / "home"))
        patch.setenv("EDGE_STORE", str(folder / "s.db"))
        use(patch)
        assert main(["calibrate", str(folder / "q.jsonl"), "--alpha", "0.05"]) == 0
    return folder


@pytest.fixture(autouse=True)
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the store and the questions, without a calibration."""
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EDGE_STORE", str(tmp_path / "s.db"))
    use(monkeypatch)
    for name in ("s.db", "q.jsonl"):
        shutil.copy(made / name, tmp_path / name)
    return tmp_path / "home"


def use(monkeypatch: pytest.MonkeyPatch, name: str = "fake", dimension: int = 256) -> None:
    monkeypatch.setattr(loading, "load_encoder", lambda settings: FakeEncoder(dimension))
    monkeypatch.setattr(loading, "load_engine", lambda settings: (FakeEngine(say, name=name), Reading(300, False)))


Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = main([*arguments, "--json"])
        out = capsys.readouterr().out.splitlines()
        return code, json.loads(out[-1]) if code == 0 else None

    return command


@pytest.fixture
def calibrated(made: Path, home: Path) -> Path:
    """The file of the calibration, in place."""
    shutil.copytree(made / "home" / "calibrations", home / "calibrations")
    (path,) = (home / "calibrations").iterdir()
    return path


def ask(run: Run, number: int, *more: str) -> dict[str, Any]:
    code, answer = run("ask", f"What is the pressure of pump {number}?", *more)
    assert code == 0
    return answer  # type: ignore[no-any-return]


def why_not(answer: dict[str, Any]) -> str:
    assert answer["probability"] is None
    assert answer["route"] == "local"
    (reason,) = [reason for reason in answer["reasons"] if reason.startswith("probability unknown")]
    assert "\n" not in reason
    return str(reason)


def test_answers_have_a_probability_once_calibrated(run: Run, calibrated: Path) -> None:
    right, wrong = ask(run, 31), ask(run, 30, "--when-unsure", "local")
    assert right["route"] == "local"
    assert right["probability"] > 0.7 > 0.5 > wrong["probability"]
    unsure = ask(run, 30)
    assert unsure["route"] == "abstain"
    assert "right with probability" in unsure["reasons"][-1]


def test_the_summary_is_worth_its_certificate(run: Run, calibrated: Path) -> None:
    code, (summary,) = run("route", "report")
    assert code == 0
    assert (summary["file"], summary["n"]) == (str(calibrated), COUNT)
    assert summary["risk_coverage"][-1]["coverage"] == 1.0
    assert summary["auroc"] > 0.9
    assert summary["held_out"] == summary["certificate"]["n"] == 36
    assert summary["certificate"]["threshold"] is not None
    assert summary["certificate"]["fingerprints"] == summary["setup"]
    assert summary["setup"].keys() == {
        "model",
        "prompt",
        "passages",
        "sampler",
        "retrieval",
        "encoder",
        "reader",
        "signals",
    }


def test_the_report_is_for_people_too(calibrated: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["route", "report", "--plot", str(tmp_path / "a.png")]) == 0
    shown = capsys.readouterr().out
    assert "90 questions" in shown
    assert "threshold" in shown
    assert "strongest signals" in shown
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_before_any_calibration_the_next_step_is_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert "`edge calibrate` makes one" in why_not(ask(run, 31))
    assert main(["route", "report"]) == 1
    assert "run `edge calibrate" in capsys.readouterr().err


def test_another_model_encoder_or_retrieval_makes_it_not_found(
    run: Run, calibrated: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "retrieval changed" in why_not(ask(run, 31, "-k", "3"))
    assert "prompt changed" in why_not(ask(run, 31, "--brief"))
    use(monkeypatch, name="quantized otherwise")
    assert "model changed" in why_not(ask(run, 31))
    use(monkeypatch, dimension=128)
    with Store.open(tmp_path / "s.db") as store:
        store.reindex(FakeEncoder(128))
    assert "encoder changed" in why_not(ask(run, 31))


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 99_999, b"\xff" * 50, b'{"version": 1}', b"null"])
def test_a_damaged_calibration_is_a_reason_and_answers_go_on(run: Run, calibrated: Path, content: bytes) -> None:
    calibrated.write_bytes(content)
    assert "is no calibration" in why_not(ask(run, 31))
    assert main(["route", "report"]) == 1


def test_a_hostile_calibration_is_a_reason_and_answers_go_on(run: Run, calibrated: Path) -> None:
    content = json.loads(calibrated.read_text())
    changes: list[Callable[[dict[str, Any]], Any]] = [
        lambda it: it["models"]["after"].update(intercept=1e308),
        lambda it: it["certificate"].update(alpha=0.999, n=3),
        lambda it: it["neighbours"].update(questions=[], right=[], codes="", dimension=5),
        lambda it: it["setup"].update(model="another"),
    ]
    for change in changes:
        hostile = json.loads(json.dumps(content))
        change(hostile)
        calibrated.write_text(json.dumps(hostile))
        assert why_not(ask(run, 31))


def test_a_kept_decision_explains_itself_as_the_answer_did(calibrated: Path, tmp_path: Path, run: Run) -> None:
    settings = load_settings({})
    answers: list[Answer] = []
    with Edge.open(settings=settings) as edge:
        for number in (31, 30):
            answers.append(edge.ask(f"What is the pressure of pump {number}?"))
        answers.append(edge.ask("Who sang at the wedding?"))
    assert [answer.route for answer in answers] == ["local", "abstain", "abstain"]
    for answer in answers:
        code, record = run("route", "explain", answer.id)
        assert code == 0
        assert _as_answer(record).explain() == answer.explain()
        assert record["explanation"]["probability"] == answer.explanation.probability  # type: ignore[union-attr]
    record = run("route", "explain", answers[0].id)[1]
    why = record["explanation"]
    total = why["intercept"] + sum(part["log_odds"] for part in why["contributions"])
    assert 1 / (1 + 2.718281828459045**-total) == pytest.approx(why["probability"])
    assert len(why["nearest"]) == 3
    assert why["threshold"] <= why["probability"]


def test_an_explanation_is_for_people_and_holds_no_question(
    run: Run, calibrated: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with Edge.open(settings=load_settings({})) as edge:
        answer = edge.ask("What is the pressure of pump 31? It is for Zephyrine.")
    assert main(["route", "explain", answer.id]) == 0
    shown = capsys.readouterr().out
    assert shown.strip() == answer.explain()
    assert "left the device: nothing" in shown
    assert "Zephyrine" not in shown
    assert b"Zephyrine" not in (tmp_path / "s.db").read_bytes()


def test_a_decision_that_was_kept_in_an_earlier_form_is_shown_or_refused_in_one_line(
    run: Run, calibrated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Edge.open(settings=load_settings({})) as edge:
        answer = edge.ask("What is the pressure of pump 31?")
        for id, no_regret in (
            ("plain", None),
            ("regret", {"probability": 0.4, "intercept": 0.1, "contributions": []}),
        ):
            record = answer.decision() | {"id": id}
            del record["explanation"]["remote"]
            record["explanation"]["no_regret"] = no_regret
            edge.store.keep_decision(id, json.dumps(record), question="q", route="local")
    assert main(["route", "explain", "plain"]) == 0
    assert capsys.readouterr().out.strip() == answer.explain()
    assert main(["route", "explain", "regret"]) == 1
    assert "kept in another form" in capsys.readouterr().err
    assert main(["route", "explain", "regret", "--json"]) == 0


def test_an_id_that_is_not_kept_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["route", "explain", "nothing"]) == 1
    assert "no decision 'nothing' is kept" in capsys.readouterr().err


def test_a_run_resumes_from_its_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "asked.jsonl")
    code, first = run("calibrate", str(tmp_path / "q.jsonl"), "--out", out)
    assert code == 0

    def asked_again(*_: object, **__: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(FakeEngine, "generate", asked_again)
    code, second = run("calibrate", str(tmp_path / "q.jsonl"), "--out", out)
    assert code == 0
    assert second == first


@pytest.mark.parametrize(
    "flags", [["--alpha", "0"], ["--alpha", "1"], ["--alpha", "nan"], ["--delta", "1.5"], ["--risk", "none"]]
)
def test_a_target_that_cannot_be_is_refused_before_anything_is_asked(
    tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "generate", lambda *_: pytest.fail("asked"))
    assert main(["calibrate", str(tmp_path / "q.jsonl"), *flags]) in (1, 2)


def test_too_few_questions_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "few.jsonl").write_text('{"question": "What is it?", "answers": ["it"]}\n')
    assert main(["calibrate", str(tmp_path / "few.jsonl")]) == 1
    assert "1 questions are too few" in capsys.readouterr().err
    assert main(["calibrate", str(tmp_path / "none.jsonl")]) == 1
    assert capsys.readouterr().err.endswith("cannot be read: No such file or directory; check the path\n")


def test_the_newest_calibration_is_drawn(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(plot_route, "draw", lambda calibration, path: drawn.append(calibration.created))
    folder = Calibrations(home / "calibrations")
    for at, day in enumerate(("2026-01-03", "2026-01-09", "2026-01-01", "2026-01-02")):
        folder.save(replace(calibration(setup=Setup({**SETUP.parts, "model": f"m{at}"})), created=day))
    assert main(["route", "report", "--plot", str(tmp_path / "a.png")]) == 0
    assert drawn == ["2026-01-09"]


@pytest.mark.parametrize("command", ["route report", "tune nosuch"])
@pytest.mark.parametrize("name", ["a.foo", "a", "a.svg"])
def test_a_picture_is_a_png_by_its_name_too(
    calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    assert main([*command.split(), "--plot", str(tmp_path / name)]) == 2
    assert f"'{name}' does not end in .png" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def read(number: int) -> str:
    """What the reader has for a pump: right on two of three, else a word that answers something else."""
    return str(number + 500) if number % 3 else "red"


def test_a_reader_is_calibrated_beside_the_model_and_each_has_half_of_the_risk(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {f"What is the pressure of pump {at}?": read(at) for at in range(COUNT)}
    monkeypatch.setattr(loading, "load_reader", lambda settings: FakeReader(known))
    code, model = run("calibrate", str(home.parent / "q.jsonl"), "--alpha", "0.1")
    assert code == 0
    assert len(list((home / "calibrations").iterdir())) == 2
    for summary in (model, model["reader"]):
        assert summary["certificate"]["alpha"] == 0.05
    assert model["reader"]["setup"]["prompt"].startswith("the words of a passage")
    quick, slow = ask(run, 31), ask(run, 30, "--when-unsure", "local")
    assert (quick["text"], quick["model"]) == ("531", "fake reader")
    assert quick["probability"] > 0.8
    assert slow["model"] == "fake"


def test_a_risk_that_does_not_add_up_is_not_shared_with_a_reader(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "load_reader", lambda settings: FakeReader({}))
    assert main(["calibrate", str(home.parent / "q.jsonl"), "--risk", "selective"]) == 1
    assert "--reader none" in capsys.readouterr().err


@pytest.mark.parametrize("keeps", [True, False])
def test_an_interrupted_calibration_says_what_is_kept_and_goes_on_from_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, keeps: bool
) -> None:
    asked: list[str] = []

    def interrupted(prompt: str) -> str:
        asked.append(prompt)
        if len(asked) == 5:
            signal.raise_signal(signal.SIGINT)
        return say(prompt)

    monkeypatch.setattr(loading, "load_engine", lambda settings: (FakeEngine(interrupted), Reading(300, False)))
    out = tmp_path / "answers.jsonl"
    command = ["calibrate", str(tmp_path / "q.jsonl"), *(["--out", str(out)] if keeps else [])]
    assert main(command) == 130
    said = f"is kept in {out}, run the same command" if keeps else "interrupted; --out FILE would keep the answers"
    assert said in capsys.readouterr().err
    assert main(command) == 0
    assert len(asked) == (COUNT if keeps else COUNT + 5)
