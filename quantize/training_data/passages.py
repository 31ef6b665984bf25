"""Passages that questions are asked about: from documents, cut as `edge add` cuts them, or from rows of JSON lines.

Knows nothing of questions or of who asks them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.documents.chunk import chunk_document
from edge_sdk.documents.parse import SUFFIXES, parse_file
from edge_sdk.errors import ConfigError, DocumentError
from edge_sdk.records import ParsedDocument, Section

from ..collection import read_jsonl
from .near_duplicates import SAME, NearDuplicates

LEAST_LETTERS = 40
"""Of a passage; headings and captions say too little to be asked about."""


@dataclass(frozen=True, slots=True)
class SourcePassage:
    """A piece of a document. Pieces with one `title` are neighbours; it is the document's, or that of its row."""

    text: str
    title: str = ""


def read_passages(paths: Sequence[Path], skipped: list[str] | None = None) -> Iterator[SourcePassage]:
    """The passages of files, and of folders that are searched for the formats that `edge add` reads.

    A `.jsonl` file has rows {text, title}, the title optional. What is no document goes, with the reason, to
    `skipped`; without that list it raises `DocumentError`. A row without text raises `ConfigError` with its number.
    """
    for path in paths:
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in {*SUFFIXES, ".jsonl"})
        for file in inside if path.is_dir() else [path]:
            try:
                documents = _rows(file) if file.suffix.lower() == ".jsonl" else [parse_file(file)]
                for document in documents:
                    yield from _cut(document)
            except DocumentError as error:
                if skipped is None:
                    raise
                skipped.append(str(error))


def distinct(passages: Iterable[SourcePassage], *, likeness: float = SAME) -> Iterator[SourcePassage]:
    """The passages without those that nearly repeat an earlier one: nothing new can be asked about these."""
    seen = NearDuplicates(likeness)
    return (passage for passage in passages if seen.find_or_add(passage.text) is None)


def _rows(path: Path) -> Iterator[ParsedDocument]:
    for number, row in enumerate(read_jsonl(path), 1):
        text, title = row.get("text"), row.get("title") or ""
        if not isinstance(text, str) or not isinstance(title, str):
            raise ConfigError(f"row {number} of {path} has no text", hint='passages are rows {"text", "title"}')
        if text.strip():
            yield ParsedDocument(f"{path}#{number}", title, text, (Section(0, len(text)),), "", "text/plain")


def _cut(document: ParsedDocument) -> Iterator[SourcePassage]:
    for chunk in chunk_document(document):
        if sum(map(str.isalpha, chunk.text)) >= LEAST_LETTERS:
            yield SourcePassage(chunk.text, document.title)
