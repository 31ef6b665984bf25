"""Calibrations in a folder: the same decisions after save and load, found for their set-up only, read strictly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_calibrations import SETUP, calibration, certificate, vectors

from edge_sdk.confidence.calibration import Calibration, Calibrations, TaskScale, load
from edge_sdk.confidence.certificate import Kind
from edge_sdk.confidence.logistic import Steps, Term
from edge_sdk.confidence.setup import Setup
from edge_sdk.confidence.signals import STAGES, Stage
from edge_sdk.errors import CalibrationError

Change = dict[str, Any]

small = st.floats(-20, 20)
term = st.builds(Term, small, st.floats(1e-3, 50), st.floats(-5, 5))
measured = st.dictionaries(st.sampled_from(STAGES["after"]), st.floats(-30, 30), max_size=12)


@st.composite
def rising(draw: st.DrawFn) -> Steps:
    pairs = draw(st.lists(st.tuples(small, small), min_size=1, max_size=6))
    bounds, values = zip(*pairs, strict=True)
    return Steps(tuple(sorted(bounds)), tuple(sorted(values)))


calibrations = st.builds(
    calibration,
    after=st.dictionaries(st.sampled_from(STAGES["after"]), term, min_size=1, max_size=8),
    before=st.dictionaries(st.sampled_from(STAGES["before"]), term, min_size=1, max_size=5),
    steps=st.none() | rising(),
    remote=st.none() | st.dictionaries(st.sampled_from(STAGES["before"]), term, max_size=3),
    tasks=st.dictionaries(st.sampled_from(["code", "facts"]), st.builds(TaskScale, st.floats(1e-3, 5), small,
                                                                        st.integers(0, 99))),
    hand_off_before=st.none() | st.floats(0, 1),
    hand_off_window=st.none() | st.floats(-20, 0),
    certified=st.none() | st.sampled_from([certificate(), certificate(None), certificate(kind="regret")]),
)  # fmt: skip
stages: st.SearchStrategy[Stage] = st.sampled_from(list(STAGES))


@given(calibrations, stages, measured, st.sampled_from(["", "code", "facts", "never heard of"]))
def test_contributions_add_up_with_isotonic_and_task_scales(
    found: Calibration, stage: Stage, signals: dict[str, float], task: str
) -> None:
    estimate = found.estimate(stage, signals, task)
    assert estimate.intercept + sum(estimate.contributions.values()) == pytest.approx(estimate.log_odds, abs=1e-9)
    plain = found.models[stage].estimate(signals)
    scale = found.tasks.get(task, TaskScale(1.0, 0.0, 0))
    assert estimate.log_odds == pytest.approx(scale.slope * plain.log_odds + scale.shift, abs=1e-6)
    assert estimate.contributions.keys() == plain.contributions.keys()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calibrations, st.lists(measured, min_size=1, max_size=5), st.sampled_from(["", "code"]))
def test_decisions_are_the_same_after_save_and_load(
    tmp_path: Path, made: Calibration, rows: list[dict[str, float]], task: str
) -> None:
    read = load(Calibrations(tmp_path).save(made), SETUP)
    vector = vectors(1, seed=5)[0]
    for signals in rows:
        known = signals | made.neighbours.signals(vector)
        assert signals | read.neighbours.signals(vector) == known
        for stage in STAGES:
            before, after = (each.estimate(stage, known, task) for each in (made, read))
            assert before == after
            assert made.serves(before.probability) == read.serves(after.probability)
        for kind in get_args(Kind):
            assert made.remote_estimate(kind, known) == read.remote_estimate(kind, known)
    assert (read.hand_off_before, read.hand_off_window) == (made.hand_off_before, made.hand_off_window)
    assert (read.certificate, read.held_out, read.setup, read.n) == (
        made.certificate,
        made.held_out,
        made.setup,
        made.n,
    )
    assert Calibrations(tmp_path).save(read).read_bytes() == Calibrations(tmp_path).save(made).read_bytes()


def test_a_threshold_is_exact_after_save_and_load(tmp_path: Path) -> None:
    """A threshold is the score of a question; were that question a rounding below it, it would not be served."""
    made = calibration()
    score = made.estimate("after", {"evidence": 1 / 3, "mean_logprob": -0.1}).probability
    made = made.with_certificate(certificate(score))
    read = load(Calibrations(tmp_path).save(made))
    assert read.serves(read.estimate("after", {"evidence": 1 / 3, "mean_logprob": -0.1}).probability)


def test_without_a_threshold_nothing_and_without_a_certificate_everything_is_served() -> None:
    assert not calibration(certified=certificate(None)).serves(1.0)
    assert calibration().serves(0.0)
    certified = calibration(certified=certificate(0.6))
    assert (certified.serves(0.59), certified.serves(0.6)) == (False, True)
    assert not certified.serves(float("nan"))


def test_an_empty_folder_and_a_missing_one_have_no_calibration(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "never made"):
        found = Calibrations(folder)
        assert found.is_empty()
        assert found.find(SETUP) == (None, "no calibration")


@pytest.mark.parametrize("part", list(SETUP.parts))
def test_a_changed_part_makes_it_not_found_and_is_named(tmp_path: Path, part: str) -> None:
    found = Calibrations(tmp_path)
    found.save(calibration())
    assert found.find(SETUP)[0] is not None
    missing, why = found.find(Setup({**SETUP.parts, part: "other"}))
    assert missing is None
    assert why == f"the calibration of 2026-01-02 does not hold: {part} changed; calibrate again"


def test_of_several_the_closest_is_compared(tmp_path: Path) -> None:
    found = Calibrations(tmp_path)
    found.save(calibration(setup=Setup(dict.fromkeys(SETUP.parts, "far"))))
    found.save(calibration())
    assert "model changed" in found.find(Setup({**SETUP.parts, "model": "other"}))[1]


def test_a_file_under_anothers_name_is_refused(tmp_path: Path) -> None:
    """As when someone copies it there: the name says one set-up, the content another."""
    found = Calibrations(tmp_path)
    other = Setup({**SETUP.parts, "model": "other"})
    found.save(calibration()).rename(found.path(other))
    with pytest.raises(CalibrationError, match=r"another set-up \(model\)"):
        found.find(other)


def test_saving_replaces_the_one_of_the_same_setup_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    found = Calibrations(tmp_path)
    first, second = (found.save(calibration(hand_off_before=limit)) for limit in (0.1, 0.2))
    assert first == second
    assert list(tmp_path.iterdir()) == [first]
    assert load(first).hand_off_before == 0.2


def test_where_it_cannot_be_written_the_old_one_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CalibrationError, match="cannot be written"):
        Calibrations(tmp_path / "file").save(calibration())
    found = Calibrations(tmp_path / "good")
    path = found.save(calibration())
    kept = path.read_bytes()
    with pytest.raises(CalibrationError, match="cannot be written"):
        found.save(replace(calibration(), hand_off_before=float("nan")))
    assert path.read_bytes() == kept
    assert list(path.parent.iterdir()) == [path]


# --- files that nobody should have written ---------------------------------------------------------


def written(tmp_path: Path) -> tuple[Path, Change]:
    path = Calibrations(tmp_path).save(
        calibration(
            certified=certificate(),
            remote={"lead": Term(0.5, 0.5, 1.0)},
            steps=Steps((-1.0, 0.5), (-0.5, 1.0)),
            tasks={"code": TaskScale(0.9, 0.1, 12)},
        )
    )
    return path, json.loads(path.read_text(encoding="utf-8"))


def one_line(path: Path) -> str:
    with pytest.raises(CalibrationError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    assert str(path) in message
    return message


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_one_line(tmp_path: Path, share: float) -> None:
    path, _ = written(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "run `edge calibrate` again" in one_line(path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b"7", b"null", b'"x"', b"[" * 100_000, b"{}", b"NaN"])
def test_a_file_that_is_something_else_is_one_line(tmp_path: Path, content: bytes) -> None:
    path, _ = written(tmp_path)
    path.write_bytes(content)
    one_line(path)


def test_a_folder_in_its_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    one_line(tmp_path / "a.json")


BROKEN: list[tuple[tuple[str | int, ...], object]] = [
    (("version",), 1),
    (("setup",), ["model"]),
    (("setup", "model"), 7),
    (("created",), 20260102),
    (("labels",), None),
    (("n",), -1),
    (("n",), 2.5),
    (("n",), "12"),
    (("models", "after"), None),
    (("models", "first"), {}),
    (("models", "after", "intercept"), float("nan")),
    (("models", "after", "intercept"), 1e300),
    (("models", "after", "terms", "evidence"), [0.0, 0.0, 1.0]),
    (("models", "after", "terms", "evidence"), [0.0, -1.0, 1.0]),
    (("models", "after", "terms", "evidence"), [0.0, 1.0]),
    (("models", "after", "terms", "evidence"), [0.0, 1.0, 1e308]),
    (("models", "after", "terms", "evidence"), [0.0, 1.0, True]),
    (("models", "after", "terms", "of nothing"), [0.0, 1.0, 1.0]),
    (("models", "before", "terms", "evidence"), [0.0, 1.0, 1.0]),
    (("models", "after", "steps"), [[0.0, -1.0], [0.0, 1.0]]),
    (("models", "after", "steps"), [[0.0, 1.0], [1.0, 0.0]]),
    (("models", "after", "steps"), [[], []]),
    (("models", "after", "steps"), [[0.0], [0.0, 1.0]]),
    (("models", "after", "steps"), [[0.0], [float("inf")]]),
    (("remote",), 0.5),
    (("remote",), {"intercept": 0.1}),
    (("remote", "terms", "of nothing"), [0.0, 1.0, 1.0]),
    (("remote", "terms", "mean_logprob"), [0.0, 1.0, 1.0]),
    (("tasks",), [["code", 1]]),
    (("tasks", "code"), [1.0, 0.0]),
    (("tasks", "code"), [-1.0, 0.0, 5]),
    (("tasks", "code"), [1e308, 1e308, 5]),
    (("hand_off_before",), "0.2"),
    (("hand_off_window",), float("-inf")),
    (("certificate", "threshold"), float("nan")),
    (("certificate", "alpha"), 0.001),
    (("certificate", "n"), 5),
    (("certificate",), {"threshold": 0.0}),
    (("held_out", 0), [0.5, True]),
    (("held_out", 0), ["high", True, None]),
    (("held_out", 0), [0.5, "yes", None]),
    (("held_out", 0), [1.5, True, None]),
    (("neighbours",), None),
    (("neighbours", "codes"), ""),
    (("neighbours", "dimension"), 10**12),
]


@pytest.mark.parametrize(("place", "value"), BROKEN)
def test_a_changed_value_is_one_line(tmp_path: Path, place: tuple[str | int, ...], value: object) -> None:
    path, content = written(tmp_path)
    inner: Any = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(content), encoding="utf-8")
    one_line(path)


@pytest.mark.parametrize(
    "name", ["setup", "models", "remote", "tasks", "certificate", "held_out", "neighbours", "created"]
)
def test_a_missing_value_is_one_line(tmp_path: Path, name: str) -> None:
    path, content = written(tmp_path)
    del content[name]
    path.write_text(json.dumps(content), encoding="utf-8")
    one_line(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_in_any_place_gives_a_calibration_that_can_decide_or_one_line(
    tmp_path: Path, data: st.DataObject
) -> None:
    path, content = written(tmp_path)
    inner: Any = content
    while True:
        keys = sorted(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(inner[key], dict | list) or not inner[key] or data.draw(st.booleans()):
            break
        inner = inner[key]
    inner[key] = data.draw(json_values)
    path.write_text(json.dumps(content), encoding="utf-8")
    try:
        found = load(path)
    except CalibrationError as error:
        assert "\n" not in str(error)
        return
    for stage in STAGES:
        assert 0 <= found.estimate(stage, {"evidence": 5.0, "words_found": -3.0}, "code").probability <= 1
