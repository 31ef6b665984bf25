"""Chats whose history comes from the client: what was answered here keeps its prompt and its labels."""

from __future__ import annotations

import pytest

from edge_sdk.conversation import Conversation
from edge_sdk.errors import RequestError
from edge_sdk.records import Answer, Hit, Message, Passage, Timings, TokenCounts
from edge_sdk.serving import turns as module
from edge_sdk.serving.turns import UNKNOWN, Turns


def message(role: str, content: str) -> Message:
    return Message(role, content)  # type: ignore[arg-type]


def dialogue(*texts: str) -> list[Message]:
    return [message(("user", "assistant")[at % 2], text) for at, text in enumerate(texts)]


def answer(text: str, *labels: str) -> Answer:
    hits = tuple(Hit(Passage(at, "d", "", "", "text", 0, 4, label=label), 1.0) for at, label in enumerate(labels))
    return Answer(text, (), None, "local", (), Timings(), TokenCounts(), "m", hits=hits)


def test_a_first_question_is_no_conversation() -> None:
    assert Turns().conversation([message("system", "Be kind."), *dialogue("Hi?")]) == ("Hi?", None)


def test_what_was_not_answered_here_may_hold_anything() -> None:
    question, chat = Turns().conversation(dialogue("Hi?", "Hello.", "And you?"))
    assert question == "And you?"
    assert chat is not None
    (turn,) = chat.turns
    assert (turn.question, turn.assistant.content, turn.labels) == ("Hi?", "Hello.", (UNKNOWN,))


def test_what_was_answered_here_has_the_labels_of_what_was_retrieved() -> None:
    turns = Turns()
    turns.remember("Hi?", answer("Hello.", "private", ""), None)
    _, chat = turns.conversation(dialogue(" Hi?", "Hello.\n", "And you?"))
    assert chat is not None
    assert set(chat.turns[0].labels) == {"private", ""}


def test_a_turn_of_a_conversation_comes_back_with_the_prompt_that_it_had() -> None:
    turns, before = Turns(), Conversation()
    before.append("Hi?", message("user", "[1] a passage\n\nHi?"), "Hello [7].", ["public"])
    turns.remember("Hi?", answer("Hello."), before)
    _, chat = turns.conversation(dialogue("Hi?", "Hello.", "And you?"))
    assert chat is not None
    assert chat.messages == before.messages
    assert chat.turns[0].labels == ("public",)


def test_an_answer_that_became_no_turn_is_not_taken_for_the_one_before() -> None:
    turns, before = Turns(), Conversation()
    before.append("Hi?", message("user", "Hi?"), "Hello.")
    turns.remember("And you?", answer("The documents do not say."), before)
    _, chat = turns.conversation(dialogue("And you?", "The documents do not say.", "Why?"))
    assert chat is not None
    assert chat.last_question == "And you?"


def test_another_answer_to_the_same_question_is_not_ours() -> None:
    turns = Turns()
    turns.remember("Hi?", answer("Hello.", "public"), None)
    _, chat = turns.conversation(dialogue("Hi?", "Go away.", "And you?"))
    assert chat is not None
    assert chat.turns[0].labels == (UNKNOWN,)


def test_the_oldest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 2)
    turns = Turns()
    for text in ("a", "b", "a", "c"):
        turns.remember(text, answer(text.upper(), "public"), None)
    found = {}
    for text in ("a", "b", "c"):
        _, chat = turns.conversation(dialogue(text, text.upper(), "?"))
        assert chat is not None
        found[text] = chat.turns[0].labels
    assert found == {"a": ("public",), "b": (UNKNOWN,), "c": ("public",)}


@pytest.mark.parametrize("roles", ["", "s", "a", "ua", "uu", "uaa", "uau a", "aua"])
def test_turns_that_are_none_are_refused(roles: str) -> None:
    names = {"u": "user", "a": "assistant", "s": "system"}
    said = [message(names[role], "x") for role in roles.replace(" ", "")]
    with pytest.raises(RequestError):
        Turns().conversation(said)
