"""The prompt: an exact budget, rank order, nothing cut silently."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.prompt import build_prompt
from edge_sdk.records import Hit, Message, Passage


def hit(number: int, words: int) -> Hit:
    text = " ".join(f"w{number}" for _ in range(words))
    return Hit(Passage(number, f"d{number}", "", "", text, 0, len(text)), 1.0 / number)


def render(messages: Sequence[Message]) -> str:
    return "".join(f"<{message.role}> {message.content} </s> " for message in messages)


def count(text: str) -> int:
    return len(text.split())


@given(st.lists(st.integers(1, 60), max_size=8), st.integers(0, 400))
def test_the_prompt_never_exceeds_the_budget_once_a_passage_is_in(sizes: list[int], budget: int) -> None:
    hits = [hit(number, size) for number, size in enumerate(sizes, 1)]
    prompt = build_prompt("why?", hits, render=render, count=count, budget=budget, limit=budget)
    assert prompt.tokens == count(prompt.text)
    assert prompt.tokens <= budget or not prompt.passages
    assert len(prompt.passages) + prompt.left_out == len(hits)
    ranks = [hits.index(passage) for passage in prompt.passages]
    assert ranks == sorted(ranks)


def test_passages_are_numbered_as_they_are_cited() -> None:
    prompt = build_prompt("why?", [hit(1, 3), hit(2, 3)], render=render, count=count, budget=1000, limit=1000)
    assert "[1] w1 w1 w1" in prompt.text
    assert "[2] w2 w2 w2" in prompt.text
    assert [passage.passage.document for passage in prompt.passages] == ["d1", "d2"]


def test_a_passage_without_room_is_passed_over_for_a_shorter_one() -> None:
    base = build_prompt("why?", [], render=render, count=count, budget=1000, limit=1000).tokens
    prompt = build_prompt(
        "why?", [hit(1, 500), hit(2, 5)], render=render, count=count, budget=base + 20, limit=base + 20
    )
    assert [passage.passage.document for passage in prompt.passages] == ["d2"]
    assert prompt.left_out == 1


def test_history_stands_between_system_and_question() -> None:
    history = (Message("user", "before"), Message("assistant", "answer"))
    prompt = build_prompt("now?", [], render=render, count=count, budget=1000, limit=1000, history=history)
    assert [message.role for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert prompt.messages[-1].content.endswith("Question: now?")


def test_the_best_passage_may_exceed_the_budget_up_to_the_limit() -> None:
    base = build_prompt("why?", [], render=render, count=count, budget=0, limit=0).tokens
    hits = [hit(1, 50), hit(2, 3)]
    prompt = build_prompt("why?", hits, render=render, count=count, budget=base + 10, limit=base + 60)
    assert [passage.passage.document for passage in prompt.passages] == ["d1"]
