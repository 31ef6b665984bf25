"""What a client asks, read from JSON without trust: OpenAI's chat completions and embeddings, and our additions.

What would change the meaning of an answer and is not supported is an error, never ignored. Knows nothing of HTTP.
Source: the published reference of OpenAI's API (`/v1/chat/completions`, `/v1/embeddings`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar

from ..errors import RequestError
from ..prompt import Style
from ..records import GenerateOptions, Message

DOCUMENTS = "edge"
"""The name of the model that answers from the documents."""
MOST_MESSAGES, MOST_TEXTS, MOST_PASSAGES, MOST_TOKENS = 1000, 256, 50, 8192

_DEPTH = 64  # of what is nested in a request
_SAMPLING: Mapping[str, tuple[float, float]] = {  # fields of `GenerateOptions`: least and most
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
}
# What nobody here can do, with the values that ask for nothing.
_UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "top_logprobs": (0,),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "grammar": (),
    "guided_json": (),
}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class FromDocuments:
    """How an answer from the documents is wanted; see `Edge.stream`. `hold` None: nothing before the decision."""

    k: int = 8
    style: Style = "full"
    task: str = ""
    hold: int | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """The next turn of a chat. `options` are complete but for `max_tokens`, None where it was not given."""

    model: str
    messages: tuple[Message, ...]
    options: GenerateOptions
    max_tokens: int | None
    documents: FromDocuments
    stream: bool = False
    usage: bool = False  # of a stream, in a chunk of its own
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts to vectors; `packed`: as base64 of little-endian float32."""

    model: str
    texts: tuple[str, ...]
    packed: bool = False


def read_json(body: bytes) -> Mapping[str, Any]:
    """The object of a request. Raises `RequestError`."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise RequestError(f"the request is nested deeper than {_DEPTH}") from None
    except ValueError as error:
        raise RequestError(f"the request is no JSON: {error}", hint="send one JSON object in UTF-8") from None
    if not isinstance(value, dict):
        raise RequestError("the request is no JSON object", hint='send {"messages": [...]}')
    _check_depth(value)
    return value


def read_chat(value: Mapping[str, Any], sampling: GenerateOptions) -> ChatRequest:
    """A request for a completion; what it does not say of sampling is as in `sampling`. Raises `RequestError`."""
    model = _get(value, "model", _text, DOCUMENTS)
    for name, harmless in _UNSUPPORTED.items():
        if value.get(name) is not None and value[name] not in harmless:
            raise RequestError(f"{name} is not supported", hint="leave it out")
    options = _sampled(value, sampling)
    if documents := model == DOCUMENTS:
        _only_text(value)
    most = _get(value, "max_tokens", _whole(1, MOST_TOKENS), None)
    streamed = _get(value, "stream_options", _object, {})
    return ChatRequest(
        model,
        _messages(value.get("messages")),
        sampling if documents else options,
        _get(value, "max_completion_tokens", _whole(1, MOST_TOKENS), most),
        _from_documents(_get(value, DOCUMENTS, _object, {})),
        stream=_get(value, "stream", _flag, False),
        usage=_get(streamed, "include_usage", _flag, False),
        logprobs=_get(value, "logprobs", _flag, False),
    )


def read_embedding(value: Mapping[str, Any]) -> EmbeddingRequest:
    """A request for vectors. Raises `RequestError`."""
    given = value.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RequestError("input is no text and no list of texts", hint="tokens are not taken")
    if len(texts) > MOST_TEXTS:
        raise RequestError(f"{len(texts)} texts at once", hint=f"send at most {MOST_TEXTS}")
    form = _get(value, "encoding_format", _one_of("float", "base64"), "float")
    if value.get("dimensions") is not None:
        raise RequestError("dimensions is not supported", hint="leave it out")
    return EmbeddingRequest(_get(value, "model", _text, ""), tuple(texts), form == "base64")


def _from_documents(value: Mapping[str, Any]) -> FromDocuments:
    if unknown := sorted(value.keys() - {"k", "style", "task", "hold"}):
        raise RequestError(f"{DOCUMENTS} has no {unknown[0]!r}", hint="it has k, style, task and hold")
    style: Style = "brief" if _get(value, "style", _one_of("full", "brief"), "full") == "brief" else "full"
    return FromDocuments(
        _get(value, "k", _whole(1, MOST_PASSAGES), 8),
        style,
        _get(value, "task", _text, ""),
        _get(value, "hold", _whole(0, MOST_TOKENS), None),
    )


def _only_text(value: Mapping[str, Any]) -> None:
    """What an answer from documents cannot obey: it is written as it was calibrated."""
    form = value.get("response_format")
    other = form is not None and form.get("type", "text") != "text"
    for name, asked in (
        ("response_format", other),
        ("stop", value.get("stop")),
        ("logprobs", value.get("logprobs")),
    ):
        if asked:
            raise RequestError(
                f"{name} does not go with the model {DOCUMENTS!r}", hint="ask the language model by its own name"
            )


def _sampled(value: Mapping[str, Any], sampling: GenerateOptions) -> GenerateOptions:
    numbers: dict[str, Any] = {}
    for name, (least, most) in _SAMPLING.items():
        if (number := _get(value, name, _number(least, most), None)) is not None:
            numbers[name] = number
    if (top := _get(value, "top_k", _whole(0, 1 << 20), None)) is not None:
        numbers["top_k"] = top
    if (seed := _get(value, "seed", _whole(-(2**63), 2**63 - 1), None)) is not None:
        numbers["seed"] = seed % 2**32
    return replace(sampling, **numbers, stop=_stop(value.get("stop")), json_schema=_schema(value))


def _stop(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts) or len(texts) > 4:
        raise RequestError("stop is not one to four texts", hint='send "stop": ["\\n"]')
    return tuple(texts)


def _schema(value: Mapping[str, Any]) -> str | None:
    form = _get(value, "response_format", _object, {})
    match form.get("type", "text"):
        case "text":
            return None
        case "json_object":
            return json.dumps({"type": "object"})
        case "json_schema" if isinstance(form.get("json_schema"), dict):
            schema = form["json_schema"].get("schema")
            if isinstance(schema, dict):
                return json.dumps(schema)
    raise RequestError(
        "response_format is not understood", hint='its type is "text", "json_object" or "json_schema" with a schema'
    )


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise RequestError("there are no messages", hint='send "messages": [{"role": "user", "content": "..."}]')
    if len(value) > MOST_MESSAGES:
        raise RequestError(f"{len(value)} messages", hint=f"send at most {MOST_MESSAGES}")
    return tuple(_message(each, f"messages[{at}]") for at, each in enumerate(value))


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        _refuse(where, value, "an object with role and content")
    role, content = value.get("role"), value.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(part, f"{where}.content[{at}]") for at, part in enumerate(content))
    if content is None and role == "assistant":
        content = ""  # as some send turns again that ended before their first word
    if not isinstance(content, str):
        _refuse(f"{where}.content", type(content).__name__, "text")
    match role:
        case "user" | "assistant" | "system":
            return Message(role, content)
        case "developer":
            return Message("system", content)
        case _:
            return _refuse(f"{where}.role", role, "system, user or assistant")


def _part(value: object, where: str) -> str:
    kind = value.get("type") if isinstance(value, dict) else value
    if not isinstance(value, dict) or kind != "text":
        raise RequestError(f"{where} is {str(kind)[:80]!r}, only text parts are taken")
    text = value.get("text")
    return text if isinstance(text, str) else _refuse(f"{where}.text", text, "text")


# --- values -----------------------------------------------------------------------------------------

_Read = Callable[[str, object], _T]


def _get(value: Mapping[str, Any], name: str, read: _Read[_T], otherwise: Any) -> Any:
    """The value of a name; `otherwise` where there is none, or null."""
    return otherwise if value.get(name) is None else read(name, value[name])


def _text(name: str, value: object) -> str:
    return value if isinstance(value, str) and len(value) < 1000 else _refuse(name, value, "a short text")


def _flag(name: str, value: object) -> bool:
    return value if isinstance(value, bool) else _refuse(name, value, "true or false")


def _object(name: str, value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _refuse(name, value, "an object")


def _whole(least: int, most: int) -> _Read[int]:
    def read(name: str, value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        _refuse(name, value, f"a whole number from {least} to {most}")

    return read


def _number(least: float, most: float) -> _Read[float]:
    def read(name: str, value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
            return float(value)
        _refuse(name, value, f"a number from {least:g} to {most:g}")

    return read


def _one_of(*words: str) -> _Read[str]:
    def read(name: str, value: object) -> str:
        return value if isinstance(value, str) and value in words else _refuse(name, value, " or ".join(words))

    return read


def _refuse(name: str, value: object, wanted: str) -> NoReturn:
    raise RequestError(f"{name} is {str(value)[:80]!r}, not {wanted}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check_depth(value: object) -> None:
    level, depth = [value], 0
    while level:
        if (depth := depth + 1) > _DEPTH:
            raise RequestError(f"the request is nested deeper than {_DEPTH}")
        inside = [
            list(each.values()) if isinstance(each, dict) else each
            for each in level
            if isinstance(each, dict | list)
        ]
        level = [part for each in inside for part in each]
