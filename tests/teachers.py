"""A teacher for tests that answers at once, as it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Event

from edge_sdk.errors import EdgeError
from edge_sdk.records import Message
from quantize.teachers.teacher import Reply, Request


class ScriptedTeacher:
    """Replies in reverse order with what `say` makes of the last message; `asked` has every request that it saw.

    `fails_after` replies it raises.
    """

    fingerprint = "scripted"

    def __init__(self, say: Callable[[str], str] = str.upper, *, fails_after: int | None = None) -> None:
        self._say, self._fails_after = say, fails_after
        self.asked: list[Request] = []

    def replies(self, requests: Sequence[Request], cancel: Event | None = None) -> Iterator[tuple[int, Reply]]:
        for given, position in enumerate(reversed(range(len(requests)))):
            if cancel is not None and cancel.is_set():
                return
            if given == self._fails_after:
                raise EdgeError("the teacher has left")
            request = requests[position]
            self.asked.append(request)
            text = self._say(request.messages[-1].content)
            yield position, Reply(text, "stop", 3, 2, (-0.1, -1 / 3), 0.25)


def requests_of(*contents: str) -> list[Request]:
    return [Request((Message("user", content),)) for content in contents]
