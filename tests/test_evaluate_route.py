"""The report on routing: promises beside their naive twins, transfer, and what handing off gains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from made_calibrations import (
    asked,
    calibration,
    certificate,
    noisy,
    vectors,
    with_a_remote_that_fails,
    with_remote,
)

from edge_sdk.confidence.calibration import Label
from edge_sdk.errors import CalibrationError, ConfigError
from quantize import evaluate_route as module
from quantize.evaluate_route import ALPHAS, KINDS, evaluate_route
from quantize.plot_route import draw
from quantize.route_metrics import auroc

ROWS = asked(150, share=0.5)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_HALVES", 4)
        other = asked(120, seed=9)
        return evaluate_route(ROWS, fit_on=other, perfect_remote=True, resplits=12)


def test_the_report_is_json_with_the_names_that_are_fixed(report: dict[str, Any]) -> None:
    assert {"auroc", "ece", "guarantee", "curve", "always_local", "always_remote"} <= report.keys()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["always_local"] == fmean(each.text == "yes" for each in ROWS)
    assert report["always_remote"] == 1.0
    fields = {"kind", "alpha", "delta", "resplits", "mean_risk", "naive_mean_risk", "violations"}
    assert all(fields <= row.keys() for row in report["guarantee"])
    assert [(row["kind"], row["alpha"]) for row in report["guarantee"]] == [(k, a) for k in KINDS for a in ALPHAS]


def test_the_probability_beats_a_signal_alone_and_holds_on_another_set(report: dict[str, Any]) -> None:
    assert report["auroc"]["probability"] > report["auroc"]["mean_logprob"]
    assert report["auroc_gain"] > 0
    assert report["transfer"]["n"] == 120
    low, high = report["transfer"]["auroc_interval"]
    assert 0.7 < low < report["transfer"]["auroc"] < high <= 1


def test_shares_and_risks_are_shares(report: dict[str, Any]) -> None:
    for row in report["guarantee"]:
        shares = [value for name, value in row.items() if name not in ("kind", "delta", "alpha", "resplits")]
        assert all(0 <= value <= 1 for value in shares)
        assert row["clear_violations"] <= row["violations"]
        assert row["naive_clear_violations"] <= row["naive_violations"]
        assert row["resplits"] == 12


def test_the_curve_goes_from_local_to_remote(report: dict[str, Any]) -> None:
    first, last = report["curve"][0], report["curve"][-1]
    assert (first["remote_share"], first["quality"]) == (0, pytest.approx(report["always_local"]))
    assert (last["remote_share"], last["quality"]) == (1, pytest.approx(1.0))
    assert 0.3 < report["gain_captured"] <= report["gain_if_local_were_known"] == pytest.approx(1)
    assert report["only_local_right"] == 0
    assert report["only_remote_right"] == pytest.approx(1 - report["always_local"])


def test_without_remote_answers_there_is_no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HALVES", 2)
    alone = evaluate_route(ROWS, resplits=2)
    assert not {"curve", "always_remote", "transfer"} & alone.keys()
    some = [*with_remote(ROWS[:-1]), ROWS[-1]]
    assert "curve" not in evaluate_route(some, resplits=1)
    asked_all = evaluate_route(with_remote(ROWS), resplits=1)
    assert (asked_all["remote"], asked_all["always_remote"]) == ("as asked", 1.0)


def test_a_remote_whose_failures_can_be_told_is_asked_where_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HALVES", 4)
    found = evaluate_route(with_a_remote_that_fails(asked(300, share=0.5)), resplits=12)
    assert found["gain_captured"] > found["gain_by_probability"]["gain_captured"] + 0.1
    regret = [row for row in found["guarantee"] if row["kind"] == "regret"]
    assert [row["alpha"] for row in regret] == list(ALPHAS)
    assert all(row["mean_risk"] <= row["naive_mean_risk"] for row in regret)
    assert regret[1]["mean_risk"] < 0.13


def test_with_a_reader_the_likelier_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HALVES", 4)
    read = asked(150, seed=5, share=0.5)
    with_both = evaluate_route(ROWS, read=read, perfect_remote=True, resplits=1)["with_reader"]
    alone = [fmean(each.text == "yes" for each in rows) for rows in (ROWS, read)]
    assert max(alone) + 0.1 < with_both["always_local"] <= 1
    assert 0.2 < with_both["share_of_reader"] < 0.8
    assert with_both["curve"][0]["quality"] == pytest.approx(with_both["always_local"])
    never = [replace(each, text="no") if at % 5 else each for at, each in enumerate(read)]
    found = evaluate_route(ROWS, read=never, perfect_remote=True, resplits=1)["with_reader"]
    assert found["share_of_reader"] < with_both["share_of_reader"]


def test_equal_seeds_give_equal_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HALVES", 2)
    assert evaluate_route(ROWS, resplits=2) == evaluate_route(ROWS, resplits=2)


def test_too_few_to_tell_is_said_before_anything_is_fitted() -> None:
    with pytest.raises(ConfigError, match="too few to tell"):
        evaluate_route(ROWS[: module._LEAST_QUESTIONS - 1])
    with pytest.raises(ConfigError, match="0 of 150 answers are right"):
        evaluate_route([replace(each, text="no") for each in ROWS])


def test_the_least_number_of_questions_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HALVES", 2)
    assert evaluate_route(ROWS[: module._LEAST_QUESTIONS], resplits=3)["n"] == module._LEAST_QUESTIONS


def test_a_probability_is_of_models_that_had_not_seen_the_question() -> None:
    """Answers that hang on nothing: a model that had seen them would tell them apart."""
    noise = asked(150, seed=3, share=0.5)
    shuffled = [
        replace(each, signals=other.signals, vector=tuple(map(float, vector)))
        for each, other, vector in zip(noise, noisy(150, seed=4), vectors(150, 5), strict=True)
    ]
    right = [each.text == "yes" for each in shuffled]
    assert auroc(module._cross_fitted(shuffled, "contains", 0, "marginal"), right) < 0.6
    halves = module._halves(shuffled, right, "contains", 0, lambda *_: None)
    assert fmean(auroc(half.probabilities, half.right) for half in halves) < 0.6


def test_risk_is_a_share_of_all_questions_or_of_those_served() -> None:
    scores, wrong = [0.9, 0.8, 0.7, 0.1], [False, True, False, True]
    assert module._risk(scores, wrong, 0.7, "marginal") == (0.25, 0.75)
    assert module._risk(scores, wrong, 0.7, "selective") == (pytest.approx(1 / 3), 0.75)
    assert module._risk(scores, wrong, None, "selective") == (0.0, 0.0)
    assert module._risk(scores, wrong, 1.0, "selective") == (0.0, 0.0)


def test_the_naive_threshold_is_the_laxest_that_looks_good() -> None:
    scores, wrong = [0.9, 0.8, 0.7, 0.1], [False, True, False, True]
    assert module._naive_threshold(scores, wrong, 0.25, "marginal") == 0.7
    assert module._naive_threshold(scores, wrong, 0.1, "selective") == 0.9
    assert module._naive_threshold([0.5], [True], 0.1, "marginal") is None


def test_clear_violations_are_those_that_chance_does_not_explain() -> None:
    assert not module._clearly_above(0.1, 100, 0.1)
    assert not module._clearly_above(0.0, 100, 0.1)
    assert not module._clearly_above(0.13, 100, 0.1)
    assert module._clearly_above(0.2, 100, 0.1)
    assert not module._clearly_above(1.0, 1, 0.2)


# --- drawing ---------------------------------------------------------------------------------------


def test_a_calibration_is_drawn_as_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = replace(
        calibration(certified=certificate()), held_out=tuple(Label(at / 40, at > 15, None) for at in range(40))
    )
    draw(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(CalibrationError, match="cannot be written"):
        draw(found, tmp_path / "nowhere" / "a.png")
    with pytest.raises(CalibrationError, match="no questions"):
        draw(replace(found, held_out=()), tmp_path / "b.png")
