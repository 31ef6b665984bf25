"""The chat-completions wire format: messages to the bytes of a request, the bytes of a reply to text.

Pure: no socket, no clock, no credentials. A reply that does not end by the server's own word is an error,
so part of an answer is never taken for the whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import isfinite
from typing import Any

from ..errors import RemoteError, RemoteProtocolError
from ..records import Message
from .sse import EventParser

SHOWN = 200  # characters of a server's own words in an error message
_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})


def request_body(
    model: str,
    messages: Sequence[Message],
    *,
    max_tokens: int,
    temperature: float,
    include_usage: bool = False,
    extra: Mapping[str, object] | None = None,
) -> bytes:
    """The JSON body of a streaming request, UTF-8; a lone surrogate becomes "?".

    `include_usage` asks for token counts, which some servers refuse as an unknown field. `extra` has more fields of
    the API, like `seed`.

    >>> request_body("m", [Message("user", "é?")], max_tokens=5, temperature=0.0).decode()
    '{"model":"m","messages":[{"role":"user","content":"é?"}],"max_tokens":5,"temperature":0.0,"stream":true}'
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stream": True,
    }
    if include_usage:
        body["stream_options"] = {"include_usage": True}
    return json.dumps(body | dict(extra or {}), ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "replace"
    )


class ReplyReader:
    """Reads the body of one reply: iterate `read` for the text, then look at the attributes.

    `media_type` is that of the response: an event stream, or one JSON document from a server that does not
    stream. `conceal` (the key) is blanked out of the server's words in errors.

    >>> reader = ReplyReader("text/event-stream")
    >>> body = b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\\n\\ndata: [DONE]\\n\\n'
    >>> list(reader.read([body])), reader.finish_reason
    (['Hi'], 'stop')
    """

    def __init__(self, media_type: str, *, conceal: str | None = None) -> None:
        self._media_type, self._conceal = media_type, conceal
        self.finish_reason = ""  # the server's word; "unknown" where it only said that it is done
        self.model: str | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.logprobs: list[float] = []  # one a token, in nats, where the request asked for them

    def read(self, chunks: Iterable[bytes]) -> Iterator[str]:
        """Yield the text as it comes; the chunks may be split anywhere.

        A streamed reply has ended when the server gave a finish reason or `[DONE]`; if the connection breaks
        after that, the reply counts. Raises `RemoteProtocolError` for all that is no such reply, an empty
        text included, and passes on what `chunks` raises.
        """
        if self._media_type == "text/event-stream":
            pieces = self._stream(chunks)
        elif self._media_type == "application/json":
            pieces = self._document(b"".join(chunks))
        else:
            kind = "an HTML page" if "html" in self._media_type else repr(one_line(self._media_type))
            raise RemoteProtocolError(
                f"the remote sent {kind} instead of an event stream or JSON",
                hint="check the URL: it must be that of an OpenAI-compatible API",
            )
        empty = True
        for piece in pieces:
            empty = empty and piece.isspace()
            yield piece
        if not self.finish_reason:
            raise RemoteProtocolError("the remote's reply was cut off: it gave no finish reason")
        if empty:
            raise RemoteProtocolError(
                f"the remote's reply is empty (finish reason {self.finish_reason!r})",
                hint="raise --max-tokens" if self.finish_reason == "length" else "",
            )

    def _stream(self, chunks: Iterable[bytes]) -> Iterator[str]:
        parser = EventParser()
        for chunk in self._until_broken(chunks):
            for event in parser.push(chunk):
                data = event.data.strip()
                if data == "[DONE]":
                    self.finish_reason = self.finish_reason or "unknown"
                    return
                if not data:
                    continue
                content = _load(data)
                if event.type == "error":
                    raise self._error(content)
                yield from self._text(content, "delta")

    def _document(self, body: bytes) -> Iterator[str]:
        yield from self._text(_load(body), "message")
        self.finish_reason = self.finish_reason or "unknown"

    def _until_broken(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks; a broken connection is the plain end of a reply that had a finish reason already."""
        try:
            yield from chunks
        except RemoteError:
            if not self.finish_reason:
                raise

    def _text(self, content: object, part: str) -> Iterator[str]:
        """Take one JSON object: yield the text in `choices[0][part]`, note the rest."""
        if not isinstance(content, dict):
            raise RemoteProtocolError(f"the remote sent a JSON {type(content).__name__} instead of an object")
        if content.get("error"):
            raise self._error(content)
        self._note(content)
        choices = content.get("choices")
        if choices == [] and part == "delta":  # the chunk that holds the token counts
            return
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            raise RemoteProtocolError(
                "the remote sent JSON without choices", hint="is it an OpenAI-compatible API?"
            )
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            self.finish_reason = one_line(reason)
        self.logprobs += _logprobs(choice.get("logprobs"))
        message = choice.get(part)
        text = message.get("content") if isinstance(message, dict) else message
        if text is not None and not isinstance(text, str):
            raise RemoteProtocolError(f"the remote sent a {type(text).__name__} as text")
        # JSON can spell half a character, which no file, terminal or database takes, and what a terminal obeys.
        plain = (text or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace").translate(_CONTROLS)
        if plain:
            yield plain

    def _note(self, content: dict[str, Any]) -> None:
        model, usage = content.get("model"), content.get("usage")
        if isinstance(model, str) and model:
            self.model = one_line(model)
        if isinstance(usage, dict):
            self.prompt_tokens = _count(usage.get("prompt_tokens"))
            self.completion_tokens = _count(usage.get("completion_tokens"))

    def _error(self, content: object) -> RemoteProtocolError:
        words = _error_text(content, self._conceal)
        return RemoteProtocolError(f"the remote broke off with an error: {words or 'it gave no reason'}")


def server_words(body: bytes, media_type: str, *, conceal: str | None = None) -> str:
    """What an error reply says, in one line of at most 200 characters; "" where it says nothing readable.

    >>> server_words(b'{"error": {"message": "no such\\\\nmodel"}}', "application/json")
    'no such model'
    >>> server_words(b"<html>...", "text/html")
    'an HTML page'
    """
    if "html" in media_type or body.lstrip()[:1] == b"<":
        return "an HTML page"
    try:
        return _error_text(_load(body), conceal)
    except RemoteProtocolError:
        return one_line(body.decode("utf-8", "replace"), conceal=conceal)


def one_line(text: str, *, conceal: str | None = None) -> str:
    """`text` on one line: no control characters, `conceal` blanked out, then cut at 200 characters.

    >>> one_line("bad key\\x1b[31m sk-1\\n", conceal="sk-1")
    'bad key[31m [key]'
    """
    # First whatever could hide the key is removed, then the key, then the rest is cut: a cut key cannot be found.
    line = " ".join("".join(c if c.isprintable() else " " * c.isspace() for c in text).split())
    if conceal:
        line = line.replace(conceal, "[key]")
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


def _load(text: str | bytes) -> Any:
    with suppress(ValueError, RecursionError):  # chained, they would carry the whole text along
        return json.loads(text)
    raise RemoteProtocolError("the remote sent something that is not JSON")


def _error_text(content: object, conceal: str | None) -> str:
    """The message of `{"error": {"message": …}}`, `{"error": …}`, `{"message": …}`, `{"detail": …}` or a string."""
    for name in ("error", "message", "detail"):
        if isinstance(content, dict) and content.get(name):
            content = content[name]
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return one_line(text, conceal=conceal)


def _logprobs(content: object) -> list[float]:
    """Those of `{"content": [{"logprob": …}, …]}`; none where it is anything else."""
    tokens = content.get("content") if isinstance(content, dict) else None
    rows = tokens if isinstance(tokens, list) else []
    values = [row.get("logprob") for row in rows if isinstance(row, dict)]
    return [min(0.0, float(value)) for value in values if isinstance(value, int | float) and isfinite(value)]


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
