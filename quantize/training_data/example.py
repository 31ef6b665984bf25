"""The one record of training data: a question, a passage, and what the passage answers to it.

Files of them are JSON lines, {question, passage, answers, id, source}, with empty `answers` where the passage holds
none. Knows nothing of where questions come from or of what is trained.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from edge_sdk.errors import ConfigError

from ..collection import read_jsonl


@dataclass(frozen=True)
class Example:
    """`answers` are accepted strings, the first one best; none when the passage does not answer the question."""

    question: str
    passage: str
    answers: tuple[str, ...] = ()
    source: str = ""  # where it comes from: a data set, a teacher, the ledger

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits of the hash of question and passage."""
        return hashlib.sha256(f"{self.question}\0{self.passage}".encode("utf-8", "replace")).hexdigest()[:16]

    @property
    def span(self) -> tuple[int, int] | None:
        """Offsets in the passage of the first answer that stands there literally, or None."""
        for answer in self.answers:
            if answer and (start := self.passage.find(answer)) >= 0:
                return start, start + len(answer)
        return None

    @property
    def held_out(self) -> float:
        """A number from 0 to 1 that follows from the passage's text alone: all its questions are on one side."""
        digest = hashlib.sha256(self.passage.encode("utf-8", "replace")).digest()
        return int.from_bytes(digest[:8], "big") / 2**64


def read_examples(path: Path) -> Iterator[Example]:
    """The examples of a file. Raises `ConfigError` naming the row."""
    for number, row in enumerate(read_jsonl(path), 1):
        question, passage, answers = row.get("question"), row.get("passage"), row.get("answers", [])
        if not isinstance(question, str) or not isinstance(passage, str) or not isinstance(answers, list):
            raise ConfigError(
                f"row {number} of {path} is no example", hint="it needs question, passage and a list of answers"
            )
        yield Example(question, passage, tuple(map(str, answers)), str(row.get("source") or ""))


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write a file of examples, whole or not at all; how many there were."""
    partial, count = path.with_suffix(f".{os.getpid()}.partial"), 0
    try:
        with partial.open("w", encoding="utf-8") as file:
            for example in examples:
                file.write(json.dumps({"id": example.id, **asdict(example)}, ensure_ascii=False) + "\n")
                count += 1
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count
