"""Signals: each is finite and documented, and means what its line says."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_calibrations import hit, token

from edge_sdk.confidence.signals import SIGNALS, STAGES, WINDOW, TokenTrace, after, before
from edge_sdk.records import Hit, Passage, Token

finite = st.floats(-1e4, 1e4)
texts = st.text(max_size=120)
tokens = st.builds(
    Token, st.integers(0, 9), st.text(max_size=6), st.floats(-60, 0), st.floats(0, 12), st.floats(0, 60)
)
ranks = st.none() | st.integers(1, 50)
hits = st.lists(
    st.builds(
        Hit,
        st.builds(Passage, st.integers(1, 9), texts, texts, texts, texts, st.just(0), st.just(1)),
        finite,
        ranks,
        st.none() | finite,
        ranks,
        st.none() | st.floats(-1, 1),
    ),
    max_size=5,
)
NEIGHBOURS = {"familiarity", "past_success"}  # of the calibration questions, see `neighbours`
QUESTION = "Who invented the steam engine?"
PASSAGE = "James Watt improved the engine in 1769. It rained. Thomas Newcomen built the first steam engine in 1712."


@given(texts, hits, st.lists(tokens, min_size=1, max_size=30), texts, st.sampled_from(["stop", "length"]))
def test_every_signal_is_finite_and_documented(
    question: str, found: list[Hit], seen: list[Token], answer: str, reason: str
) -> None:
    trace = TokenTrace()
    for each in seen:
        trace.add(each)
    early = before(question, found)
    late = after(question, found, answer, finish_reason=reason, refusal=False)  # type: ignore[arg-type]
    for measured in (early, trace.first(), trace.signals(), late):
        assert all(math.isfinite(value) for value in measured.values())
    missing = set() if any(each.similarity is not None for each in found) else {"similarity"}
    missing |= {name for name in STAGES["after"] if name.startswith(("reader_", "choice_"))}  # there is none
    assert early.keys() == set(STAGES["before"]) - NEIGHBOURS - missing
    assert early.keys() | trace.first().keys() == set(STAGES["first"]) - NEIGHBOURS - missing
    assert early.keys() | trace.signals().keys() | late.keys() == set(STAGES["after"]) - NEIGHBOURS - missing


def test_signals_are_described_once_and_stages_grow() -> None:
    assert len({signal.name for signal in SIGNALS}) == len(SIGNALS) == len({signal.what for signal in SIGNALS})
    assert set(STAGES["before"]) < set(STAGES["first"]) < set(STAGES["after"])


def test_nothing_said_and_nothing_found() -> None:
    assert TokenTrace().signals() == TokenTrace().first() == {}
    assert before("", [])["lead"] == before("", [])["words_found"] == before("", [])["supporters"] == 0
    silent = after("", [], "", finish_reason="stop", refusal=False)
    assert (silent["evidence"], silent["grounded"], silent["grounded_best"], silent["longest_span"]) == (0, 0, 0, 0)
    assert (silent["grounded_numbers"], silent["grounded_names"], silent["kind"]) == (1, 1, 1)


@given(st.lists(st.floats(-60, 0), max_size=40))
def test_lowest_window_is_that_of_a_naive_computation(logprobs: list[float]) -> None:
    trace = TokenTrace()
    lowest = []
    for logprob in logprobs:
        trace.add(token("x", logprob))
        lowest.append(trace.lowest_window)
    windows = [logprobs[start : start + WINDOW] for start in range(len(logprobs) - WINDOW + 1)]
    means = [math.fsum(window) / WINDOW for window in windows]
    assert lowest[: WINDOW - 1] == [None] * min(len(logprobs), WINDOW - 1)
    for at, value in enumerate(lowest[WINDOW - 1 :]):
        assert value == pytest.approx(min(means[: at + 1]), abs=1e-9)
    known = [value for value in lowest if value is not None]
    assert all(later <= earlier for earlier, later in pairwise(known))


def test_a_short_answer_is_one_window() -> None:
    trace = TokenTrace()
    for logprob in (-1.0, -3.0):
        trace.add(token("x", logprob))
    assert trace.lowest_window is None
    assert trace.signals()["window_logprob"] == -2.0


def test_token_signals_are_of_content_and_leads_are_capped() -> None:
    trace = TokenTrace()
    for each in (token("Ba", -0.4, 1.0, 9.0), token("sel", -0.2, 0.5, 3.0), token(".", -9.0, 4.0, 0.0)):
        trace.add(each)
    found = trace.signals()
    assert found["mean_logprob"] == pytest.approx(-0.3)
    assert (found["min_logprob"], found["low_logprob"], found["first_margin"]) == (-0.4, -0.4, 5.0)
    assert (found["mean_margin"], found["mean_entropy"]) == (4.0, 0.75)


def test_tokens_without_a_word_still_count_where_there_are_no_others() -> None:
    trace = TokenTrace()
    trace.add(token("...", -2.0))
    assert trace.signals()["mean_logprob"] == -2.0


def test_length_alone_changes_no_token_signal() -> None:
    def of(count: int) -> dict[str, float]:
        trace = TokenTrace()
        for _ in range(count):
            trace.add(token("word", -0.5))
        return trace.signals()

    assert of(9) == pytest.approx(of(90))


def test_retrieval_signals() -> None:
    found = [
        hit(PASSAGE, 0.9, similarity=0.7),
        hit("Rain.", 0.85, similarity=0.75, rank=2),
        hit("Sun.", 0.2, rank=3),
    ]
    signals = before(QUESTION, found)
    assert signals["similarity"] == 0.8
    assert signals["lead"] == pytest.approx(0.05)
    assert signals["agreement"] == 1.0
    assert signals["words_found"] == pytest.approx(2 / 3)  # of invented, steam, engine
    assert signals["supporters"] == pytest.approx(math.log(3))  # itself and one more
    assert "similarity" not in before(QUESTION, [hit(PASSAGE, similarity=None)])


@pytest.mark.parametrize(
    ("question", "number", "name", "why"),
    [
        ("When was it?", 1, 0, 0),
        ("How many are there?", 1, 0, 0),
        ("In which year did WHO begin?", 1, 1, 0),
        ("How does it work?", 0, 0, 1),
        ("Where is it?", 0, 1, 0),
        ("What is it?", 0, 0, 0),
    ],
)
def test_the_form_of_a_question(question: str, number: float, name: float, why: float) -> None:
    signals = before(question, [])
    assert (signals["asks_number"], signals["asks_name"], signals["asks_why"]) == (number, name, why)


def test_an_answer_from_the_passages_is_grounded_and_an_invented_one_is_not() -> None:
    def of(answer: str) -> dict[str, float]:
        return after(QUESTION, [hit(PASSAGE)], answer, finish_reason="stop", refusal=False)

    said, invented = of("It was Thomas Newcomen in 1712."), of("It was Isaac Newton in 1687.")
    for name in ("grounded", "grounded_best", "evidence", "longest_span", "grounded_numbers", "grounded_names"):
        assert said[name] > invented[name], name
    assert (invented["grounded_numbers"], invented["grounded_names"]) == (0, 0)
    assert of("Thomas Newcomen built the first")["longest_span"] == 1.0


def test_evidence_is_of_one_sentence() -> None:
    """What stands near the question's words speaks for the answer; what stands elsewhere does not."""
    near = after("When did it rain?", [hit("It did rain in May. Snow fell in June.")], "May", finish_reason="stop",
                 refusal=False)  # fmt: skip
    far = after("When did it rain?", [hit("It did rain in May. Snow fell in June.")], "June", finish_reason="stop",
                refusal=False)  # fmt: skip
    assert (near["evidence"], near["evidence_question"], near["evidence_lag"]) == (1, 1, 0)
    assert (far["evidence"], far["evidence_question"], far["evidence_lag"]) == (0, 0, 1)


@pytest.mark.parametrize(
    ("question", "answer", "kind"),
    [
        ("When was it built?", "Long ago", 0),
        ("When was it built?", "In 1887", 1),
        ("How many towers?", "two", 1),
        ("Who built it?", "an engineer", 0),
        ("Who built it?", "Gustave Eiffel", 1),
        ("What is it?", "iron", 1),
    ],
)
def test_the_kind_of_answer_that_was_asked_for(question: str, answer: str, kind: float) -> None:
    assert after(question, [], answer, finish_reason="stop", refusal=False)["kind"] == kind


def test_cut_refused_and_hedged() -> None:
    plain = after("Why?", [], "It is so.", finish_reason="stop", refusal=False)
    doubt = after("Why?", [], "Perhaps it is.", finish_reason="length", refusal=True)
    assert [plain[name] for name in ("cut", "refusal", "hedge")] == [0, 0, 0]
    assert [doubt[name] for name in ("cut", "refusal", "hedge")] == [1, 1, 1]


@given(
    st.lists(st.sampled_from("a b c".split()), max_size=8), st.lists(st.sampled_from("a b c".split()), max_size=8)
)
def test_longest_span_is_that_of_a_naive_search(words: list[str], text: list[str]) -> None:
    runs = [words[i:j] for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    held = [run for run in runs if any(text[at : at + len(run)] == run for at in range(len(text)))]
    longest = max(map(len, held), default=0)
    found = after("", [hit(" ".join(text))], " ".join(words), finish_reason="stop", refusal=False)["longest_span"]
    assert found == pytest.approx(longest / len(words) if words else 0)
