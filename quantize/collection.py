"""Collections to measure on: documents, questions and what is relevant, read from JSON lines; and stores of them.

Two layouts are known: `docs.jsonl` {id, title, text}, `queries.jsonl` {id, text}, `qrels.jsonl` {query, doc, rel};
and `passages.jsonl` {id, title, text}, `questions.jsonl` {id, question, passage_id}. Knows nothing of metrics.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from threading import Event as Flag
from typing import TYPE_CHECKING

from edge_sdk.config import Settings
from edge_sdk.documents.chunk import chunk_document, embedding_text
from edge_sdk.errors import ConfigError
from edge_sdk.records import ParsedDocument, Section

if TYPE_CHECKING:
    from edge_sdk.encoders.embed import Encoder
    from edge_sdk.storage.store import Store

_MOST_QA = 2000  # passages of a `qa.jsonl`
Update = Callable[[float, float | None, str], None]


@dataclass(frozen=True, slots=True)
class Query:
    """A question and the documents that are relevant to it, with their grades; never empty, all above 0."""

    id: str
    text: str
    relevant: dict[str, float]


def read_jsonl(path: Path) -> Iterator[dict[str, object]]:
    """The objects of a JSON-lines file. Raises `ConfigError` with the line's number."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise ConfigError(f"{path} line {number} is not JSON: {error}") from error
                    if not isinstance(row, dict):
                        raise ConfigError(f"{path} line {number} is not a JSON object")
                    yield row
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint="check the path") from error


def documents_file(data: Path) -> Path:
    """Where the folder has its documents: `docs.jsonl`, else `passages.jsonl`."""
    docs = data / "docs.jsonl"
    return docs if docs.exists() else data / "passages.jsonl"


def read_documents(path: Path) -> list[ParsedDocument]:
    """The documents of a file, each named by its id.

    The title in `docs.jsonl` is the document's own and becomes a heading, which is embedded with the text
    (`chunk.embedding_text`), unless the text begins with it. That in `passages.jsonl` is of the work from which the
    passages were cut; like a document's title it is in the full-text index only.
    """
    own, documents = path.name == "docs.jsonl", []
    for row in _rows(path, "id", "text"):
        title, text = str(row.get("title") or ""), str(row["text"])
        headings = () if not own or text.casefold().startswith(title.casefold()) else (title,)
        documents.append(_document(str(row["id"]), title, text, headings))
    return documents


def _document(name: str, title: str, text: str, headings: tuple[str, ...]) -> ParsedDocument:
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    return ParsedDocument(name, title, text, (Section(0, len(text), headings),), digest, "text/plain")


def read_queries(data: Path) -> list[Query]:
    """The questions for which something is judged relevant. Raises `ConfigError` when there is none."""
    judged: dict[str, dict[str, float]] = {}
    if (data / "qrels.jsonl").exists():
        texts = {str(row["id"]): str(row["text"]) for row in _rows(data / "queries.jsonl", "id", "text")}
        for row in _rows(data / "qrels.jsonl", "query", "doc", "rel"):
            if (grade := _grade(row["rel"], data)) > 0:
                judged.setdefault(str(row["query"]), {})[str(row["doc"])] = grade
    else:
        rows = list(_rows(data / "questions.jsonl", "id", "question", "passage_id"))
        texts = {str(row["id"]): str(row["question"]) for row in rows}
        judged = {str(row["id"]): {str(row["passage_id"]): 1.0} for row in rows}
    queries = [Query(id, text, judged[id]) for id, text in texts.items() if id in judged]
    if not queries:
        raise ConfigError(f"{data} holds no question with a relevant document")
    return queries


def read_answerable(data: Path) -> tuple[Path, list[ParsedDocument], list[tuple[str, tuple[str, ...], str]]]:
    """The file that holds the passages, the passages, and the questions as (question, accepted answers, "").

    Either `passages.jsonl` and `questions.jsonl` {question, answers}, or `qa.jsonl` {question, knowledge, answer},
    each with a passage of its own; of the latter, questions that stand there twice are left out.
    """
    qa = data / "qa.jsonl"
    if qa.exists():
        rows = list(_rows(qa, "question", "knowledge", "answer"))[:_MOST_QA]
        documents = [_document(f"qa{number:05}", "", str(row["knowledge"]), ()) for number, row in enumerate(rows)]
        return (
            qa,
            documents,
            [(q, (a,), "") for q, a in {str(r["question"]): str(r["answer"]) for r in rows}.items()],
        )
    found = {}
    for row in _rows(data / "questions.jsonl", "question", "answers"):
        if not isinstance(row["answers"], list):
            raise ConfigError(f"{data / 'questions.jsonl'} has a line whose answers are no list")
        found[str(row["question"])] = tuple(map(str, row["answers"]))
    passages = data / "passages.jsonl"
    return passages, read_documents(passages), [(question, answers, "") for question, answers in found.items()]


def store_path(settings: Settings, documents: Path, variant: str) -> Path:
    """The file of a store of these documents alone, under `settings.home`.

    `variant` names what else decides what is in it: the encoder, how titles are treated.
    """
    try:
        content = documents.read_bytes()
    except OSError as error:
        raise ConfigError(f"{documents} cannot be read: {error.strerror}", hint="check --data") from error
    key = hashlib.sha256(content + variant.encode()).hexdigest()[:16]
    return settings.home / "eval" / f"{key}.db"


def fill_store(
    store: Store,
    encoder: Encoder,
    documents: Sequence[ParsedDocument],
    progress: Update = lambda done, total, detail: None,
    cancel: Flag | None = None,
) -> None:
    """Add what the store does not hold yet, one document after the other, until `cancel` is set."""
    store.use_encoder(encoder.fingerprint, encoder.dimension)
    present = {document.name for document in store.documents()}
    missing = [document for document in documents if document.name not in present]
    for number, document in enumerate(missing):
        if cancel is not None and cancel.is_set():
            return
        progress(number, len(missing), "passages")
        chunks = chunk_document(document)
        vectors = encoder.encode([embedding_text(chunk.heading, chunk.text) for chunk in chunks])
        store.put(document, chunks, vectors)


def _grade(value: object, data: Path) -> float:
    try:
        grade = float(str(value))
    except ValueError:
        grade = nan
    if not isfinite(grade):
        raise ConfigError(f"{data / 'qrels.jsonl'} has the grade {value!r}, which is no number")
    return grade


def _rows(path: Path, *keys: str) -> Iterator[dict[str, object]]:
    for number, row in enumerate(read_jsonl(path), 1):
        missing = [key for key in keys if key not in row]
        if missing:
            raise ConfigError(f"row {number} of {path} is without {', '.join(map(repr, missing))}")
        yield row
