"""An answer stays when it is given twice; what goes is accounted for."""

from __future__ import annotations

from threading import Event

import pytest
from made_teachers import ScriptedTeacher

from quantize.training_data.check import Candidate, Checked, agreement, check
from quantize.training_data.drops import Drops
from quantize.training_data.example import Example
from quantize.training_data.passages import SourcePassage

PASSAGE = SourcePassage("Ann Lee built the tower of Tarn in 1874, at the age of 30.", "Tower of Tarn")


def checked(answers: dict[str, str], replies: dict[str, str], drops: Drops) -> list[Checked]:
    teacher = ScriptedTeacher(lambda asked: replies[asked.rpartition("Question: ")[2]])
    candidates = [Candidate(question, PASSAGE, (answer,) if answer else ()) for question, answer in answers.items()]
    return list(check(candidates, teacher, source="made", drops=drops))


def test_agreeing_answers_stay_in_the_order_of_the_candidates_with_both_wordings() -> None:
    drops = Drops()
    found = checked(
        {"Who?": "Ann Lee", "When?": "1874", "Why?": ""},
        {"Who?": "ann lee", "When?": "in 1874.", "Why?": "Not in the text."},
        drops,
    )
    assert [each.example for each in found] == [
        Example("Who?", PASSAGE.text, ("Ann Lee",), "made"),
        Example("When?", PASSAGE.text, ("1874", "in 1874"), "made"),
        Example("Why?", PASSAGE.text, (), "made"),
    ]
    assert [round(each.agreement, 2) for each in found] == [1.0, 0.67, 1.0]
    assert {each.title for each in found} == {"Tower of Tarn"} and drops.kept == 3


def test_other_answers_and_refusals_are_dropped_with_the_reason() -> None:
    drops = Drops()
    found = checked(
        {"Who?": "Ann Lee", "When?": "1874", "Why?": ""},
        {"Who?": "Bob", "When?": "not in the text", "Why?": "at the age of 30"},
        drops,
    )
    assert found == [] and drops.kept == 0
    counts = {name: reason.count for name, reason in drops.reasons.items()}
    assert counts == {"answered otherwise when asked again": 2, "not answered when asked again": 1}
    assert drops.reasons["answered otherwise when asked again"].samples[0] == "Who? Ann Lee / Bob"


def test_what_is_cancelled_is_neither_given_nor_dropped() -> None:
    teacher, drops, cancel = ScriptedTeacher(lambda asked: "Ann Lee", stop_after=1), Drops(), Event()
    candidates = [Candidate(question, PASSAGE, ("Ann Lee",)) for question in ("Who?", "Whose?", "By whom?")]
    found = list(check(candidates, teacher, drops=drops, cancel=cancel))
    assert [each.example.question for each in found] == ["By whom?"]
    assert (drops.kept, drops.dropped, cancel.is_set()) == (1, 0, True)


def test_several_samples_must_agree_on_average() -> None:
    said = iter(["Ann Lee", "Bob", "Bob"] * 2)  # the last request is answered first
    candidate = Candidate.of(Example("Who?", PASSAGE.text, ("Ann Lee", "Lee")), "Tower of Tarn")
    teacher, drops = ScriptedTeacher(lambda asked: next(said)), Drops()
    assert list(check([candidate], teacher, samples=3, drops=drops)) == []
    assert drops.reasons["answered otherwise when asked again"].samples == ["Who? Ann Lee / Lee / Bob"]
    found = list(check([candidate], teacher, samples=3, least_agreement=0.3, source="made", drops=drops))
    assert found == [Checked(Example("Who?", PASSAGE.text, ("Ann Lee", "Lee"), "made"), 1 / 3, "Tower of Tarn")]
    assert len(teacher.asked) == 6


def test_agreement_is_the_mean_over_all_pairs() -> None:
    assert agreement(["Ann Lee", "Ann Lee", "Ann Lee"]) == agreement([]) == 1.0
    assert agreement(["Ann", "Bob", "Ann"]) == pytest.approx(1 / 3)
