"""The door for data that exists: questions in JSON lines, whatever their shape, become examples.

The shape is told by the fields of the first row. Knows nothing of what is done with examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from edge_sdk.errors import ConfigError

from ..collection import read_jsonl
from .example import Example

_SHAPES = (
    "examples {question, passage, answers}; {question, answers, passage_id} beside a passages.jsonl {id, text}; "
    "{question, knowledge, answer}"
)
Row = Mapping[str, object]


def read_data(path: Path) -> Iterator[Example]:
    """The examples of a JSON-lines file, or of a folder with `questions.jsonl`, `qa.jsonl` or `examples.jsonl`.

    Three shapes are known: our own, `Example`'s fields, with empty `answers` where there is none; that of SQuAD's
    questions, whose passages are in `passages.jsonl` beside them; that of HaluEval, a passage of its own for each
    question. Raises `ConfigError` naming the row that does not fit.
    """
    file = _questions_file(path) if path.is_dir() else path
    make: Callable[[Row, str], Example] | None = None
    for number, row in enumerate(read_jsonl(file), 1):
        where = f"row {number} of {file}"
        make = make or _shape(row, where, file)
        yield make(row, where)


def read_titles(path: Path) -> dict[str, str]:
    """Text of a passage to its title, from the `passages.jsonl` of a folder or beside a file; none without it."""
    file = (path if path.is_dir() else path.parent) / "passages.jsonl"
    rows = read_jsonl(file) if file.exists() else iter(())
    return {str(row.get("text")): str(row["title"]) for row in rows if row.get("title")}


def _questions_file(folder: Path) -> Path:
    for name in ("questions.jsonl", "qa.jsonl", "examples.jsonl"):
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{folder} has no questions.jsonl, qa.jsonl or examples.jsonl", hint=f"known are {_SHAPES}")


def _shape(row: Row, where: str, file: Path) -> Callable[[Row, str], Example]:
    """The function that makes examples of rows like this one."""
    if "passage" in row:
        return lambda row, where: _own(row, where, file.stem)
    if "passage_id" in row:
        passages = _passages(file.parent / "passages.jsonl", file)
        return lambda row, where: _with_passages(row, where, passages, file.stem)
    if "knowledge" in row:
        return lambda row, where: _with_knowledge(row, where, file.stem)
    fields = ", ".join(map(repr, row)) or "no fields"
    raise ConfigError(f"{where} has {fields}, which is no question with its passage", hint=f"known are {_SHAPES}")


def _own(row: Row, where: str, source: str) -> Example:
    given = row.get("source")
    return Example(
        _text(row, "question", where),
        _text(row, "passage", where),
        _answers(row, where),
        given if isinstance(given, str) and given else source,
    )


def _with_passages(row: Row, where: str, passages: Mapping[str, str], source: str) -> Example:
    id = str(row.get("passage_id"))
    if id not in passages:
        raise ConfigError(f"{where} names the passage {id!r}, which passages.jsonl does not have")
    # An id with an empty list of answers is how SQuAD 2.0 marks what cannot be answered.
    return Example(_text(row, "question", where), passages[id], _answers(row, where), source)


def _with_knowledge(row: Row, where: str, source: str) -> Example:
    answer = _text(row, "answer", where)
    return Example(_text(row, "question", where), _text(row, "knowledge", where), (answer,), source)


def _passages(path: Path, questions: Path) -> dict[str, str]:
    if not path.is_file():
        raise ConfigError(
            f"{questions} names passages, and there is no {path}", hint="put passages.jsonl beside it"
        )
    found = {}
    for number, row in enumerate(read_jsonl(path), 1):
        where = f"row {number} of {path}"
        if "id" not in row:
            raise ConfigError(f"{where} is without 'id'")
        found[str(row["id"])] = _text(row, "text", where)
    return found


def _text(row: Row, field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        problem = (
            f"is without {field!r}"
            if field not in row
            else f"has the {field} {str(value)[:40]!r}, which is no text"
        )
        raise ConfigError(f"{where} {problem}")
    return value


def _answers(row: Row, where: str) -> tuple[str, ...]:
    value = row.get("answers")
    if not isinstance(value, list) or not all(isinstance(answer, str) for answer in value):
        raise ConfigError(
            f"{where} has no list of answers", hint='give "answers": ["..."], empty where there is none'
        )
    return tuple(dict.fromkeys(answer for answer in value if answer.strip()))
