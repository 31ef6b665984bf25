"""Questions with known answers, asked as a user would: what was said, and every signal that was measured of it.

Each runs through `Edge`; what came of it is appended to a file as it is made, so that an interrupted run goes on
where it stopped. Knows nothing of what is fitted to it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event as Flag

import numpy as np

from edge_sdk.edge import Edge
from edge_sdk.errors import CalibrationError
from edge_sdk.handoff import Handoff, Missed, Topic
from edge_sdk.judge import Judge
from edge_sdk.privacy.gate import Withheld
from edge_sdk.prompt import Style
from edge_sdk.route import Policy

from .collection import Update, read_jsonl


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that was answered locally: its signals, the answer, and who had it right."""

    question: str
    answers: tuple[str, ...]
    task: str
    text: str
    route: str
    signals: Mapping[str, float]
    vector: tuple[float, ...]
    remote: str | None = None  # the remote's answer, where it was asked
    setup: str = ""  # fingerprint of the set-up that answered; "" where it was not noted


def read_questions(path: Path) -> list[tuple[str, tuple[str, ...], str]]:
    """Questions, accepted answers and tasks of a JSONL file {question, answers, task}; `task` may be missing."""
    found = []
    for number, row in enumerate(read_jsonl(path), 1):
        question, answers = row.get("question"), row.get("answers", row.get("answer"))
        accepted = [answers] if isinstance(answers, str) else answers
        if not isinstance(question, str) or not isinstance(accepted, list) or not accepted:
            raise CalibrationError(
                f"{path}: object {number} has no question with answers",
                hint='write {"question": "...", "answers": ["..."]}',
            )
        found.append((question, tuple(map(str, accepted)), str(row.get("task", ""))))
    if len({" ".join(question.casefold().split()) for question, _, _ in found}) < len(found):
        raise CalibrationError(f"{path} has a question twice", hint="labels must be of different questions")
    return found


def ask_all(
    edge: Edge,
    questions: Sequence[tuple[str, tuple[str, ...], str]],
    *,
    out: Path | None = None,
    style: Style = "full",
    max_tokens: int = 256,
    k: int = 8,
    progress: Update = lambda done, total, detail: None,
    cancel: Flag | None = None,
) -> list[Asked]:
    """Answer every question locally, whatever the documents support, and keep what was measured.

    What `out` already holds is not asked again; accepted answers and tasks are those of `questions`, which may have
    been corrected since. Raises `CalibrationError` when another set-up gave the answers in `out`. Where `edge` has
    a remote and may use it, that is asked too, once a question, with what its privacy policy sends (and a question
    that `out` has without its answer is asked again); a call that fails is a `CalibrationError`, and the next run
    goes on from there.
    """
    setup = edge.setup(style, k).fingerprint
    _drop_unfinished_line(out)
    done = {asked.question: asked for asked in read_asked(out)}
    if any(asked.setup not in ("", setup) for asked in done.values()):
        raise CalibrationError(f"{out} has answers of another model, prompt or retrieval", hint="name another file")
    with _answering_locally(edge) as handoff:
        for number, (question, answers, task) in enumerate(questions):
            progress(number, len(questions), question)
            if cancel is not None and cancel.is_set():
                break
            if question in done and (handoff is None or done[question].remote is not None):
                continue
            answer = edge.ask(question, style=style, max_tokens=max_tokens, k=k)
            row = edge.encoder.encode([question])[0]
            vector = tuple(round(float(each), 4) for each in row)
            read = [hit.passage for hit in answer.hits if hit.passage.id in answer.read]
            remote = None if handoff is None else _ask_remote(handoff, Topic(question, row, read))
            done[question] = asked = Asked(
                question, answers, task, answer.text, answer.route, dict(answer.signals), vector, remote, setup
            )
            if out is not None:
                _append(out, json.dumps(asdict(asked)) + "\n")
    progress(len(questions), len(questions), "")
    return [
        replace(done[question], answers=answers, task=task)
        for question, answers, task in questions
        if question in done
    ]


def read_all(
    edge: Edge,
    questions: Sequence[tuple[str, tuple[str, ...], str]],
    *,
    k: int = 8,
    progress: Update = lambda done, total, detail: None,
    cancel: Flag | None = None,
) -> list[Asked]:
    """What the reader of `edge` answers to every question, with its signals: milliseconds each, so none are kept.

    Raises `CalibrationError` without a reader.
    """
    extractor, setup = edge.extractor, edge.reader_setup(k)
    if extractor is None or setup is None:
        raise CalibrationError("there is no reader to calibrate", hint="give --reader")
    found = []
    for number, (question, answers, task) in enumerate(questions):
        progress(number, len(questions), question)
        if cancel is not None and cancel.is_set():
            break
        hits = edge.search(question, k)
        extract = extractor.extract(question, hits)
        draft, judge = extractor.draft(extract, hits), Judge(question, hits, Policy("local"), extract=extract)
        judge.ends(draft.cited.text, hits, finish_reason="stop", refusal=not draft.usable)
        vector = tuple(round(float(each), 4) for each in edge.encoder.encode([question])[0])
        route = "local" if draft.usable else "abstain"
        found.append(
            Asked(question, answers, task, draft.cited.text, route, judge.signals, vector, None, setup.fingerprint)
        )
    progress(len(questions), len(questions), "")
    return found


@contextmanager
def _answering_locally(edge: Edge) -> Iterator[Handoff | None]:
    """The way to the remote, where one may be asked; `edge` itself does not take it, even where it is preferred."""
    handoff, remote = None if edge.privacy.mode == "local_only" else edge.handoff, edge.remote
    edge.remote = None
    try:
        yield handoff
    finally:
        edge.remote = remote


def _ask_remote(handoff: Handoff, topic: Topic) -> str:
    outgoing = handoff.prepare(topic)
    if isinstance(outgoing, Withheld):
        raise CalibrationError(f"the remote was not asked: {outgoing.reason}")
    pieces = handoff.send(outgoing, topic)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            if isinstance(end.value, Missed):
                raise CalibrationError(end.value.reason, hint="run it again to go on") from None
            return str(end.value.text)


def read_asked(path: Path | None) -> list[Asked]:
    """What `ask_all` has kept so far."""
    if path is None or not path.exists():
        return []
    return [_asked(row, f"{path}: object {number}") for number, row in enumerate(read_jsonl(path), 1)]


def _asked(row: Mapping[str, object], where: str) -> Asked:
    try:
        found = Asked(**row)  # type: ignore[arg-type]
        vector, signals = (np.array(list(part), np.float32) for part in (found.vector, found.signals.values()))
        if not np.isfinite(vector).all() or vector.ndim != 1 or signals.ndim != 1:
            raise ValueError("the vector or the signals are no numbers")
        if not isinstance(row["answers"], list) or not isinstance(row["question"], str):
            raise ValueError("the question is no text or its answers are no list")
        return replace(found, answers=tuple(map(str, found.answers)), vector=tuple(found.vector))
    except (TypeError, ValueError, AttributeError) as error:
        raise CalibrationError(f"{where} is no kept answer: {error}", hint="name another file") from error


def _drop_unfinished_line(out: Path | None) -> None:
    """Take away what a run that was killed while writing has left of its last line."""
    if out is None or not out.exists():
        return
    try:
        content = out.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(out, content.rfind(b"\n") + 1)
    except OSError as error:
        raise CalibrationError(f"{out} cannot be used: {error.strerror}", hint="name another file") from error


def _append(out: Path, line: str) -> None:
    try:
        with out.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise CalibrationError(f"{out} cannot be written: {error.strerror}", hint="name another file") from error
