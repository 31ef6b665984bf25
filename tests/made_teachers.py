"""A teacher without weights: it says what a function of the last message says, and counts what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Event

from quantize.teachers.teacher import Reply, Request


class ScriptedTeacher:
    """Replies in the reverse of the order of the requests, as a batch might; `asked` are the last messages."""

    def __init__(self, script: Callable[[str], str], *, stop_after: int | None = None) -> None:
        """With `stop_after`, sets the flag that it was given after so many replies."""
        self._script, self._stop_after = script, stop_after
        self.asked: list[str] = []

    @property
    def fingerprint(self) -> str:
        """The same for all scripts."""
        return "scripted"

    def replies(self, requests: Sequence[Request], cancel: Event | None = None) -> Iterator[tuple[int, Reply]]:
        """See `Teacher.replies`."""
        for position in reversed(range(len(requests))):
            if cancel is not None and (cancel.is_set() or len(self.asked) == self._stop_after):
                cancel.set()
                return
            self.asked.append(requests[position].messages[-1].content)
            text = self._script(self.asked[-1])
            yield position, Reply(text, "stop", 10, max(1, len(text) // 4))
