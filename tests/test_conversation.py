"""A conversation keeps turns as they were sent, forgets the oldest or the newest on request."""

from __future__ import annotations

from edge_sdk.conversation import Conversation
from edge_sdk.records import Message


def chat(*questions: str) -> Conversation:
    conversation = Conversation()
    for question in questions:
        conversation.append(question, Message("user", f"passages {question}"), f"reply {question}")
    return conversation


def test_messages_alternate_and_keep_the_text_that_was_sent() -> None:
    assert [message.content for message in chat("a", "b").messages] == [
        "passages a",
        "reply a",
        "passages b",
        "reply b",
    ]


def test_the_oldest_turn_goes_first() -> None:
    conversation = chat("a", "b")
    assert conversation.drop_oldest()
    assert conversation.messages[0].content == "passages b"
    assert conversation.drop_oldest()
    assert not conversation.drop_oldest()


def test_undo_forgets_the_newest_and_says_how_many() -> None:
    conversation = chat("a", "b", "c")
    assert conversation.undo(2) == 2
    assert conversation.last_question == "a"
    assert conversation.undo(5) == 1
    assert conversation.undo(-1) == 0
    assert conversation.last_question is None


def test_labels_stay_when_their_turn_is_left_out_for_later_ones_may_repeat_it() -> None:
    chat = Conversation()
    assert not chat.begun
    chat.append("a?", Message("user", "a?"), "A.", ["private"])
    chat.append("b?", Message("user", "b?"), "B.", [""])
    assert chat.labels == {"private", ""}
    chat.drop_oldest()
    chat.drop_oldest()
    assert (chat.turns, chat.last_question) == ((), None)
    assert (chat.labels, chat.begun) == ({"private", ""}, True)
    assert Conversation(["private"]).begun


def test_what_was_taken_back_is_gone() -> None:
    chat = Conversation()
    chat.append("a?", Message("user", "a?"), "A.", ["private"])
    chat.undo()
    assert (chat.labels, chat.begun) == (frozenset(), False)
