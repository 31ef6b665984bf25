"""The turns of one chat, kept exactly as they were sent so that the engine can reuse its KV cache.

Knows nothing of engines or stores; what to drop when the context is full is decided by the caller.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .records import Message


@dataclass(frozen=True, slots=True)
class Turn:
    """One question as the user typed it, the message it became, the reply, and the labels of the passages used."""

    question: str
    user: Message
    assistant: Message
    labels: tuple[str, ...] = ()


class Conversation:
    """Turns in order. Not shared between threads.

    >>> chat = Conversation()
    >>> chat.append("Hi?", Message("user", "Question: Hi?"), "Hello.")
    >>> [message.role for message in chat.messages], chat.undo(), len(chat.messages)
    (['user', 'assistant'], 1, 0)
    """

    def __init__(self, labels: Iterable[str] = ()) -> None:
        """`labels` are those of passages that what comes may repeat, though no turn here has used them."""
        self._turns: list[Turn] = []
        self._labels = set(labels)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Every turn, oldest first."""
        return tuple(self._turns)

    @property
    def messages(self) -> tuple[Message, ...]:
        """Every turn as chat messages, oldest first, without a system message."""
        return tuple(message for turn in self._turns for message in (turn.user, turn.assistant))

    @property
    def labels(self) -> frozenset[str]:
        """Those of all passages that were used, also for turns that were left out since: others may repeat them."""
        return frozenset(self._labels.union(*(turn.labels for turn in self._turns)))

    @property
    def begun(self) -> bool:
        """Whether anything was said before, be it left out by now."""
        return bool(self._turns or self._labels)

    @property
    def last_question(self) -> str | None:
        """The question of the newest turn, as typed."""
        return self._turns[-1].question if self._turns else None

    def append(self, question: str, user: Message, reply: str, labels: Iterable[str] = ()) -> None:
        """Add a finished turn; `labels` are those of the passages in its prompt."""
        self._turns.append(Turn(question, user, Message("assistant", reply), tuple(labels)))

    def drop_oldest(self) -> bool:
        """Leave out the oldest turn from now on; False when there was none. Its labels stay."""
        if not self._turns:
            return False
        self._labels.update(self._turns.pop(0).labels or ("",))
        return True

    def undo(self, turns: int = 1) -> int:
        """Forget the newest turns; returns how many there were to forget."""
        forgotten = min(max(turns, 0), len(self._turns))
        del self._turns[len(self._turns) - forgotten :]
        return forgotten
