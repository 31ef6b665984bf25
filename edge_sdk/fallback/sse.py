"""Server-sent events: bytes in, in any split, events out (WHATWG HTML, section 9.2.6), with a bound on size.

Pure: no socket, no clock. It knows nothing of what the data of an event means.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import RemoteProtocolError

MAX_LINE = 256 * 1024
MAX_EVENT = 8 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One dispatched event. `type` is "message" unless the stream names another.

    The fields `id` and `retry` serve reconnecting, which a POST never does, so they are not kept.
    """

    data: str
    type: str = "message"


class EventParser:
    """Feeds on bytes and yields the events that they complete.

    Lines end in LF, CR or CRLF, a leading byte order mark and comments are dropped, invalid UTF-8 becomes
    U+FFFD, and an event without its closing blank line is never dispatched, all as the standard says. A line
    above `max_line` bytes or an event above `max_event` raises `RemoteProtocolError` (before the newline of
    that line has come); the parser is of no use after that.

    >>> parser = EventParser()
    >>> list(parser.push(b"data: caf\\xc3"))
    []
    >>> list(parser.push(b"\\xa9\\r\\n\\r\\n: comment\\rdata: a\\ndata: b\\n\\n"))
    [ServerSentEvent(data='café', type='message'), ServerSentEvent(data='a\\nb', type='message')]
    """

    def __init__(self, *, max_line: int = MAX_LINE, max_event: int = MAX_EVENT) -> None:
        self._max_line, self._max_event = max_line, max_event
        self._line = bytearray()  # the unfinished line
        self._data: list[str] = []
        self._size = 0  # bytes of the lines in _data
        self._type = ""
        self._first, self._after_cr = True, False

    def push(self, data: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that `data` completes; exhaust the iterator before the next push."""
        if not data:
            return
        if self._after_cr:  # a CRLF may be split between two pushes
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r")
        for part in data.splitlines(keepends=True):  # of bytes: CR, LF and CRLF, and nothing else
            content = part.rstrip(b"\r\n")
            self._line += content
            if len(self._line) > self._max_line:
                raise RemoteProtocolError(f"a line of the event stream is longer than {self._max_line} bytes")
            if len(content) == len(part):
                return  # the last part has no line end yet
            line = bytes(self._line)
            self._line.clear()
            event = self._take(line)
            if event is not None:
                yield event

    def _take(self, line: bytes) -> ServerSentEvent | None:
        """Process one line without its end; a blank line dispatches what has been gathered."""
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        if not line:
            data, kind = self._data, self._type
            self._data, self._size, self._type = [], 0, ""
            return ServerSentEvent("\n".join(data), kind or "message") if data else None
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._size += len(value) + 1
            if self._size > self._max_event:
                raise RemoteProtocolError(f"an event of the stream is larger than {self._max_event} bytes")
            self._data.append(value.decode("utf-8", "replace"))
        elif name == b"event":
            self._type = value.decode("utf-8", "replace")
        return None
