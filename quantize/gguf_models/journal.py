"""A JSON-lines file that numbered results are appended to as they come, so that a run can be resumed.

The first line says what the results belong to; a file that says something else is refused. Knows nothing of what
the results are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_sdk.errors import ConfigError

_HINT = "name another file, or delete this one"


@dataclass(frozen=True, slots=True)
class Journal:
    """The results that a file holds, by their number. Without a `path` nothing is kept."""

    path: Path | None
    rows: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | None, facts: Callable[[], Mapping[str, object]]) -> Journal:
        """Read what `path` holds, making it where it does not exist. `facts` are asked for if there is a path.

        What a run that was killed while writing has left of its last line is taken away. Raises `ConfigError` for
        a file that is no journal or one of other facts, naming the first that differs.
        """
        if path is None:
            return cls(None)
        expected = dict(facts())
        try:
            content = path.read_bytes() if path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            lines = [json.loads(line) for line in whole.splitlines() if line.strip()]
            if not lines and content:
                raise ValueError("it has no complete line")
            journal = cls(path)
            if lines:
                _check(path, dict(lines[0]["facts"]), expected)
                journal.rows.update({int(line["number"]): line for line in lines[1:]})
                if len(whole) < len(content):
                    os.truncate(path, len(whole))
            else:
                journal._write({"facts": expected})
        except OSError as error:
            raise ConfigError(f"{path} cannot be used: {error.strerror}", hint="name another file") from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigError(f"{path} holds no kept results: {error}", hint=_HINT) from error
        return journal

    def append(self, number: int, row: Mapping[str, object]) -> None:
        """Keep a result; it is in the file when this returns."""
        if self.path is None:
            return
        try:
            self._write({"number": number, **row})
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be written: {error.strerror}", hint="name another file"
            ) from error

    def _write(self, row: Mapping[str, object]) -> None:
        assert self.path is not None
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _check(path: Path, found: Mapping[str, object], expected: Mapping[str, object]) -> None:
    for name, value in expected.items():
        if found.get(name) != value:
            raise ConfigError(
                f"{path} was made with another {name}: {str(found.get(name))[:16]}, now {str(value)[:16]}",
                hint=_HINT,
            )
