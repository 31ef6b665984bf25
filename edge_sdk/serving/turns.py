"""Chats of clients that send the whole history with every question, as conversations.

What was answered here is remembered for a while: with the labels of all passages that it may repeat, and where it
was a turn of a chat with the prompt it had, so that the model need not read it again. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock

from ..conversation import Conversation, Turn
from ..errors import RequestError
from ..records import Answer, Message

UNKNOWN = "unknown"
"""The label of a turn that was not answered here: it may hold anything, so the privacy gate keeps it here."""

_REMEMBERED = 512  # turns
_TELLING = 12  # characters of a reply from which on it is looked for in questions
_LOOKED_AT = 200_000  # characters of a question


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with the chat before it, None for a first one, and the newest turn of that."""

    question: str
    chat: Conversation | None
    newest: Turn | None = None


class Turns:
    """The turns that were answered lately, found again by question and answer. For several threads."""

    def __init__(self) -> None:
        self._turns: OrderedDict[bytes, Turn] = OrderedDict()
        self._lock = Lock()

    def asked(self, messages: Sequence[Message]) -> Asked:
        """The last message is the question; system messages are left out.

        A question that quotes an answer which was given here has the labels of that: programs ask so for the title
        of a chat. Raises `RequestError` where user and assistant do not take turns.
        """
        said = [message for message in messages if message.role != "system"]
        if not said or any(each.role != ("user", "assistant")[at % 2] for at, each in enumerate(said)):
            raise RequestError("user and assistant do not take turns", hint="begin with the user")
        if len(said) % 2 == 0:
            raise RequestError("the last message is not the user's", hint="end with the question")
        question, quoted = said[-1].content, self._quoted(said[-1].content)
        if len(said) == 1 and not quoted:
            return Asked(question, None)
        chat = Conversation(quoted)
        for user, assistant in zip(said[:-1:2], said[1::2], strict=True):
            turn = self._find(user.content, assistant.content)
            chat.append(turn.question, turn.user, turn.assistant.content, turn.labels)
        return Asked(question, chat, chat.turns[-1] if chat.turns else None)

    def remember(self, asked: Asked, answer: Answer) -> None:
        """Keep what was answered. It may repeat what it has read and whatever was said before."""
        labels = {hit.passage.label for hit in answer.hits}
        turn = Turn(asked.question, Message("user", asked.question), Message("assistant", answer.text))
        if asked.chat is not None:
            labels |= asked.chat.labels
            if asked.chat.turns and asked.chat.turns[-1] is not asked.newest:
                turn = asked.chat.turns[-1]
        key = _key(asked.question, answer.text)
        with self._lock:
            if (known := self._turns.pop(key, None)) is not None:
                labels.update(known.labels)
            self._turns[key] = replace(turn, labels=tuple(sorted(labels)))
            while len(self._turns) > _REMEMBERED:
                self._turns.popitem(last=False)

    def _find(self, question: str, reply: str) -> Turn:
        with self._lock:
            known = self._turns.get(_key(question, reply))
        return known or Turn(question, Message("user", question), Message("assistant", reply), (UNKNOWN,))

    def _quoted(self, question: str) -> set[str]:
        """The labels of all turns whose reply the question quotes."""
        text = _plain(question[:_LOOKED_AT])
        with self._lock:
            turns = list(self._turns.values())
        replies = ((_plain(turn.assistant.content), turn.labels) for turn in turns)
        return {label for reply, labels in replies if len(reply) >= _TELLING and reply in text for label in labels}


def _plain(text: str) -> str:
    return " ".join(text.split())


def _key(question: str, reply: str) -> bytes:
    parts = (question.strip().encode("utf-8", "replace"), reply.strip().encode("utf-8", "replace"))
    return hashlib.sha256(len(parts[0]).to_bytes(8, "big") + b"".join(parts)).digest()
