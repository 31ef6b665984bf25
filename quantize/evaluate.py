"""`edge eval answers`: retrieval and answers measured on a question set with this device's models.

The folder holds `passages.jsonl` {id, title, text} and `questions.jsonl` {id, question, answers, passage_id}.
Every passage becomes one document of a store of its own; questions run through `Edge` as a user's would. Each
prediction is appended to a file as it is made, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event as Flag

from edge_sdk.config import Settings
from edge_sdk.edge import Edge
from edge_sdk.errors import ConfigError
from edge_sdk.route import Policy

from .collection import Update, fill_store, read_documents, read_jsonl, store_path
from .metrics import contains, exact_match, recall_at, token_f1


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its accepted answers and the one passage that holds them."""

    id: str
    question: str
    answers: tuple[str, ...]
    passage_id: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answered question; `ranked` are the documents retrieved, best first."""

    id: str
    question: str
    answers: tuple[str, ...]
    passage_id: str
    ranked: tuple[str, ...]
    text: str
    cited: tuple[str, ...]
    route: str
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    prefill_ms: float
    decode_ms: float


def read_questions(data: Path) -> list[Question]:
    """`questions.jsonl` of the folder."""
    file = data / "questions.jsonl"
    rows = list(read_jsonl(file))
    if not all(isinstance(row.get("answers", []), list) for row in rows):
        raise ConfigError(f"{file} has a line whose answers are no list")
    try:
        return [
            Question(str(row["id"]), str(row["question"]), tuple(row["answers"]), str(row["passage_id"]))  # type: ignore[arg-type]
            for row in rows
        ]
    except KeyError as error:
        raise ConfigError(f"{file} has a line without {error}") from error


def evaluate_answers(
    data: Path,
    settings: Settings,
    *,
    limit: int | None = None,
    out: Path | None = None,
    progress: Update = lambda done, total, detail: None,
    cancel: Flag | None = None,
) -> dict[str, object]:
    """Answer the questions and average the metrics; see the JSON table of the README for the keys.

    The store is kept under `settings.home/eval`, keyed by the passages and the encoder, so that a second run
    starts with the questions. `limit` takes the first n questions; `out` keeps the predictions and resumes.
    """
    questions = read_questions(data)[:limit]
    if not questions:
        raise ConfigError(f"{data / 'questions.jsonl'} holds no question")
    done = {prediction.id: prediction for prediction in _read_predictions(out)}
    passages = data / "passages.jsonl"
    store = store_path(settings, passages, Path(settings.encoder).name)
    own = replace(settings, store=store, prefix_cache=0)  # every question costs what it costs at first
    with Edge.open(settings=own, policy=Policy(when_unsure="local")) as edge:
        fill_store(edge.store, edge.encoder, read_documents(passages), progress)
        model = edge.engine.name
        for number, question in enumerate(questions):
            progress(number, len(questions), question.question)
            if cancel is not None and cancel.is_set():
                break
            if question.id not in done:
                done[question.id] = prediction = _predict(edge, question)
                if out is not None:
                    with out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(prediction)) + "\n")
    predictions = [done[question.id] for question in questions if question.id in done]
    return {"model": model, "data": data.name, **summarise(predictions)}


def summarise(predictions: Sequence[Prediction]) -> dict[str, object]:
    """The averages over predictions: shares between 0 and 1, seconds, tokens a second (sums over sums)."""
    if not predictions:
        return {"n": 0}

    def mean(values: Iterator[float]) -> float:
        return statistics.fmean(values)

    prefilled = sum(each.prompt_tokens - each.cached_tokens for each in predictions)
    decoded = sum(each.completion_tokens for each in predictions)
    prefill_ms, decode_ms = (
        sum(getattr(each, name) for each in predictions) for name in ("prefill_ms", "decode_ms")
    )
    return {
        "n": len(predictions),
        "recall_at_1": mean(recall_at(each.ranked, {each.passage_id}, 1) for each in predictions),
        "recall_at_5": mean(recall_at(each.ranked, {each.passage_id}, 5) for each in predictions),
        "exact_match": mean(exact_match(each.text, each.answers) for each in predictions),
        "contains": mean(contains(each.text, each.answers) for each in predictions),
        "token_f1": mean(token_f1(each.text, each.answers) for each in predictions),
        "cites_right_passage": mean(float(each.passage_id in each.cited) for each in predictions),
        "seconds_per_question": mean(each.seconds for each in predictions),
        "prompt_tokens": mean(each.prompt_tokens for each in predictions),
        "prefill_tokens_per_second": prefilled / prefill_ms * 1000 if prefill_ms else None,
        "decode_tokens_per_second": decoded / decode_ms * 1000 if decode_ms else None,
    }


def _predict(edge: Edge, question: Question) -> Prediction:
    started = time.perf_counter()
    answer = edge.ask(question.question, style="brief", max_tokens=48)
    seconds = time.perf_counter() - started
    ranked = tuple(dict.fromkeys(hit.passage.document for hit in answer.hits))
    return Prediction(
        id=question.id,
        question=question.question,
        answers=question.answers,
        passage_id=question.passage_id,
        ranked=ranked,
        text=_without_marks(answer.text),
        cited=tuple(citation.document for citation in answer.citations),
        route=answer.route,
        seconds=seconds,
        prompt_tokens=answer.tokens.prompt,
        cached_tokens=answer.tokens.cached,
        completion_tokens=answer.tokens.completion,
        prefill_ms=answer.timings.prefill_ms or 0.0,
        decode_ms=answer.timings.decode_ms or 0.0,
    )


def _without_marks(text: str) -> str:
    """Citation marks are not part of the answer's words."""
    return re.sub(r"\s*\[\d+\]", "", text).strip()


def _read_predictions(out: Path | None) -> list[Prediction]:
    if out is None or not out.exists():
        return []
    return [
        Prediction(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()})  # type: ignore[arg-type]
        for row in read_jsonl(out)
    ]
