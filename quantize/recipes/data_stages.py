"""The first stages of a recipe: passages, what a teacher asks about them, all examples together, and the good ones.

Replies of teachers are kept beside the results, in one file of the work folder, so that another choice of passages
or rules asks only what is new. Knows nothing of students.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from edge_sdk.config import Settings
from edge_sdk.encoders.embed import Encoder
from edge_sdk.encoders.encoders import open_encoder
from edge_sdk.errors import ConfigError, EdgeError
from edge_sdk.fallback.budget import Prices, money
from edge_sdk.hub.models import resolve

from ..collection import read_jsonl
from ..teachers.kept import Kept
from ..teachers.teacher import Reply, Request, Teacher
from ..training_data.curate import Curated, Rules, curate
from ..training_data.data_files import read_data, read_titles
from ..training_data.drops import Drops
from ..training_data.example import Example, read_examples, write_examples
from ..training_data.generate import generate_examples
from ..training_data.leakage import Leakage
from ..training_data.passages import SourcePassage, read_passages
from ..training_data.quality import question_scores
from ..training_data.questions import question_request
from ..training_data.unanswerable import unanswerable_examples
from .cache import Result
from .ledger_examples import ledger_examples
from .opening import open_teacher, teacher_facts
from .recipe import CuratePart, Recipe
from .stages import Job, Stage

PASSAGES, EXAMPLES = "passages.jsonl", "examples.jsonl"
TRAIN, CALIBRATION, HELD_OUT = "train.jsonl", "calibration.jsonl", "held_out.jsonl"
REPLIES = "replies.db"
_SHOWN = 5  # of what was skipped
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


def data_stages(recipe: Recipe, settings: Settings, *, ledger: Path | None = None) -> list[Stage]:
    """The stages up to curated examples; `ledger` is a store whose learned answers become examples, too."""
    data = recipe.data
    stages = []
    if data.documents:
        stages.append(
            Stage(
                "passages",
                1,
                lambda job: _passages(job, recipe),
                {"most": data.passages, "seed": recipe.seed},
                {f"documents {at}": path for at, path in enumerate(data.documents)} | _evaluation_files(recipe),
            )
        )
        assert recipe.teacher is not None  # `recipe` has seen to it
        stages.append(
            Stage(
                "teacher",
                1,
                lambda job: _teacher(job, recipe, settings),
                {"teacher": teacher_facts(recipe.teacher, settings), "questions": data.questions},
                after=("passages",),
                expects=lambda results: _expected(results["passages"], recipe),
            )
        )
    before = tuple(stage.name for stage in stages)
    files = {f"examples {at}": path for at, path in enumerate(data.examples)}
    more = {} if ledger is None else {"store": ledger}
    encoder = resolve(data.encoder, settings).path if data.unanswerable or recipe.curate.keep else None
    encoded = {} if encoder is None else {"encoder": encoder}
    stages.append(
        Stage(
            "data",
            1,
            lambda job: _data(job, recipe, settings, ledger),
            {"unanswerable": data.unanswerable},
            files | more | encoded,
            before,
        )
    )
    rules = asdict(replace(recipe.curate, away_from=()))
    stages.append(
        Stage(
            "curate",
            1,
            lambda job: _curate(job, recipe, settings),
            {"rules": rules, "held_out": data.held_out, "calibration": data.calibration},
            _evaluation_files(recipe) | encoded,
            ("data", *before[:1]),
        )
    )
    return stages


# --- passages and the teacher -----------------------------------------------------------------------


def _passages(job: Job, recipe: Recipe) -> Mapping[str, Any]:
    """The passages that may be asked about, each once, or as many of them as are wanted, drawn by their text."""
    skipped: list[str] = []
    found = list(dict.fromkeys(read_passages(recipe.data.documents, skipped)))
    leakage = _leakage(recipe)
    kept = [each for each in found if leakage is None or not leakage.of_passage(each.text, each.title)]
    if not kept:
        raise ConfigError(f"{recipe.path.name}.data.documents hold no passage", hint=" ".join(skipped[:1]))
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
        generated = generate_examples(
            passages,
            teacher,
            most=recipe.data.questions,
            source=recipe.name,
            drops=drops,
            progress=lambda done, total, detail: job.progress(done, len(passages), detail),
            cancel=job.cancel,
        )
        write_examples(job.folder / EXAMPLES, (each.example for each in generated))
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


# --- examples ---------------------------------------------------------------------------------------


def _data(job: Job, recipe: Recipe, settings: Settings, ledger: Path | None) -> Mapping[str, Any]:
    found: list[Example] = []
    counts: dict[str, int] = {}
    drops = Drops()
    if "teacher" in job.results:
        found += read_examples(job.results["teacher"].folder / EXAMPLES)
        counts["teacher"] = len(found)
    for path in recipe.data.examples:
        given = list(read_data(path))
        found, counts[path.name] = found + given, len(given)
    if ledger is not None:
        learned = list(ledger_examples(ledger, drops))
        found, counts["ledger"] = found + learned, len(learned)
    if not found:
        raise ConfigError(f"{recipe.path.name} gives no examples", hint="name documents or examples in [data]")
    if recipe.data.unanswerable:
        passages = kept_passages(job.results) + [SourcePassage(each.passage) for each in found]
        made = list(
            unanswerable_examples(found, passages, _encoder(recipe, settings), share=recipe.data.unanswerable)
        )
        found, counts["made unanswerable"] = found + made, len(made)
    write_examples(job.folder / EXAMPLES, found)
    return {"examples": len(found), **counts, **({"ledger": drops.to_dict()} if ledger is not None else {})}


def _curate(job: Job, recipe: Recipe, settings: Settings) -> Mapping[str, Any]:
    """Good examples in three parts that share no passage; what is learned from gives nothing of the others away."""
    examples = list(read_examples(job.results["data"].folder / EXAMPLES))
    titles = {each.text: each.title for each in kept_passages(job.results)}
    for path in recipe.data.examples:
        titles |= read_titles(path)
    encoder = _encoder(recipe, settings) if recipe.curate.keep else None
    with _scores(recipe.curate, settings, job) as scores:
        curated = curate(
            examples, _rules(recipe.curate), leakage=_leakage(recipe), titles=titles, scores=scores, encoder=encoder
        )
    held, rest = _split(curated.examples, 0.0, recipe.data.held_out)
    fitting, rest = _split(rest, recipe.data.held_out, recipe.data.held_out + recipe.data.calibration)
    near = Leakage([*held, *fitting])
    train = [each for each in rest if not near.of(each)]
    for name, part in ((TRAIN, train), (CALIBRATION, fitting), (HELD_OUT, held)):
        write_examples(job.folder / name, part)
    for name, part, key in (("learn from", train, "held_out"), ("hold out", held, "held_out")):
        if not any(each.answers for each in part):
            raise ConfigError(
                f"of {len(curated.examples)} good examples none is left to {name}",
                hint=f"give more data, or change {recipe.path.name}.data.{key}",
            )
    report = _report(curated, len(rest) - len(train), {"learned": train, "calibration": fitting, "held out": held})
    (job.folder / "report.md").write_text(report, encoding="utf-8")
    sizes = {"learned": len(train), "calibration": len(fitting), "held out": len(held)}
    return {**sizes, "too near to what is held out": len(rest) - len(train), **curated.to_dict()}


def _split(examples: Sequence[Example], least: float, most: float) -> tuple[list[Example], list[Example]]:
    inside = [each for each in examples if least <= each.held_out < most]
    return inside, [each for each in examples if not least <= each.held_out < most]


def _rules(part: CuratePart) -> Rules:
    return Rules(
        languages=part.languages,
        groundedness=part.groundedness,
        passage_likeness=part.likeness,
        question_likeness=part.likeness,
        quality=part.quality,
        budget=part.keep,
    )


def _scores(part: CuratePart, settings: Settings, job: Job) -> AbstractContextManager[Any]:
    if part.quality is None:
        return nullcontext()
    model = resolve(part.judge, settings)
    return question_scores(
        model.path, kept=job.scratch / "scores.jsonl", threads=settings.threads, cancel=job.cancel
    )


def _report(curated: Curated, near: int, parts: Mapping[str, Sequence[Example]]) -> str:
    sizes = "".join(
        f"| {name} | {len(part):,} | {len({each.passage for each in part}):,} |\n" for name, part in parts.items()
    )
    table = f"| part | examples | passages |\n| --- | ---: | ---: |\n{sizes}"
    told = f"{near:,} examples were left out as too near to what is held out.\n"
    return f"# Training data\n\n{curated.markdown()}\n{table}\n{told}"


def _leakage(recipe: Recipe) -> Leakage | None:
    """What must not be learned from: the evaluation sets that the recipe names."""
    paths = list(_evaluation_files(recipe).values())
    if not paths:
        return None
    examples = [example for path in paths for example in read_data(path)]
    return Leakage(examples, titles=[title for path in paths for title in read_titles(path).values()])


def _evaluation_files(recipe: Recipe) -> dict[str, Path]:
    given = [*recipe.curate.away_from, *([recipe.evaluate.data] if recipe.evaluate.data else [])]
    return {f"evaluation {at}": path for at, path in enumerate(given)}


def _encoder(recipe: Recipe, settings: Settings) -> Encoder:
    model = resolve(recipe.data.encoder, settings)
    return open_encoder(model.directory, name=model.name)
