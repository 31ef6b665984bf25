"""One question in other words, and another question in nearly the same: told apart by rules."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.fallback.english import rewritten
from edge_sdk.fallback.rewording import LONGEST, difference, needs_more

WORDS = "who did not beat Rome in 1990 'U.S.' c++ -5 3.11 a\u0301 का ?!\0\ud800 US it by from".split(" ")
QUESTIONS = st.lists(st.sampled_from(WORDS) | st.text(max_size=6), max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of France?", "what's the capital of france"),
        ("Who wrote Hamlet?", "By whom was Hamlet written?"),
        ("Who wrote Hamlet?", "Could you please tell me who wrote Hamlet?"),
        ("Who wrote Hamlet?", "What is the name of the person who wrote Hamlet?"),
        ("When did the war begin?", "In what year did the war start?"),
        ("Why did Rome fall?", "For what reason did Rome fall?"),
        ("Who won the cup in 1990?", "In 1990, who won the cup?"),
        ("How do I reset the router password?", "How can I reset the password of the router?"),
        ("Which colour is the valve?", "What color is the valve?"),
        ("How do I reset the router?", "What is the way to reset the router?"),
        ("How tall is the mast?", "What is the height of the mast?"),
        ("How much does the red bike cost?", "What's the price of the red bike?"),
        ("Who invented the zip?", "Who is the inventor of the zip?"),
        ("Where did the battle take place?", "Where was the battle?"),
        ("Can I install it without root?", "Is it possible to install it without root?"),
        ("Isn't the valve open?", "Is the valve not open?"),
        ("What is the population of the U.S.?", "What's the population of the US?"),
        ("Name the largest city in Chad.", "What is the biggest city in Chad?"),
        ("How many people live in its 1,500 houses?", "How many people live in its 1500 houses?"),
    ],
)
def test_a_paraphrase_is_the_same_question(one: str, other: str) -> None:
    assert difference(one, other) == "" == difference(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Who won the cup in 2019?", "Who won the cup in 2020?"),
        ("Who won the first cup?", "Who won the second cup?"),
        ("Is it safe to cook with gas?", "Is it safe to cook without gas?"),
        ("Which valve should be open?", "Which valve should not be open?"),
        ("What is the largest city in Chad?", "What is the smallest city in Chad?"),
        ("Who wrote Hamlet?", "Who wrote Macbeth?"),
        ("who wrote hamlet", "who wrote macbeth"),
        ("Who wrote Hamlet?", "When was Hamlet written?"),
        ("Who is the president of Chad?", "Who was the president of Chad?"),
        ("Who beat Rome?", "Who did Rome beat?"),
        ("Who was beaten by Rome?", "Who beat Rome?"),
        ("How did Rome beat Gaul?", "How did Gaul beat Rome?"),
        ("is rome in gaul", "is gaul in rome"),
        ("When does the train from Rome to Bari leave?", "When does the train from Bari to Rome leave?"),
        ("How do I convert miles to metres?", "How do I convert metres to miles?"),
        ("Is iron heavier than lead?", "Is lead heavier than iron?"),
        ("What do I do before the test?", "What do I do after the test?"),
        ("How do I turn the heater on?", "How do I turn the heater off?"),
        ("What is asyncio.wait for?", "What is asyncio.wait_for for?"),
        ("What is new in Python 3.11?", "What is new in Python 3.1?"),
        ("Is C++ compiled?", "Is C# compiled?"),
        ("Is C compiled?", "Is C++ compiled?"),
        ("What is -5 squared?", "What is 5 squared?"),
        ("What is 5 - 3?", "What is 5 / 3?"),
        ("What does a != b mean?", "What does a = b mean?"),
        ("Should I choose A or B?", "Should I choose A and B?"),
        ("Where is the US?", "Where is us?"),
        ("कल का दिन?", "कल की दिन?"),
        ("What is the file name of the report?", "What is the file of the report?"),
        ("Is it possible to open it?", "Must I open it?"),
        ("How tall is the mast?", "How long is the mast?"),
        ("Do I need one pill more?", "Do I need one pill less?"),
        ("?", "?"),
        ("", ""),
    ],
)
def test_another_question_is_another_question(one: str, other: str) -> None:
    assert difference(one, other)
    assert difference(other, one)


@pytest.mark.parametrize(
    "question",
    [
        "How do I reset it?",
        "What about this?",
        "What is the time now?",
        "Where is my order?",
        "",
        "???",
        "x" * 2000,
    ],
)
def test_what_depends_on_more_than_its_words_is_not_for_learning(question: str) -> None:
    assert needs_more(question)


@pytest.mark.parametrize("question", ["How do I reset the router?", "When did Kant write his first critique?"])
def test_a_question_that_stands_alone_is(question: str) -> None:
    assert needs_more(question) == ""


@given(QUESTIONS, QUESTIONS)
def test_the_comparison_never_fails_and_has_no_direction(one: str, other: str) -> None:
    assert bool(difference(one, other)) == bool(difference(other, one))
    assert difference(one, one) in ("", "one has no word that carries meaning")
    needs_more(one)


@pytest.mark.parametrize(
    "part", ["please ", "what is the name of the ", "1,000", "U.S.", "who's ", "!=", "tell me ", " ", "hi\n"]
)
def test_hostile_text_takes_no_time_to_speak_of(part: str) -> None:
    text = part * (200_000 // len(part))
    started = time.process_time()
    assert difference(text, text) == f"one is longer than {LONGEST} characters"
    assert needs_more(text)
    rewritten(part * (LONGEST // len(part)))
    assert time.process_time() - started < 5  # quadratic growth would take hours
