"""Checkpoints of a training: whole or not there, and read without running anything that they hold.

Knows nothing of what is trained; a checkpoint names the facts that it belongs to and is refused for others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edge_sdk.errors import ConfigError


def save_checkpoint(path: Path, facts: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a file that replaces the one of before in one step."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            torch.save({"facts": dict(facts), "state": dict(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: Path, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state that was saved, None where there is no file.

    Raises `ConfigError` for a file that is no checkpoint, or one of other facts, naming the first that differs.
    """
    if not path.exists():
        return None
    hint = "name another file, or delete this one"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found, state = dict(content["facts"]), dict(content["state"])
    except Exception as error:  # torch raises what the bytes lead it to
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(f"{path} is no checkpoint: {reason}", hint=hint) from error
    for name, value in facts.items():
        if found.get(name) != value:
            now, before = str(value)[:40], str(found.get(name))[:40]
            raise ConfigError(f"{path} was made with another {name}: {before}, now {now}", hint=hint)
    return state
