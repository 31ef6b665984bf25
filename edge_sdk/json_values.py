"""Records as JSON values: what every `--json` prints and the server sends.

Knows nothing of who reads them.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from .records import Answer


def to_json(value: object) -> Any:
    """Records, paths and mappings as plain JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def answer_document(question: str, answer: Answer) -> dict[str, Any]:
    """An answer as `edge ask --json` prints it and the server sends it; hits with the beginning of their text."""
    times, tokens = answer.timings, answer.tokens
    rates = {
        "prefill": _rate(tokens.prompt - tokens.cached, times.prefill_ms),
        "decode": _rate(tokens.completion, times.decode_ms),
    }
    document = {
        "question": question,
        "text": answer.text,
        "citations": answer.citations,
        "probability": answer.probability,
        "route": answer.route,
        "reasons": answer.reasons,
        "timings": times,
        "tokens": tokens,
        "tokens_per_second": rates,
        "model": answer.model,
        "dropped_citations": answer.dropped_citations,
        "read": list(answer.read),
        "left_device": dict(answer.left_device),
        "id": answer.id,
        "signals": dict(answer.signals),
        "explanation": answer.explanation,
        "hits": [replace(hit, passage=replace(hit.passage, text=hit.passage.text[:80])) for hit in answer.hits],
    }
    return {name: to_json(value) for name, value in document.items()}


def _rate(tokens: int, milliseconds: float | None) -> float | None:
    return tokens / milliseconds * 1000 if milliseconds and tokens > 0 else None
