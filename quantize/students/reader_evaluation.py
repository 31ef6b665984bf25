"""What a reader is worth on a question set that it never saw: beside distractors, behind our retrieval, and without
the right passage.

The folder holds `passages.jsonl` {id, title, text} and `questions.jsonl` {id, question, answers, passage_id}. Knows
nothing of training.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any

from edge_sdk import loading
from edge_sdk.config import Settings
from edge_sdk.readers.extract import Extract
from edge_sdk.readers.reader import Reader
from edge_sdk.retrieval.retrieve import retrieve
from edge_sdk.storage.store import Store

from ..collection import Update, fill_store, read_documents, store_path
from ..evaluate import Question, read_questions
from ..metrics import bootstrap, contains, exact_match, token_f1
from ..route_metrics import auroc, bootstrap_statistic

DISTRACTORS = 2
READ = 5
"""Passages that are read behind retrieval."""
_RANKED = 12  # passages asked of retrieval, of which distractors are taken


@dataclass(frozen=True, slots=True)
class Ranked:
    """A question with all that it may be put beside: its own passage, distractors that resemble it, the most alike
    first, and what our retrieval gives."""

    question: Question
    gold: str
    near: tuple[str, ...]
    retrieved: tuple[str, ...]


def rank_passages(
    data: Path,
    settings: Settings,
    *,
    limit: int | None = None,
    progress: Update = lambda done, total, detail: None,
    cancel: Event | None = None,
) -> list[Ranked]:
    """Ask our retrieval for every question, the first `limit` of the file; a store is kept under `settings.home`.

    Of passages that resemble a question, those that hold one of its answers are not `near`.
    """
    questions, file = read_questions(data)[:limit], data / "passages.jsonl"
    documents = {document.name: document for document in read_documents(file)}
    encoder = loading.load_encoder(settings)
    found = []
    with Store.open(store_path(settings, file, f"{encoder.fingerprint} {file.name}")) as store:
        fill_store(store, encoder, list(documents.values()), progress, cancel)
        for number, question in enumerate(questions):
            if cancel is not None and cancel.is_set():
                break
            progress(number, len(questions), question.question)
            hits = retrieve(store, encoder, question.question, _RANKED)
            others = dict.fromkeys(
                hit.passage.document for hit in hits if hit.passage.document != question.passage_id
            )
            texts = [documents[name].text for name in others]
            near = tuple(text for text in texts if not contains(text, question.answers))
            retrieved = tuple(hit.passage.text for hit in hits[:READ])
            found.append(Ranked(question, documents[question.passage_id].text, near, retrieved))
    return found


def evaluate_reader(
    reader: Reader,
    ranked: Sequence[Ranked],
    *,
    seed: int = 0,
    progress: Update = lambda done, total, detail: None,
) -> dict[str, Any]:
    """The JSON document: figures with 95 % bootstrap intervals over questions, {mean, low, high}.

    `near`, `random`: the gold passage and two others, which resemble the question or are drawn; `retrieved`: the
    first five of our own retrieval, and `lost_to_retrieval` what that costs, question by question. Each with
    `token_f1`, `exact`, `contains`, `cites_right` (of those that contain the answer) and `milliseconds` (median).
    `answerable`: AUROC with the gold passage against another in its place, of `support`, of the best passage's own
    score, and of the probability where the reader has one.
    """
    draw = random.Random(seed)
    pool = list(dict.fromkeys(each.gold for each in ranked))
    rows: dict[str, list[_Row]] = {"near": [], "random": [], "retrieved": []}
    pairs: dict[str, list[tuple[Extract, Extract]]] = {"near": [], "random": []}
    for number, each in enumerate(ranked):
        progress(number, len(ranked), each.question.question)
        drawn = [text for text in draw.sample(pool, min(len(pool), _RANKED)) if _is_other(text, each)]
        place = draw.randrange(DISTRACTORS + 1)
        for name, others in (("near", each.near), ("random", drawn)):
            beside = list(others[:DISTRACTORS])
            row = _read(reader, each, [*beside[:place], each.gold, *beside[place:]])
            rows[name].append(row)
            pairs[name].append((row.extract, reader.read(each.question.question, others[: DISTRACTORS + 1])))
        rows["retrieved"].append(_read(reader, each, each.retrieved))
    found: dict[str, Any] = {"n": len(ranked), **{name: _summary(each) for name, each in rows.items()}}
    differences = [one.f1 - two.f1 for one, two in zip(rows["near"], rows["retrieved"], strict=True)]
    found["lost_to_retrieval"] = asdict(bootstrap(differences))
    found["answerable"] = {name: _separation(each) for name, each in pairs.items()}
    return found


@dataclass(frozen=True, slots=True)
class _Row:
    extract: Extract
    f1: float
    exact: float
    contained: float
    cited: bool
    milliseconds: float


def _read(reader: Reader, each: Ranked, passages: Sequence[str]) -> _Row:
    started = time.perf_counter()
    extract = reader.read(each.question.question, passages)
    milliseconds = (time.perf_counter() - started) * 1000
    said, answers = ("" if extract.best is None else extract.best.text), each.question.answers
    cited = extract.best is not None and passages[extract.best.passage] == each.gold
    return _Row(
        extract, token_f1(said, answers), exact_match(said, answers), contains(said, answers), cited, milliseconds
    )


def _is_other(text: str, each: Ranked) -> bool:
    return text != each.gold and not contains(text, each.question.answers)


def _summary(rows: Sequence[_Row]) -> dict[str, Any]:
    columns = {
        "token_f1": [row.f1 for row in rows],
        "exact": [row.exact for row in rows],
        "contains": [row.contained for row in rows],
        "cites_right": [float(row.cited) for row in rows if row.contained],
    }
    found: dict[str, Any] = {name: asdict(bootstrap(values)) for name, values in columns.items() if values}
    return found | {"milliseconds": round(median(row.milliseconds for row in rows), 2)}


def _separation(pairs: Sequence[tuple[Extract, Extract]]) -> dict[str, Any]:
    signals: dict[str, Callable[[Extract], float | None]] = {
        "support": lambda extract: extract.support,
        "passage": lambda extract: max(extract.passages, default=float("-inf")),
        "probability": lambda extract: extract.probability,
    }
    found = {}
    for name, signal in signals.items():
        scores = [signal(extract) for side in (0, 1) for extract in (pair[side] for pair in pairs)]
        if all(score is not None for score in scores):
            labels = [1.0] * len(pairs) + [0.0] * len(pairs)
            values = [-1e9 if score == float("-inf") else float(score or 0.0) for score in scores]
            each = bootstrap_statistic(auroc, values, labels, resamples=1000)
            found[name] = {"mean": each.value, "low": each.low, "high": each.high}
    return found
