"""Answers in the words of a passage: quoted, judged by a calibration of their own, and quicker than any model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from made_calibrations import calibration, certificate, hit

from edge_sdk.confidence.calibration import Calibrations
from edge_sdk.confidence.logistic import Term
from edge_sdk.confidence.signals import after, before
from edge_sdk.conversation import Conversation
from edge_sdk.edge import Edge
from edge_sdk.extracting import READ, Extractor
from edge_sdk.fakes import FakeEncoder, FakeEngine, FakeReader
from edge_sdk.prompt import Reading
from edge_sdk.readers.extract import Extract
from edge_sdk.records import Answer
from edge_sdk.storage.store import Store

MANUAL = "The pump stands in the cellar. Press the red button to reset the pump. It holds four litres."
QUESTION = "Which button resets the pump?"
SURE = {"reader_support": Term(0.0, 1.0, 2.0)}

Make = Callable[..., Edge]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """An assistant with a reader, and calibrations that trust it from a log-odds of nought on."""
    made: list[Edge] = []
    (tmp_path / "manual.txt").write_text(MANUAL, encoding="utf-8")

    def build(
        answer: str = "the red button",
        support: float = 6.0,
        *,
        engine: Callable[[], tuple[FakeEngine, Reading]] | None = None,
    ) -> Edge:
        folder = Calibrations(tmp_path / "calibrations")
        edge = Edge(
            Store.open(tmp_path / "store.db"),
            FakeEncoder,
            engine or (lambda: pytest.fail("the model was loaded")),
            reader=lambda: FakeReader({QUESTION: answer}, support),
            calibrations=folder,
        )
        edge.add([tmp_path / "manual.txt"])
        setup = edge.reader_setup()
        assert setup is not None
        folder.save(calibration(setup=setup, before=SURE, after=SURE, certified=certificate(0.6), dimension=256))
        made.append(edge)
        return edge

    yield build
    for edge in made:
        edge.close()


def model() -> tuple[FakeEngine, Reading]:
    return FakeEngine("Press the red one [1]."), Reading(600, True)


def test_a_sure_reader_answers_before_the_model_is_even_loaded(make: Make) -> None:
    answer = make().ask(QUESTION)
    assert (answer.text, answer.route, answer.model) == ("the red button", "local", "fake reader")
    (citation,) = answer.citations
    assert citation.quote == "Press the red button to reset the pump."
    assert MANUAL[citation.start : citation.end] == citation.quote
    assert answer.probability is not None and answer.probability > 0.6
    assert answer.timings.read_ms is not None and answer.timings.decode_ms is None
    assert "reader" in answer.explain()


def test_an_unsure_reader_leaves_it_to_the_model(make: Make) -> None:
    answer = make(support=-3.0, engine=model).ask(QUESTION)
    assert (answer.text, answer.model) == ("Press the red one [1].", "fake")
    assert answer.signals["reader_support"] == -3.0


def test_without_a_calibration_of_its_own_a_reader_only_gives_signals(make: Make, tmp_path: Path) -> None:
    edge = make(engine=model)
    edge.calibrations = Calibrations(tmp_path / "none")
    answer = edge.ask(QUESTION)
    assert answer.model == "fake"
    assert answer.probability is None
    assert answer.signals["reader_agrees"] == pytest.approx(2 / 3)


def test_a_reader_whose_calibration_promises_nothing_only_gives_signals(make: Make, tmp_path: Path) -> None:
    edge = make(engine=model)
    setup = edge.reader_setup()
    assert setup is not None
    folder = Calibrations(tmp_path / "unpromised")
    folder.save(calibration(setup=setup, before=SURE, after=SURE, dimension=256))
    edge.calibrations = folder
    assert edge.ask(QUESTION).model == "fake"


def test_a_conversation_is_the_models(make: Make) -> None:
    assert make(engine=model).ask(QUESTION, conversation=Conversation()).model == "fake"


def test_the_reader_is_part_of_what_a_models_calibration_depends_on(make: Make) -> None:
    one, other = make(engine=model).setup(), make("a lever", engine=model).setup()
    assert one.differences(other) == ["reader"]


def test_only_the_best_passages_are_read() -> None:
    class Counting(FakeReader):
        def read(self, question: str, passages: Sequence[str]) -> Extract:
            seen.append(len(passages))
            return super().read(question, passages)

    seen: list[int] = []
    extractor = Extractor(Counting({}))
    extractor.extract(QUESTION, [hit(f"Passage {number}.") for number in range(READ + 3)])
    assert seen == [READ]


def test_what_stands_nowhere_is_no_draft() -> None:
    extractor, hits = Extractor(FakeReader({QUESTION: "green"})), [hit(MANUAL)]
    draft = extractor.draft(extractor.extract(QUESTION, hits), hits)
    assert not draft.usable and not draft.cited.text


def test_signals_of_a_reader_are_bounded_and_missing_without_one() -> None:
    extract = FakeReader({QUESTION: "the red button"}, 1e9).read(QUESTION, [MANUAL])
    with_reader, without = before(QUESTION, [hit(MANUAL)], extract), before(QUESTION, [hit(MANUAL)])
    assert with_reader.keys() - without.keys() == {
        "reader_support",
        "reader_lead",
        "reader_passage",
        "reader_held",
    }
    assert with_reader["reader_support"] == with_reader["reader_lead"] == 10.0
    said = {
        text: after(QUESTION, [hit(MANUAL)], text, finish_reason="stop", refusal=False, extract=extract)
        for text in ("The red button.", "A lever.")
    }
    assert said["The red button."]["reader_agrees"] == 1.0
    assert said["A lever."]["reader_agrees"] == 0.0


def test_the_sentence_of_an_answer_is_its_evidence(make: Make) -> None:
    answer: Answer = make("four litres").ask(QUESTION)
    assert answer.citations[0].quote == "It holds four litres."
