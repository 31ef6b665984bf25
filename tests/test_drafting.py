"""The local answer under a judge: what is shown when, what is given up, and what a calibration depends on."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from threading import Event as Flag

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_calibrations import calibration, certificate, hit

from edge_sdk import drafting
from edge_sdk.confidence.calibration import Calibration
from edge_sdk.confidence.logistic import Term
from edge_sdk.conversation import Conversation
from edge_sdk.drafting import Draft, Drafter, Manner
from edge_sdk.engines.engine import Generation
from edge_sdk.fakes import FakeEncoder, FakeEngine, FakeReader
from edge_sdk.judge import Judge
from edge_sdk.prompt import Reading
from edge_sdk.readers.extract import Extract, Span
from edge_sdk.records import Event, GenerateOptions, Message
from edge_sdk.route import Policy

QUESTION = "Who built the tower?"
HITS = [hit("Gustave Eiffel built the tower in 1889."), hit("It rained in May.", 0.2, rank=2)]
LONG = "Gustave Eiffel built the tower with three hundred workers in two years and two months and five days."
NEVER = {"evidence": Term(0.0, 1.0, -9.0)}


def judge(found: Calibration | None = None, policy: Policy | None = None) -> Judge:
    return Judge(QUESTION, HITS, policy or Policy("remote"), calibration=found)


def drafted(steps: Generator[Event, None, Draft]) -> tuple[list[Event], Draft]:
    events: list[Event] = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as end:
            return events, end.value


def draft(
    script: str = LONG, it: Judge | None = None, manner: Manner | None = None, confidence: float = 0.8
) -> tuple[list[str], Draft]:
    drafter = Drafter(FakeEngine(script, confidence=confidence), Reading(600, False))
    events, found = drafted(drafter.draft(QUESTION, HITS, it or judge(), manner or Manner()))
    return [event.text for event in events if event.kind == "provisional"], found


@given(st.none() | st.integers(0, 40))
def test_what_is_shown_is_the_answer_held_back_as_long_as_wished(hold: int | None) -> None:
    shown, found = draft(manner=Manner(hold=hold))
    plain, _ = draft()
    assert found.cited.text == LONG
    if hold is None or hold >= len(plain):
        assert shown == []
    else:
        assert "".join(shown) == LONG
        assert shown[0] == "".join(plain[: hold + 1])
        assert shown[1:] == plain[hold + 1 :]


def test_a_hopeless_answer_is_given_up_and_the_engine_is_free_again() -> None:
    engine = FakeEngine([LONG, "Again."], confidence=0.3)
    drafter = Drafter(engine, Reading(600, False))
    it = judge(calibration(hand_off_window=-0.5))
    events, found = drafted(drafter.draft(QUESTION, HITS, it, Manner()))
    assert (it.decision.route, it.explanation.stage) == ("remote", "during")
    assert (found.usable, found.cited.text) == (False, "")
    assert found.tokens.completion == 8
    assert len([event for event in events if event.kind == "provisional"]) == 7
    assert drafted(drafter.draft(QUESTION, HITS, judge(), Manner()))[1].cited.text == "Again."


def test_with_enough_hold_a_hopeless_answer_is_never_shown() -> None:
    shown, found = draft(it=judge(calibration(hand_off_window=-0.5)), manner=Manner(hold=8), confidence=0.3)
    assert (shown, found.usable) == ([], False)


def test_only_what_is_served_becomes_a_turn() -> None:
    for found, turns in ((None, 1), (calibration(after=NEVER, certified=certificate()), 0)):
        conversation = Conversation()
        answer = draft(it=judge(found), manner=Manner(conversation=conversation))[1]
        assert len(conversation.turns) == turns
        assert answer.usable  # for where no remote can be reached
    conversation = Conversation()
    draft(it=judge(calibration(hand_off_window=-0.5)), manner=Manner(conversation=conversation), confidence=0.3)
    assert conversation.turns == ()


def test_a_refusal_is_not_usable() -> None:
    it = judge()
    _, found = draft("The documents do not say.", it)
    assert (it.decision.route, found.usable) == ("remote", False)


def test_a_cancelled_answer_is_what_there_was_and_no_turn() -> None:
    cancel, conversation, it = Flag(), Conversation(), judge()
    drafter = Drafter(FakeEngine(LONG), Reading(600, False))
    steps = drafter.draft(QUESTION, HITS, it, Manner(conversation=conversation, cancel=cancel))
    next(steps)
    cancel.set()
    _, found = drafted(steps)
    assert LONG.startswith(found.cited.text) and found.cited.text != LONG
    assert "cancelled" in found.reasons
    assert (it.decision.route, conversation.turns) == ("local", ())


def test_leaving_early_closes_the_generation() -> None:
    """As when an app drops the stream: the engine serves one generation at a time."""
    drafter = Drafter(FakeEngine(LONG), Reading(600, False))
    steps = drafter.draft(QUESTION, HITS, judge(), Manner())
    next(steps)
    steps.close()
    assert drafted(drafter.draft(QUESTION, HITS, judge(), Manner()))[1].cited.text == LONG


def test_an_answer_at_the_token_limit_is_signalled() -> None:
    it = judge(calibration())
    _, found = draft(it=it, manner=Manner(max_tokens=4))
    assert it.signals["cut"] == 1.0
    assert "cut at the token limit" in found.reasons


def test_an_answer_that_says_the_same_again_ends_there_and_is_signalled_as_cut() -> None:
    said = "The tower was built by Gustave Eiffel in 1889."
    it = judge(calibration())
    engine = FakeEngine(" ".join([said] * 20))
    _, found = drafted(Drafter(engine, Reading(600, False)).draft(QUESTION, HITS, it, Manner()))
    assert found.cited.text == said
    assert found.tokens.completion < 4 * len(said.split())
    assert it.signals["cut"] == 1.0
    assert "cut where it began to repeat itself" in found.reasons
    assert found.usable
    engine = FakeEngine(" ".join([said] * 3) + " ")  # it ends by itself just then
    _, found = drafted(Drafter(engine, Reading(600, False)).draft(QUESTION, HITS, judge(), Manner()))
    assert found.cited.text == said
    assert "cut where it began to repeat itself" in found.reasons


# --- evidence -----------------------------------------------------------------------------------------

RAIN = "It rained all day. Gustave Eiffel built the tower in 1889. The streets were wet and nobody went out."
PASSAGES = [hit("Nothing is said here. Nor here.", 0.1, rank=2), hit(RAIN)]


def chosen(
    tokens: int, question: str = QUESTION, conversation: Conversation | None = None
) -> tuple[FakeEngine, Draft]:
    engine = FakeEngine("Gustave Eiffel built it in 1889.")
    it = Drafter(engine, Reading(600, False, tokens), encode=FakeEncoder().encode)
    return engine, drafted(it.draft(question, PASSAGES, judge(), Manner(conversation=conversation)))[1]


def test_only_the_chosen_sentences_are_sent_and_the_citation_points_into_the_whole_passage() -> None:
    engine, found = chosen(10)
    assert "Gustave Eiffel built the tower in 1889." in engine.prompts[0]
    assert not any(other in engine.prompts[0] for other in ("It rained", "The streets", "Nothing is said"))
    (citation,) = found.cited.citations
    assert citation.quote == RAIN[citation.start : citation.end] == "Gustave Eiffel built the tower in 1889."
    assert found.passages == (PASSAGES[1].passage,)
    assert any(reason.startswith("read sentences of 1 passages") for reason in found.reasons)
    whole, before = chosen(0)
    assert RAIN in whole.prompts[0]
    assert before.tokens.prompt > found.tokens.prompt
    assert any(reason.startswith("read 2 passages") for reason in before.reasons)


def test_a_question_that_follows_up_is_understood_with_the_one_before() -> None:
    conversation = Conversation()
    chosen(10, conversation=conversation)
    engine, _ = chosen(10, "And when?", conversation)
    assert "Gustave Eiffel built the tower in 1889." in engine.prompts[0].rsplit("<|user|>", 1)[1]


def test_what_a_reader_found_helps_to_choose() -> None:
    asked, texts = "How was the weather?", [each.passage.text for each in PASSAGES]
    extract = FakeReader({asked: "wet"}).read(asked, texts)
    for found, shown in ((extract, True), (None, False)):
        engine = FakeEngine("Wet.")
        drafted(Drafter(engine, Reading(600, False, 10)).draft(asked, PASSAGES, judge(), Manner(), found))
        assert ("The streets were wet" in engine.prompts[0]) is shown


def test_a_reader_that_helps_to_choose_is_part_of_the_set_up() -> None:
    words = drafter(evidence_tokens=150)
    changed = words.setup("bm25", "MiniLM", reader="abc").differences(words.setup("bm25", "MiniLM"))
    assert changed == ["passages", "reader"]
    whole = drafter().setup("bm25", "MiniLM", reader="abc").differences(drafter().setup("bm25", "MiniLM"))
    assert whole == ["reader"]


def test_vectors_that_help_to_choose_are_part_of_the_set_up() -> None:
    words = drafter(evidence_tokens=150)
    both = replace(words, encode=FakeEncoder().encode)
    assert both.setup("bm25", "MiniLM").differences(words.setup("bm25", "MiniLM")) == ["passages"]
    assert replace(both, reading=Reading(600, False)).setup("bm25", "MiniLM") == drafter().setup("bm25", "MiniLM")


# --- answers in a reader's words --------------------------------------------------------------------


def test_an_extractive_model_chooses_among_what_the_reader_found() -> None:
    engine, asked = Remembering(), "How was the weather?"
    extract = FakeReader({asked: "wet"}).read(asked, [each.passage.text for each in PASSAGES])
    it = Drafter(engine, Reading(600, True, 10, extractive=True))
    _, found = drafted(it.draft(asked, PASSAGES, judge(), Manner(), extract))
    assert dict(engine.options[0].choices) == pytest.approx({"wet [1]": -0.1, "The documents do not say.": -0.1})
    assert found.cited.text == "wet [1]"
    assert found.cited.citations[0].quote == "The streets were wet and nobody went out."
    assert "was to choose among 2 answers in the reader's words" in found.reasons
    drafted(it.draft(asked, PASSAGES, judge(), Manner("brief"), extract))
    assert engine.options[1].choices[0][0] == "wet"
    drafted(it.draft(asked, PASSAGES, judge(), Manner()))
    free = replace(it, reading=replace(it.reading, extractive=False))
    _, found = drafted(free.draft(asked, PASSAGES, judge(), Manner(), extract))
    assert [options.choices for options in engine.options[2:]] == [(), ()]
    assert found.cited.text == "I do not know." and not any("choose" in reason for reason in found.reasons)


def test_what_was_chosen_is_given_whole_and_only_then() -> None:
    engine, asked, text = FakeEngine("wet [1]"), "How was the weather?", PASSAGES[1].passage.text
    spans = [
        Span(1, start, start + len(words), words, score)
        for words, score in (("wet", -0.8), ("The streets were wet", -0.9), ("streets were wet", -1.9))
        for start in [text.index(words)]
    ]
    extract = Extract(spans[0], (), 1.0, 1.0, (0.0, 1.0), 0.9, likely=tuple(spans))
    it, judging = Drafter(engine, Reading(600, True, 10, extractive=True)), judge()
    events, found = drafted(it.draft(asked, PASSAGES, judging, Manner(), extract))
    assert found.cited.text == "The streets were wet [1]"
    assert "chose 'wet [1]', and gave what agrees better with all that was likely" in found.reasons
    assert not any(event.kind == "provisional" for event in events)
    assert judging.signals["choice_held"] == pytest.approx(1.0)
    short = replace(extract, likely=(spans[0], replace(spans[1], score=-9.0)))
    _, found = drafted(it.draft(asked, PASSAGES, judging, Manner(), short))
    assert found.cited.text == "wet [1]" and not any("chose" in reason for reason in found.reasons)
    assert 0.99 < judging.signals["choice_held"] < 1


def test_without_answers_to_choose_from_there_is_no_signal_of_a_choice() -> None:
    it = Drafter(FakeEngine(), Reading(600, True, 10, extractive=True))
    nothing = FakeReader({}).read("How was the weather?", [each.passage.text for each in PASSAGES])
    for extract, signal in ((None, None), (nothing, 0.0)):
        judging = judge()
        drafted(it.draft("How was the weather?", PASSAGES, judging, Manner(), extract))
        assert judging.signals.get("choice_held") == signal


def test_a_question_that_follows_up_and_a_sampler_that_holds_already_leave_the_reader_out() -> None:
    engine, asked = Remembering(), "How was the weather?"
    extract = FakeReader({asked: "wet"}).read(asked, [each.passage.text for each in PASSAGES])
    it = Drafter(engine, Reading(600, True, 10, extractive=True))
    talk = Conversation()
    drafted(it.draft(asked, PASSAGES, judge(), Manner(conversation=talk), extract))
    drafted(it.draft(asked, PASSAGES, judge(), Manner(conversation=talk), extract))
    own = GenerateOptions(choices=(("yes", 0.0), ("no", 0.0)))
    drafted(replace(it, sampling=own).draft(asked, PASSAGES, judge(), Manner(), extract))
    assert [len(options.choices) for options in engine.options] == [2, 0, 2]
    assert engine.options[2].choices == own.choices


def test_a_reader_whose_words_are_chosen_from_is_part_of_the_set_up() -> None:
    free, held = drafter(), drafter(extractive=True)
    assert held.setup("bm25", "MiniLM") == free.setup("bm25", "MiniLM")
    with_reader = held.setup("bm25", "MiniLM", reader="abc")
    assert with_reader.differences(free.setup("bm25", "MiniLM", reader="abc")) == ["passages"]


# --- what a calibration is filed under -------------------------------------------------------------


class Remembering(FakeEngine):
    """Keeps the options that it was asked with."""

    def __init__(self) -> None:
        super().__init__()
        self.options: list[GenerateOptions] = []

    def generate(self, prompt: str, options: GenerateOptions, cancel: Flag | None = None) -> Generation:
        self.options.append(options)
        return super().generate(prompt, options, cancel)


class OtherTemplate(FakeEngine):
    def render(self, messages: object) -> str:
        return super().render([*messages, Message("system", "Think.")])  # type: ignore[misc]


def drafter(engine: FakeEngine | None = None, **reading: object) -> Drafter:
    return Drafter(engine or FakeEngine(), replace(Reading(600, False), **reading))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: drafter(FakeEngine(name="quantized otherwise")).setup("bm25", "MiniLM"), ["model"]),
        (lambda: drafter(OtherTemplate()).setup("bm25", "MiniLM"), ["prompt"]),
        (lambda: drafter(numbered=True).setup("bm25", "MiniLM"), ["prompt"]),
        (lambda: drafter().setup("bm25", "MiniLM", "brief"), ["prompt"]),
        (lambda: drafter(prompt_tokens=900).setup("bm25", "MiniLM"), ["passages"]),
        (lambda: drafter().setup("other", "MiniLM"), ["retrieval"]),
        (lambda: drafter().setup("bm25", "mpnet"), ["encoder"]),
        (lambda: drafter(FakeEngine(context=320)).setup("bm25", "MiniLM"), ["passages"]),
        (lambda: drafter(evidence_tokens=150).setup("bm25", "MiniLM"), ["passages"]),
    ],
)
def test_each_change_of_the_set_up_is_named(other: Callable[[], drafting.Setup], named: list[str]) -> None:
    assert other().differences(drafter().setup("bm25", "MiniLM")) == named


def test_another_sampler_is_another_set_up() -> None:
    before = drafter().setup("bm25", "MiniLM")
    cases = (
        (GenerateOptions(temperature=0.7), ["sampler"]),
        (GenerateOptions(max_tokens=9), []),
        (GenerateOptions(choices=(("yes", 0.0),)), ["sampler"]),
    )
    for sampling, named in cases:
        assert replace(drafter(), sampling=sampling).setup("bm25", "MiniLM").differences(before) == named


def test_calibrations_outlive_options_that_nobody_sets() -> None:
    """The hash of the default sampler is in every calibration that was ever made."""
    assert drafter().setup("bm25", "MiniLM").parts["sampler"] == "037f13607c40042f"


def test_the_sampler_is_the_engines_with_the_tokens_that_are_asked_for() -> None:
    engine = Remembering()
    it = replace(drafter(engine), sampling=GenerateOptions(max_tokens=9, temperature=0.7, top_k=3))
    drafted(it.draft(QUESTION, HITS, judge(), Manner(max_tokens=50)))
    assert engine.options == [GenerateOptions(max_tokens=50, temperature=0.7, top_k=3)]


def test_what_was_asked_before_is_no_part_of_the_set_up() -> None:
    it = drafter()
    before = it.setup("bm25", "MiniLM")
    drafted(it.draft(QUESTION, HITS, judge(), Manner()))
    assert it.setup("bm25", "MiniLM") == before
