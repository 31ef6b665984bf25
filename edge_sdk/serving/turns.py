"""Chats of clients that send the whole history with every question, as conversations.

What was answered here is remembered for a while as it was: with the labels of the passages that were read, and with
the prompt it had, so that the model need not read it again. Knows nothing of requests and of models.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from ..conversation import Conversation, Turn
from ..errors import RequestError
from ..records import Answer, Message

_REMEMBERED = 512  # turns
UNKNOWN = "unknown"
"""The label of a turn that was not answered here: it may hold anything, so the privacy gate keeps it here."""


class Turns:
    """The turns that were answered lately, found again by question and answer. For several threads."""

    def __init__(self) -> None:
        self._turns: OrderedDict[bytes, Turn] = OrderedDict()
        self._lock = Lock()

    def conversation(self, messages: Sequence[Message]) -> tuple[str, Conversation | None]:
        """The question, which is the last message, and the chat before it, if there was one.

        System messages are left out. Raises `RequestError` where user and assistant do not take turns.
        """
        said = [message for message in messages if message.role != "system"]
        if not said or any(each.role != ("user", "assistant")[at % 2] for at, each in enumerate(said)):
            raise RequestError("user and assistant do not take turns", hint="begin with the user")
        if len(said) % 2 == 0:
            raise RequestError("the last message is not the user's", hint="end with the question")
        if len(said) == 1:
            return said[0].content, None
        chat = Conversation()
        for user, assistant in zip(said[:-1:2], said[1::2], strict=True):
            turn = self._find(user.content, assistant.content)
            chat.append(turn.question, turn.user, turn.assistant.content, turn.labels)
        return said[-1].content, chat

    def remember(self, question: str, answer: Answer, chat: Conversation | None) -> None:
        """Keep what was answered; `chat` is the conversation that it was an answer in."""
        if chat is not None and chat.last_question == question:
            turn = chat.turns[-1]
        else:
            labels = {hit.passage.label for hit in answer.hits}
            turn = Turn(question, Message("user", question), Message("assistant", answer.text), tuple(labels))
        with self._lock:
            key = _key(question, answer.text)
            self._turns[key] = turn
            self._turns.move_to_end(key)
            while len(self._turns) > _REMEMBERED:
                self._turns.popitem(last=False)

    def _find(self, question: str, reply: str) -> Turn:
        with self._lock:
            known = self._turns.get(_key(question, reply))
        return known or Turn(question, Message("user", question), Message("assistant", reply), (UNKNOWN,))


def _key(question: str, reply: str) -> bytes:
    parts = (question.strip().encode("utf-8", "replace"), reply.strip().encode("utf-8", "replace"))
    return hashlib.sha256(len(parts[0]).to_bytes(8, "big") + b"".join(parts)).digest()
