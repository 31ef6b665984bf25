"""What passes between an app and the process that runs its model: JSON with its length before it.

Nothing that arrives is trusted: it is checked before it becomes a record or an error. No pickles. Knows nothing of
processes and pipes beyond reading and writing bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, BinaryIO, TypeVar

from .. import errors
from ..errors import EdgeError, EngineError
from ..records import GenerateOptions, GenerationResult, Token

Message = list[Any]
Record = TypeVar("Record")

LONGEST = 128 << 20  # bytes of a message
_SIZE = 4  # bytes of a length
_encode = json.JSONEncoder(separators=(",", ":")).encode  # what is not ASCII, half a surrogate pair too, is escaped


class MessageError(Exception):
    """What has arrived is no message."""


def frame(message: Message) -> bytes:
    """A message as it is sent. Raises `EngineError` for one that is too long.

    >>> frame([1, "count", "é"])
    b'\\x00\\x00\\x00\\x14[1,"count","\\\\u00e9"]'
    """
    body = _encode(message).encode("ascii")
    if len(body) > LONGEST:
        raise EngineError(f"a request of {len(body)} bytes is too long, the limit is {LONGEST}")
    return len(body).to_bytes(_SIZE, "big") + body


def read_message(file: BinaryIO) -> Message | None:
    """The next message; None at the end, be it in the middle of one. Raises `MessageError`."""
    start = file.read(_SIZE)
    if len(start) < _SIZE:
        return None
    size = int.from_bytes(start, "big")
    if size > LONGEST:
        raise MessageError(f"it announces {size} bytes")
    body = file.read(size)
    if len(body) < size:
        return None
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"it is not JSON: {error}") from error
    if not isinstance(message, list) or len(message) < 2:
        raise MessageError("it is not a list of what is said to whom")
    return message


def checked(kind: type, value: Any) -> Any:
    """A value that has arrived, if it is of this type. Raises `MessageError`."""
    if type(value) is not kind:
        raise MessageError(f"it holds {type(value).__name__} where {kind.__name__} belongs")
    return value


# --- records ----------------------------------------------------------------------------------------


def token_values(token: Token) -> list[Any]:
    """A token to send."""
    return [token.id, token.text, token.logprob, token.entropy, token.margin]


def token_from(values: Any) -> Token:
    """A token that has arrived. Raises `MessageError`."""
    kinds = (int, str, float, float, float)
    if type(values) is not list or len(values) != len(kinds):
        raise MessageError("it holds no token")
    return Token(*map(checked, kinds, values))


def result_from(values: Any) -> GenerationResult:
    """How a generation has ended. Raises `MessageError`."""
    shares = checked(list, checked(dict, values).get("shares"))
    if not all(type(share) is float for share in shares):
        raise MessageError("it holds no shares")
    return _record(GenerationResult, {**values, "shares": tuple(shares)})


def options_from(values: Any) -> GenerateOptions:
    """How to generate. Raises `MessageError`."""
    stop, choices = (checked(list, checked(dict, values).get(name)) for name in ("stop", "choices"))
    return _record(GenerateOptions, {**values, "stop": tuple(stop), "choices": tuple(map(_choice, choices))})


def _choice(pair: Any) -> tuple[str, float]:
    if len(checked(list, pair)) != 2 or type(pair[1]) not in (int, float):
        raise MessageError("it holds no choice")
    return checked(str, pair[0]), pair[1]


def _record(kind: Callable[..., Record], values: Any) -> Record:
    try:
        return kind(**checked(dict, values))
    except TypeError as error:
        raise MessageError(f"it holds no {getattr(kind, '__name__', kind)}: {error}") from error


# --- errors -----------------------------------------------------------------------------------------


def error_values(error: BaseException) -> dict[str, Any]:
    """An error to send; one that is not in the tree becomes an `EngineError`."""
    if not isinstance(error, EdgeError):
        text = f"the engine fails: {type(error).__name__}: {error}"
        return {"class": "EngineError", "message": text, "hint": "", "facts": {}}
    facts = {name: value for name, value in vars(error).items() if name not in ("message", "hint")}
    facts = {name: value for name, value in facts.items() if isinstance(value, int | float | str | dict | None)}
    return {"class": type(error).__name__, "message": error.message, "hint": error.hint, "facts": facts}


def error_from(values: Any) -> EdgeError:
    """The same error again, of the class in `errors`; an unknown class becomes an `EngineError`.

    >>> values = error_values(errors.ContextOverflowError(600, 10, 512))
    >>> type(error_from(values)).__name__, error_from(values).context
    ('ContextOverflowError', 512)
    """
    kind = getattr(errors, checked(str, checked(dict, values).get("class")), None)
    if not (isinstance(kind, type) and issubclass(kind, EdgeError)):
        kind = EngineError
    error = kind.__new__(kind)
    EdgeError.__init__(error, checked(str, values.get("message")), hint=checked(str, values.get("hint")))
    facts: Mapping[str, Any] = checked(dict, values.get("facts"))
    vars(error).update({name: value for name, value in facts.items() if name not in ("message", "hint")})
    return error


def result_values(result: GenerationResult) -> dict[str, Any]:
    """How a generation has ended, to send."""
    return asdict(result)
