"""What the files that transformers writes beside a decoder say: its limits, its end tokens, its chat template.

Knows nothing of tokenizers or runtimes. A file that is not there says nothing; a setting of a type that it cannot
have is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelDamagedError

_MAX_BYTES = 16 << 20  # of one file


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The settings that an engine needs. None or "" where the files do not say.

    `end_ids` and `end_text` name tokens that end the answer. `begin_text` is the token that a prompt may begin
    with, and must where `adds_begin` holds.
    """

    positions: int | None
    heads: int | None  # of keys and values
    head_size: int | None
    end_ids: frozenset[int]
    end_text: str
    begin_text: str
    adds_begin: bool
    template: str | None

    @classmethod
    def read(cls, directory: Path) -> DecoderConfig:
        """Read `config.json`, `generation_config.json`, `tokenizer_config.json` and `chat_template.jinja`.

        Raises `ModelDamagedError` for a file that cannot be read or is no JSON object.
        """
        model = _read_json(directory / "config.json")
        generation = _read_json(directory / "generation_config.json")
        words = _read_json(directory / "tokenizer_config.json")
        heads, width = _whole(model.get("num_attention_heads")), _whole(model.get("hidden_size"))
        return cls(
            positions=_whole(model.get("max_position_embeddings")),
            heads=_whole(model.get("num_key_value_heads")) or heads,
            head_size=_whole(model.get("head_dim")) or (width // heads or None if width and heads else None),
            end_ids=_ids(model.get("eos_token_id")) | _ids(generation.get("eos_token_id")),
            end_text=_content(words.get("eos_token")),
            begin_text=_content(words.get("bos_token")),
            adds_begin=words.get("add_bos_token") is True,
            template=_read_text(directory / "chat_template.jinja") or _template(words.get("chat_template")),
        )


def _read_json(path: Path) -> Mapping[str, Any]:
    text = _read_text(path)
    try:
        content = {} if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelDamagedError(f"{path} is not JSON: {error}", hint="pull the model again") from error
    if not isinstance(content, dict):
        raise ModelDamagedError(f"{path} is not a JSON object", hint="pull the model again")
    return content


def _read_text(path: Path) -> str | None:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelDamagedError(f"{path} is larger than {_MAX_BYTES} bytes", hint="pull the model again")
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelDamagedError(f"{path} cannot be read: {error}", hint="pull the model again") from error


def _template(value: object) -> str | None:
    """A template, or the default one of several."""
    if isinstance(value, list):
        named = (entry for entry in value if isinstance(entry, dict) and entry.get("name") == "default")
        value = next((entry.get("template") for entry in named), None)
    return value if isinstance(value, str) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _ids(value: object) -> frozenset[int]:
    """Token ids of a setting that is one id or a list of them."""
    values = value if isinstance(value, list) else [value]
    return frozenset(at for at in values if isinstance(at, int) and not isinstance(at, bool) and at >= 0)


def _content(value: object) -> str:
    """The text of a special token, which is a string or an object with a `content`."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""
