"""What a passage holds of an answer is counted in words; numbers leave no room."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.training_data.grounding import groundedness

PASSAGE = "The bridge over the Aller was built by Ann Lee in 1889 and cost 12,000 marks."


@pytest.mark.parametrize(
    ("answer", "question", "expected"),
    [
        ("Ann Lee", "Who built it?", 1.0),
        ("Ann Lee builds bridges.", "", 1.0),
        ("It cost 12000 marks", "", 1.0),
        ("in 1890", "", 0.0),
        ("Ann Lee in 1890", "", 0.0),
        ("Bob Lee", "", 0.5),
        ("Bob built the bridge", "Who built the bridge?", 0.0),
        ("the bridge", "What is the bridge?", 1.0),
        ("", "", 0.0),
        ("!", "", 0.0),
    ],
)
def test_the_share_of_new_words_that_the_passage_holds(answer: str, question: str, expected: float) -> None:
    assert groundedness(answer, PASSAGE, question) == expected


@given(st.text(max_size=40), st.text(max_size=60), st.text(max_size=20))
def test_any_texts_give_a_share(answer: str, passage: str, question: str) -> None:
    assert 0 <= groundedness(answer, passage, question) <= 1
