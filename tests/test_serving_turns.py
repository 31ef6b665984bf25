"""Chats whose history comes from the client: what was answered here keeps its prompt and its labels."""

from __future__ import annotations

import pytest

from edge_sdk.conversation import Conversation
from edge_sdk.errors import RequestError
from edge_sdk.records import Answer, Hit, Message, Passage, Timings, TokenCounts
from edge_sdk.serving import turns as module
from edge_sdk.serving.turns import UNKNOWN, Asked, Turns


def message(role: str, content: str) -> Message:
    return Message(role, content)  # type: ignore[arg-type]


def dialogue(*texts: str) -> list[Message]:
    return [message(("user", "assistant")[at % 2], text) for at, text in enumerate(texts)]


def answer(text: str, *labels: str) -> Answer:
    hits = tuple(Hit(Passage(at, "d", "", "", "text", 0, 4, label=label), 1.0) for at, label in enumerate(labels))
    return Answer(text, (), None, "local", (), Timings(), TokenCounts(), "m", hits=hits)


def chat_of(turns: Turns, *texts: str) -> Conversation:
    chat = turns.asked(dialogue(*texts)).chat
    assert chat is not None
    return chat


def answered(turns: Turns, question: str, found: Answer, chat: Conversation | None = None) -> None:
    newest = chat.turns[-1] if chat is not None and chat.turns else None
    turns.remember(Asked(question, chat, newest), found)


def test_a_first_question_is_no_conversation() -> None:
    assert Turns().asked([message("system", "Be kind."), *dialogue("Hi?")]) == Asked("Hi?", None)


def test_what_was_not_answered_here_may_hold_anything() -> None:
    asked = Turns().asked(dialogue("Hi?", "Hello.", "And you?"))
    assert (asked.question, asked.chat is None) == ("And you?", False)
    assert asked.chat is not None
    (turn,) = asked.chat.turns
    assert turn is asked.newest
    assert (turn.question, turn.assistant.content, turn.labels) == ("Hi?", "Hello.", (UNKNOWN,))


def test_what_was_answered_here_has_the_labels_of_what_was_retrieved() -> None:
    turns = Turns()
    answered(turns, "Hi?", answer("Hello.", "private", ""))
    assert chat_of(turns, " Hi?", "Hello.\n", "And you?").labels == {"private", ""}


def test_a_turn_of_a_conversation_comes_back_with_the_prompt_that_it_had() -> None:
    turns, chat = Turns(), Conversation()
    asked = Asked("Hi?", chat)
    chat.append("Hi?", message("user", "[1] a passage\n\nHi?"), "Hello [7].", ["public"])
    turns.remember(asked, answer("Hello."))
    found = chat_of(turns, "Hi?", "Hello.", "And you?")
    assert found.messages == chat.messages
    assert found.labels == {"public"}


def test_an_answer_that_became_no_turn_is_not_taken_for_the_one_before() -> None:
    turns, chat = Turns(), Conversation()
    chat.append("Hi?", message("user", "Hi?"), "Hello.")
    answered(turns, "Hi?", answer("The documents do not say."), chat)  # asked again, and not answered
    assert (
        chat_of(turns, "Hi?", "The documents do not say.", "Why?").turns[0].assistant.content.startswith("The doc")
    )


def test_an_answer_may_repeat_what_was_said_before_it_so_it_has_those_labels_too() -> None:
    turns = Turns()
    answered(turns, "What is the code?", answer("The code is 4711.", "private"))
    chat = chat_of(turns, "What is the code?", "The code is 4711.", "And backwards?")
    answered(turns, "And backwards?", answer("It is 1174 then.", "public"), chat)
    shortened = chat_of(turns, "And backwards?", "It is 1174 then.", "Thanks, and the pump?")
    assert shortened.labels == {"private", "public"}


def test_the_same_answer_from_elsewhere_keeps_the_labels_of_both() -> None:
    turns = Turns()
    answered(turns, "Hi?", answer("Hello.", "private"))
    answered(turns, "Hi?", answer("Hello.", "public"))
    assert chat_of(turns, "Hi?", "Hello.", "And you?").labels == {"private", "public"}


def test_a_question_that_quotes_an_answer_has_its_labels() -> None:
    turns = Turns()
    answered(turns, "What is the code?", answer("The code is  4711-zebra.", "private"))
    answered(turns, "Hi?", answer("Yes.", "private"))
    (asked,) = [turns.asked(dialogue("Make a title:\nuser: code?\nassistant: The code is\n4711-zebra. Yes."))]
    assert asked.chat is not None
    assert (asked.chat.turns, asked.chat.labels, asked.chat.begun) == ((), {"private"}, True)
    assert turns.asked(dialogue("Is the answer Yes.")).chat is None, "too short to tell anything"


def test_another_answer_to_the_same_question_is_not_ours() -> None:
    turns = Turns()
    answered(turns, "Hi?", answer("Hello.", "public"))
    assert chat_of(turns, "Hi?", "Go away.", "And you?").labels == {UNKNOWN}


def test_the_oldest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 2)
    turns = Turns()
    for text in ("a", "b", "a", "c"):
        answered(turns, text, answer(text.upper(), "public"))
    found = {text: chat_of(turns, text, text.upper(), "?").labels for text in ("a", "b", "c")}
    assert found == {"a": {"public"}, "b": {UNKNOWN}, "c": {"public"}}


@pytest.mark.parametrize("roles", ["", "s", "a", "ua", "uu", "uaa", "uau a", "aua"])
def test_turns_that_are_none_are_refused(roles: str) -> None:
    names = {"u": "user", "a": "assistant", "s": "system"}
    said = [message(names[role], "x") for role in roles.replace(" ", "")]
    with pytest.raises(RequestError):
        Turns().asked(said)
