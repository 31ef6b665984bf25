"""What a client gets, as JSON values: OpenAI's objects, with ours beside them under `edge`.

Knows nothing of HTTP. Source: the published reference of OpenAI's API.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import (
    ConfigError,
    ContextOverflowError,
    EdgeError,
    EngineCrashedError,
    GrammarError,
    NotEnoughMemoryError,
    RequestError,
    StoreBusyError,
    TemplateError,
)
from ..json_values import answer_document
from ..records import TokenCounts
from .answering import End, Piece, Scored
from .requests import DOCUMENTS, EmbeddingRequest

# What the client can mend, and what passes.
_STATUS: tuple[tuple[type[EdgeError], int], ...] = (
    (ContextOverflowError, 400),
    (GrammarError, 400),
    (TemplateError, 400),
    (ConfigError, 400),
    (EngineCrashedError, 503),
    (NotEnoughMemoryError, 503),
    (StoreBusyError, 503),
)


@dataclass(frozen=True, slots=True)
class Completion:
    """The objects of one reply, which have its id, its model and its time in common."""

    id: str
    model: str
    created: int  # seconds since 1970

    def whole(self, end: End, *, logprobs: bool) -> dict[str, Any]:
        """The answer in one object."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": end.text},
            "logprobs": _logprobs(end.scored) if logprobs else None,
            "finish_reason": end.finish_reason,
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": _usage(end.tokens),
            **_ours(end),
        }

    def first(self) -> dict[str, Any]:
        """The chunk before any text."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, piece: Piece, *, logprobs: bool) -> dict[str, Any]:
        """A chunk with more text, or with the reason for which the text so far is dropped."""
        if piece.dropped:
            return {**self._chunk({}), DOCUMENTS: {"dropped": piece.dropped}}
        scores = _logprobs(piece.tokens) if logprobs else None
        return self._chunk({"content": piece.text}, logprobs=scores)

    def last(self, end: End) -> dict[str, Any]:
        """The chunk that ends the choice."""
        return {**self._chunk({}, finish_reason=end.finish_reason), **_ours(end)}

    def usage(self, end: End) -> dict[str, Any]:
        """The chunk with the tokens, for whoever asked for it."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(end.tokens)}

    def _chunk(
        self, delta: Mapping[str, str], *, finish_reason: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": dict(delta), "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def model_list(names: Sequence[str], created: int) -> dict[str, Any]:
    """What there is to ask."""
    rows = [{"id": name, "object": "model", "created": created, "owned_by": "edge-sdk"} for name in names]
    return {"object": "list", "data": rows}


def embeddings(vectors: NDArray[np.float32], request: EmbeddingRequest, model: str) -> dict[str, Any]:
    """Vectors [texts, dimension]; their tokens are not counted."""
    rows = [
        {
            "object": "embedding",
            "index": at,
            "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode() if request.packed else row.tolist(),
        }
        for at, row in enumerate(vectors)
    ]
    return {"object": "list", "data": rows, "model": model, "usage": {"prompt_tokens": 0, "total_tokens": 0}}


def failure(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status and the object of an error; of an unexpected one nothing but its type."""
    if not isinstance(error, EdgeError):
        message, status = f"unexpected {type(error).__name__}; the server's own output says more", 500
    elif isinstance(error, RequestError):
        message, status = str(error), error.status
    else:
        message = str(error)
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    kind = "invalid_request_error" if status < 500 else "server_error"
    return status, {"error": {"message": message, "type": kind, "param": None, "code": type(error).__name__}}


def _ours(end: End) -> dict[str, Any]:
    return {} if end.answer is None else {DOCUMENTS: answer_document(end.question, end.answer)}


def _usage(tokens: TokenCounts) -> dict[str, Any]:
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.prompt + tokens.completion,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
    }


def _logprobs(scored: Sequence[Scored]) -> dict[str, Any]:
    rows = [
        {"token": each.text, "logprob": each.logprob, "bytes": list(each.text.encode()), "top_logprobs": []}
        for each in scored
    ]
    return {"content": rows, "refusal": None}
