"""From labelled questions to a calibration: parts that never mix, runs that resume, promises that hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from threading import Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_calibrations import SETUP, asked, noisy, with_remote

from edge_sdk.edge import Edge
from edge_sdk.errors import CalibrationError, ConfigError, RemoteTimeoutError
from edge_sdk.fakes import FakeEncoder, FakeEngine
from edge_sdk.fallback.remote import FakeRemote
from edge_sdk.privacy.gate import PrivacyPolicy
from edge_sdk.prompt import Reading
from edge_sdk.route import Policy
from edge_sdk.storage.store import Store
from quantize import calibrate as module
from quantize.calibrate import (
    LEAST,
    THRESHOLD_SHARE,
    Asked,
    Target,
    ask_all,
    calibrate,
    certified,
    check_enough,
    fitted,
    probabilities,
    read_asked,
    read_questions,
    serving_scores,
)
from quantize.route_metrics import auroc

Questions = list[tuple[str, tuple[str, ...], str]]
QUESTIONS: Questions = [
    (f"What is the number of pump {at}?", (f"number {at}",), "pumps" if at % 2 else "") for at in range(6)
]


# --- reading ---------------------------------------------------------------------------------------


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


def test_too_few_questions_are_refused_before_any_is_asked() -> None:
    least = next(n for n in range(1000) if n - round(THRESHOLD_SHARE * n) >= LEAST)
    check_enough(range(least))
    with pytest.raises(CalibrationError, match="too few"):
        check_enough(range(least - 1))


# --- asking ----------------------------------------------------------------------------------------

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
    assert edge.handoff is not None
    edge.handoff.learned, edge.handoff.queues = None, False
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


# --- parts -----------------------------------------------------------------------------------------


@given(st.sets(st.text(max_size=8), max_size=60), st.randoms())
def test_no_question_is_in_both_parts_and_the_order_has_no_say(
    texts: set[str], random: np.random.Generator
) -> None:
    (row,) = asked(1)
    rows = [replace(row, question=text) for text in sorted(texts)]
    fitting, holding = module._parts(rows)
    names = [{each.question for each in part} for part in (fitting, holding)]
    assert not names[0] & names[1]
    assert names[0] | names[1] == texts
    assert len(holding) == round(THRESHOLD_SHARE * len(rows))
    random.shuffle(rows)
    assert module._parts(rows) == (fitting, holding)


def test_the_threshold_is_counted_on_questions_that_no_model_saw() -> None:
    rows = asked(300)
    found = calibrate(rows, SETUP)
    fitting, holding = module._parts(rows)
    assert set(found.neighbours.questions) == {each.question for each in fitting}
    assert [label.probability for label in found.held_out] == serving_scores(found, holding)
    assert found.certificate is not None
    assert (found.certificate.n, found.n) == (len(holding), 300)
    turned = [replace(each, text="no" if each.text == "yes" else "yes") for each in holding]
    assert calibrate([*fitting, *turned], SETUP).models == found.models


def test_a_calibration_tells_right_from_wrong_and_names_its_labels() -> None:
    found = calibrate(asked(300), SETUP, labeller="exact")
    more = asked(500, seed=1)
    assert auroc(probabilities(found, more), [each.text == "yes" for each in more]) > 0.8
    assert found.labels == found.certificate.labels == "an accepted answer, exactly"  # type: ignore[union-attr]
    assert found.certificate.fingerprints == dict(SETUP.parts)  # type: ignore[union-attr]
    assert {"evidence", "mean_logprob"} <= found.models["after"].terms.keys()
    assert "evidence" not in found.models["before"].terms


def test_a_question_is_not_its_own_neighbour_while_fitting() -> None:
    familiarity = fitted(asked(120), SETUP, "contains").models["after"].terms["familiarity"]
    assert familiarity.mean < 0.95
    assert familiarity.deviation > 0.01


def test_too_few_or_all_alike_are_one_line() -> None:
    with pytest.raises(CalibrationError, match="too few"):
        fitted(asked(LEAST - 1), SETUP, "contains")
    with pytest.raises(CalibrationError, match="nothing can be fitted: 0 right or wrong"):
        fitted([replace(each, text="no") for each in asked(80)], SETUP, "contains")


def test_regret_needs_the_remotes_answers() -> None:
    rows = asked(250)
    with pytest.raises(CalibrationError, match="regret needs"):
        calibrate(rows, SETUP, target=Target("regret"))
    hard = calibrate(with_remote(rows, right=False), SETUP, target=Target("regret"))
    assert hard.certificate is not None
    assert (hard.certificate.errors, hard.certificate.local_share) == (0, 1.0)  # the remote never helps


# --- what is given up early ------------------------------------------------------------------------


def test_hopeless_is_the_largest_value_with_a_tenth_right_below_it() -> None:
    hopeless = module._hopeless_below
    values = [at / 100 for at in range(100)]
    assert hopeless(values, [at >= 50 for at in range(100)]) == 0.55  # 5 of 55 are right; 6 of 56 are too many
    assert hopeless(values, [at >= 10 for at in range(100)]) is None  # ten below are too few to see it
    assert hopeless(values[:21], [at in (3, 7) for at in range(21)]) == 0.2  # just a tenth, of just twenty
    assert hopeless(values, [True] * 100) is None
    assert hopeless(values, [False] * 100) == 0.99
    assert hopeless([0.5] * 100, [False] * 100) is None  # nothing lies below
    assert hopeless([], []) is None


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), st.booleans()), max_size=90))
def test_hopeless_is_that_of_a_naive_search(pairs: list[tuple[float, bool]]) -> None:
    def gives_up(limit: float) -> bool:
        below = [right for value, right in pairs if value < limit]
        return len(below) >= 20 and sum(below) <= 0.1 * len(below)

    naive = max((value for value, _ in pairs if gives_up(value)), default=None)
    assert module._hopeless_below([value for value, _ in pairs], [right for _, right in pairs]) == naive


def test_what_is_never_served_has_the_score_0() -> None:
    rows = asked(120)
    found = replace(fitted(rows, SETUP, "contains"), hand_off_before=None, hand_off_window=None)
    row = rows[0]
    assert serving_scores(found, [row]) == probabilities(found, [row]) != [0.0]
    assert serving_scores(found, [replace(row, route="abstain")]) == [0.0]
    assert serving_scores(found, [replace(row, signals={**row.signals, "refusal": 1.0})]) == [0.0]
    assert serving_scores(replace(found, hand_off_before=1.0), [row]) == [0.0]
    window = row.signals["window_logprob"]
    assert serving_scores(replace(found, hand_off_window=window), [row]) != [0.0]
    assert serving_scores(replace(found, hand_off_window=window + 0.01), [row]) == [0.0]


# --- tasks -----------------------------------------------------------------------------------------


def test_a_task_that_goes_worse_is_drawn_down_and_a_small_one_hardly() -> None:
    rows = asked(200)
    hard = [replace(each, question=f"hard {each.question}", task="hard", text="no") for each in asked(60, seed=4)]
    few = [replace(each, question=f"few {each.question}", task="few", text="no") for each in asked(3, seed=5)]
    found = fitted([*rows, *hard, *few], SETUP, "contains")
    assert found.tasks.keys() == {"hard", "few"}
    assert (found.tasks["hard"].n, found.tasks["few"].n) == (60, 3)
    assert found.tasks["hard"].shift < found.tasks["few"].shift < 0.1
    assert all(scale.slope > 0 and np.isfinite([scale.slope, scale.shift]).all() for scale in found.tasks.values())
    signals = rows[0].signals
    assert (
        found.estimate("after", signals, "hard").probability < found.estimate("after", signals, "few").probability
    )


# --- promises --------------------------------------------------------------------------------------


def risk(scores: Sequence[float], rows: Sequence[Asked], threshold: float | None) -> float:
    return fmean(
        threshold is not None and score >= threshold and each.text != "yes"
        for score, each in zip(scores, rows, strict=True)
    )


def test_the_marginal_promise_holds_on_average_and_the_naive_twin_breaks_it() -> None:
    """Twenty noise signals are fitted on eighty questions: on these the model looks far better than it is."""
    alpha, honest, naive = 0.1, [], []
    test = noisy(1500, seed=999)
    for seed in range(25):
        rows = noisy(140, seed=seed)
        fitting, holding = module._parts(rows)
        model = fitted(fitting, SETUP, "contains")
        model = replace(model, hand_off_before=None, hand_off_window=None)
        found = certified(model, holding, "contains", Target("marginal", alpha))
        assert found.certificate is not None
        scores = serving_scores(found, test)
        honest.append(risk(scores, test, found.certificate.threshold))
        seen = serving_scores(found, fitting)
        passing = [each for each in sorted(seen) if risk(seen, fitting, each) <= alpha]
        naive.append(risk(scores, test, min(passing, default=None)))
    spread = float(np.std(honest)) / 5  # of the mean of 25
    assert fmean(honest) <= alpha + 2 * spread
    assert fmean(naive) > alpha + 2 * spread
