"""Curation keeps what follows the rules, drops the rest for a reason that is told, and always decides alike."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.fakes import FakeEncoder
from quantize.training_data.curate import Rules, curate, describe, split
from quantize.training_data.example import Example
from quantize.training_data.leakage import Leakage

PASSAGE = "The tower of Tarn was built by Ann Lee in 1874, and it is 31 metres tall with a lamp of whale oil."
GOOD = Example("Who built the tower of Tarn?", PASSAGE, ("Ann Lee",), "made")
OTHER = Example("How tall is the tower that stands in Tarn?", PASSAGE, ("31 metres",), "made")


def reasons(*examples: Example, rules: Rules = Rules(), **others: object) -> list[str]:  # noqa: B008
    """Why each of the examples was dropped, one reason after the other."""
    curated = curate(examples, rules, **others)  # type: ignore[arg-type]
    return [name for name, reason in curated.drops.reasons.items() for _ in range(reason.count)]


def test_good_examples_stay_in_their_order() -> None:
    curated = curate([GOOD, OTHER])
    assert curated.examples == (GOOD, OTHER) and curated.drops.dropped == 0


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (replace(GOOD, question="Who built?"), "question too short"),
        (replace(GOOD, question="Who " * 41), "question too long"),
        (replace(GOOD, passage="Ann Lee built it."), "passage too short"),
        (replace(GOOD, passage=PASSAGE * 70), "passage too long"),
        (replace(GOOD, answers=("Ann Lee" * 60,)), "answer too long"),
        (
            replace(GOOD, question="Qui a construit la tour?", passage="La tour de Tarn a été construite par " * 3),
            "language: fr",
        ),
        (replace(GOOD, passage="x1 = y2; foo(bar, baz) -> qux " * 4), "language: unknown"),
        (replace(GOOD, answers=("Bob Oak",)), "answer not in the passage"),
    ],
)
def test_what_breaks_a_rule_is_dropped_for_it(example: Example, reason: str) -> None:
    assert reasons(example) == [reason]
    assert reasons(OTHER, example) == [reason]


def test_one_grounded_answer_of_several_is_enough_and_none_is_no_fault() -> None:
    assert not reasons(replace(GOOD, answers=("Bob Oak", "Ann Lee")))
    assert not reasons(replace(GOOD, answers=()))
    assert not reasons(replace(GOOD, answers=("Bob Lee",)), rules=Rules(groundedness=0.5))


def test_repeats_are_dropped_also_in_other_words_and_in_nearly_the_same_passage() -> None:
    nearly = PASSAGE.replace("whale oil", "fish oil")
    assert reasons(GOOD, GOOD) == ["twice"]
    assert reasons(GOOD, replace(GOOD, question="Who built the TOWER of Tarn")) == ["question repeats another one"]
    assert reasons(GOOD, replace(GOOD, passage=nearly)) == ["question repeats another one"]
    same = replace(GOOD, question="Who was it that built the tower of Tarn?")
    assert reasons(GOOD, same, rules=Rules(question_likeness=0.8)) == ["question and answer repeat others"]
    for answers in (("1874",), ()):
        assert not reasons(
            replace(GOOD, answers=answers[:0]), replace(same, answers=answers), rules=Rules(question_likeness=0.8)
        )


def test_questions_made_alike_about_other_passages_stay() -> None:
    others = [
        Example(
            f"Who built the tower of {town}?",
            f"In {town} there is a tower, which {name} has built there of stone.",
            (name,),
        )
        for town, name in (("Holm", "Bo Elm"), ("Vik", "Cy Ash"), ("Nes", "Di Fir"))
    ]
    assert not reasons(GOOD, *others)
    assert not reasons(GOOD, replace(GOOD, passage=others[0].passage, answers=()))


def test_what_gives_the_evaluation_away_is_dropped() -> None:
    leakage = Leakage([Example("Who built the tower of Tarn?", "Elsewhere.")], titles=["Tarn"])
    assert reasons(GOOD, leakage=leakage) == ["question of the evaluation set"]
    assert reasons(OTHER, leakage=leakage) == []
    assert reasons(OTHER, leakage=leakage, titles={PASSAGE: "Tarn"}) == ["title of the evaluation set"]


def test_scores_below_the_least_are_dropped_and_only_what_is_left_is_scored() -> None:
    scored: list[str] = []

    def score(example: Example) -> float:
        scored.append(example.question)
        return 1.0 if example == GOOD else -1.0

    bad = replace(GOOD, question="Who built?")
    assert reasons(bad, GOOD, OTHER, rules=Rules(quality=0.0), scores=score) == [
        "question too short",
        "question does not fit its passage",
    ]
    assert scored == [GOOD.question, OTHER.question]
    assert not reasons(OTHER, scores=score)


def many(count: int) -> list[Example]:
    return [
        Example(
            f"Who built tower {at} in {'Tarn' if at % 10 else 'Vik'}?",
            f"{PASSAGE} It is number {at} of {at * 7}.",
            answers,
        )
        for at in range(count)
        for answers in [("Ann Lee",) if at % 3 else ()]
    ]


def test_a_budget_is_filled_with_both_kinds_in_their_proportion() -> None:
    rules = Rules(budget=12, passage_likeness=1.0)
    curated = curate(many(60), rules, encoder=FakeEncoder())
    assert len(curated.examples) == 12 and sum(not each.answers for each in curated.examples) == 4
    assert curated.drops.reasons["beyond the budget"].count == 48
    assert curated.coverage["chosen"] > curated.coverage["at random"]
    assert curated == curate(many(60), rules, encoder=FakeEncoder())
    order = [each.id for each in many(60)]
    assert [order.index(each.id) for each in curated.examples] == sorted(
        order.index(e.id) for e in curated.examples
    )


def test_a_budget_that_is_not_reached_changes_nothing_and_needs_an_encoder_all_the_same() -> None:
    assert curate([GOOD], Rules(budget=5), encoder=FakeEncoder()).examples == (GOOD,)
    with pytest.raises(ValueError, match="encoder"):
        curate([GOOD], Rules(budget=5))


def test_the_report_says_what_was_dropped_and_what_is_kept() -> None:
    curated = curate(
        [
            GOOD,
            OTHER,
            replace(GOOD, question="Who lit it at last?", answers=("Bob",)),
            replace(OTHER, question="Is the lamp electric?", answers=()),
        ]
    )
    facts = json.loads(json.dumps(curated.to_dict()))
    assert (facts["seen"], facts["kept"], facts["dropped"]["answer not in the passage"]["count"]) == (4, 3, 1)
    assert facts["examples"]["unanswerable"] == 1 and facts["examples"]["passages"] == 1
    assert "| answer not in the passage | 1 | 25.0 % |" in curated.markdown()
    assert "| first words | who 1, how 1, is 1 |" in curated.markdown()
    assert describe([])["examples"] == 0 and curate([]).markdown()


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=40), st.floats(0, 1))
def test_a_split_puts_all_questions_of_a_passage_on_one_side(drawn: list[tuple[int, int]], share: float) -> None:
    examples = [Example(f"Question {question}?", f"Passage {passage}.") for passage, question in drawn]
    learned, held_out = split(examples, share)
    assert sorted(each.id for each in learned + held_out) == sorted(each.id for each in examples)
    assert not {each.passage for each in learned} & {each.passage for each in held_out}
    assert all(each.held_out < share for each in held_out)


def test_a_split_holds_out_about_the_share_asked_for() -> None:
    examples = [Example("Who?", f"Passage {number}.") for number in range(1000)]
    assert 150 < len(split(examples, 0.2)[1]) < 250
    assert split(examples, 0.0)[1] == [] and split(examples, 1.0)[0] == []
