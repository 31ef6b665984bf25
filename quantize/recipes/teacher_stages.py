"""The first stages of a recipe: passages, and what a teacher asks about them and answers.

Replies of teachers are kept beside the results, in one file of the work folder, so that another choice of passages
asks only what is new. Knows nothing of what becomes of examples.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from edge_sdk.config import Settings
from edge_sdk.errors import ConfigError, EdgeError
from edge_sdk.fallback.budget import Prices, money
from edge_sdk.hub.models import resolve
from edge_sdk.storage.vectors import VectorIndex, quantize_rows

from ..collection import read_jsonl
from ..teachers.kept import Kept
from ..teachers.teacher import Reply, Request, Teacher
from ..training_data.data_files import read_data, read_titles
from ..training_data.drops import Drops
from ..training_data.example import write_examples
from ..training_data.generate import generate_examples
from ..training_data.label import Unlabelled, label_questions
from ..training_data.leakage import Leakage
from ..training_data.passages import SourcePassage, read_passages
from ..training_data.questions import question_request
from .cache import Result
from .opening import open_near, open_teacher, teacher_facts
from .recipe import Recipe
from .stages import Job, Stage

PASSAGES, EXAMPLES = "passages.jsonl", "examples.jsonl"
REPLIES = "replies.db"
_SHOWN = 5  # of what was skipped
_NEAREST = 4  # passages that a given question is put to
_MOST_MISSED = 0.1  # of all requests; beyond it the stage is to be run again
_CHECK_TOKENS = 400  # of a request that asks again, beside its passage: instructions, examples, question


@dataclass
class KeptTeacher:
    """A `Teacher` that asks for nothing that is kept.

    `cost` is what the `answered` replies that it has given were paid with, now or earlier; `missed` were not given.
    """

    teacher: Teacher
    kept: Kept
    cost: float = 0.0
    answered: int = 0
    missed: int = 0

    @property
    def fingerprint(self) -> str:
        """That of the teacher."""
        return self.teacher.fingerprint

    def replies(self, requests: Sequence[Request], cancel: Event | None = None) -> Iterator[tuple[int, Reply]]:
        """See `Teacher.replies`; all come once the last is there."""
        for position, reply in enumerate(self.kept.ask(self.teacher, requests, cancel=cancel)):
            if reply is None:
                self.missed += 1
                continue
            self.answered, self.cost = self.answered + 1, self.cost + reply.cost
            yield position, reply


def teacher_stages(recipe: Recipe, settings: Settings) -> list[Stage]:
    """The stages of a recipe with documents; none where it has none."""
    data = recipe.data
    if not data.documents:
        return []
    assert recipe.teacher is not None  # `recipe` has seen to it
    documents = {f"documents {at}": path for at, path in enumerate(data.documents)}
    asked = {f"unlabelled {at}": path for at, path in enumerate(data.unlabelled)}
    near = {"encoder": resolve(data.encoder, settings).path} if asked else {}
    return [
        Stage(
            "passages",
            1,
            lambda job: _passages(job, recipe),
            {"most": data.passages, "shortest": data.shortest, "seed": recipe.seed},
            documents | evaluation_files(recipe),
        ),
        Stage(
            "teacher",
            2,
            lambda job: _teacher(job, recipe, settings),
            {
                "teacher": teacher_facts(recipe.teacher, settings),
                "questions": data.questions,
                "minutes": recipe.teacher.minutes,
            },
            asked | near,
            ("passages",),
            lambda results: _expected(results["passages"], recipe),
        ),
    ]


def _passages(job: Job, recipe: Recipe) -> Mapping[str, Any]:
    """The passages that may be asked about, each once, or as many of them as are wanted, drawn by their text."""
    skipped: list[str] = []
    found = list(dict.fromkeys(read_passages(recipe.data.documents, skipped)))
    leakage = leakage_of(recipe)
    long = [each for each in found if len(each.text) >= recipe.data.shortest]
    kept = [each for each in long if leakage is None or not leakage.of_passage(each.text, each.title)]
    if not kept:
        hint = "all are too short: lower data.shortest" if found and not long else " ".join(skipped[:1])
        raise ConfigError(f"{recipe.path.name}.data.documents hold no passage", hint=hint)
    if recipe.data.passages is not None:
        chosen = set(sorted(kept, key=lambda each: _draw(each.text, recipe.seed))[: recipe.data.passages])
        kept = [each for each in kept if each in chosen]
    with (job.folder / PASSAGES).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in kept)
    return {
        "passages": len(kept),
        "left out": len(found) - len(kept),
        "skipped": len(skipped),
        "for example": skipped[:_SHOWN],
    }


def kept_passages(results: Mapping[str, Result]) -> list[SourcePassage]:
    """The passages of the stage; none where the recipe has no documents."""
    if "passages" not in results:
        return []
    rows = read_jsonl(results["passages"].folder / PASSAGES)
    return [SourcePassage(str(row["text"]), str(row["title"])) for row in rows]


def _draw(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {text}".encode("utf-8", "replace")).digest()


def _teacher(job: Job, recipe: Recipe, settings: Settings) -> Mapping[str, Any]:
    assert recipe.teacher is not None
    passages, drops = kept_passages(job.results), Drops()
    with ExitStack() as stack:
        kept = stack.enter_context(Kept(recipe.work / REPLIES))
        teacher = KeptTeacher(stack.enter_context(open_teacher(recipe, settings, kept)), kept)
        asked: dict[str, Any] = {"source": recipe.name, "drops": drops, "cancel": job.cancel}
        found = [
            each.example
            for each in generate_examples(
                _in_time(passages, recipe.teacher.minutes),
                teacher,
                most=recipe.data.questions,
                progress=lambda done, total, detail: job.progress(done, len(passages), detail),
                **asked,
            )
        ]
        if recipe.data.unlabelled:
            questions = list(_unlabelled(recipe, settings, passages))
            found += [each.example for each in label_questions(questions, teacher, progress=job.progress, **asked)]
        write_examples(job.folder / EXAMPLES, found)
    job.cost = teacher.cost
    if not job.cancel.is_set() and teacher.missed > _MOST_MISSED * (teacher.missed + teacher.answered):
        raise EdgeError(
            f"{teacher.missed} of {teacher.missed + teacher.answered} requests were not answered by the teacher",
            hint="run it again: what was answered is kept",
        )
    (job.folder / "report.md").write_text(drops.markdown(), encoding="utf-8")
    return {
        "teacher": teacher.fingerprint,
        "answered": teacher.answered,
        "missed": teacher.missed,
        **drops.to_dict(),
    }


def _in_time(passages: Sequence[SourcePassage], minutes: float | None) -> Iterator[SourcePassage]:
    """The passages for as long as there is time to begin with another."""
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    return takewhile(lambda _: time.monotonic() < end, passages)


def _unlabelled(recipe: Recipe, settings: Settings, passages: Sequence[SourcePassage]) -> Iterator[Unlabelled]:
    """The questions of the user's own, each with the passages that are nearest to it."""
    rows = [(path, row.get("question")) for path in recipe.data.unlabelled for row in read_jsonl(path)]
    for path, question in rows:
        if not isinstance(question, str) or not question.strip():
            raise ConfigError(f"{path} has a row without a question", hint='write rows {"question": "..."}')
    questions = list(dict.fromkeys(str(question) for _, question in rows))
    with open_near(recipe, settings) as encoder:
        codes, scales = quantize_rows(encoder.encode([each.text for each in passages]))
        asked = encoder.encode(questions)
    index = VectorIndex.of(np.arange(len(passages)), codes, scales)
    for question, vector in zip(questions, asked, strict=True):
        near, _ = index.top_k(vector, _NEAREST)
        yield Unlabelled(question, tuple(passages[at] for at in near.tolist()))


def _expected(passages: Result, recipe: Recipe) -> str:
    """What asking about the passages may take at most."""
    assert recipe.teacher is not None
    texts = kept_passages({"passages": passages})
    requests = [question_request(each, recipe.data.questions) for each in texts]
    count = len(texts) * (1 + recipe.data.questions)
    told = f"up to {count:,} requests"
    if recipe.teacher.prices is None:
        return told
    # No tokenizer has more tokens than there are bytes, and few have more than a third of that.
    asked = sum(len(message.content.encode()) // 3 for each in requests for message in each.messages)
    again = sum(_CHECK_TOKENS + len(each.text.encode()) // 3 for each in texts) * recipe.data.questions
    written = sum(each.max_tokens for each in requests) + 24 * len(texts) * recipe.data.questions
    return f"{told}, about {money(Prices.parse(recipe.teacher.prices).cost(asked + again, written))} at most"


def leakage_of(recipe: Recipe) -> Leakage | None:
    """What must not be learned from: the evaluation sets that the recipe names."""
    paths = list(evaluation_files(recipe).values())
    if not paths:
        return None
    examples = [example for path in paths for example in read_data(path)]
    return Leakage(examples, titles=[title for path in paths for title in read_titles(path).values()])


def evaluation_files(recipe: Recipe) -> dict[str, Path]:
    given = [*recipe.curate.away_from, *([recipe.evaluate.data] if recipe.evaluate.data else [])]
    return {f"evaluation {at}": path for at, path in enumerate(given)}
