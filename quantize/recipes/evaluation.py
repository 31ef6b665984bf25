"""Questions put to every model in the same words and beside the same passages, and what their answers are worth.

A task has its answer in one of a few passages, or in none of them. What is measured of a model is a mean over tasks
with its bootstrap interval. Knows nothing of how a model answers, or of what it was made from.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from edge_sdk.errors import EdgeError

from ..collection import Update
from ..fit import fit
from ..gguf_models.journal import Journal
from ..metrics import bootstrap, contains, exact_match, normalise, token_f1
from ..route_metrics import (
    Estimate,
    auroc,
    bootstrap_statistic,
    brier,
    calibration_noise,
    expected_calibration_error,
)
from ..training_data.example import Example

LOWER_IS_BETTER = frozenset({"ece", "brier", "milliseconds", "tokens", "megabytes"})
_RESAMPLES = 1_000


@dataclass(frozen=True)
class Task:
    """A question and a few passages; passage number `gold` holds the answer, none where that is None."""

    question: str
    passages: tuple[str, ...]
    answers: tuple[str, ...] = ()
    gold: int | None = None


@dataclass(frozen=True)
class Given:
    """What a model made of a task. `text` is its answer even where it would rather `refuse`.

    `cited` is the number of the passage that it names; `probability`, that the answer is right, and `signals` are
    what it knows of itself: larger is surer.
    """

    text: str
    cited: int | None = None
    refused: bool = False
    probability: float | None = None
    signals: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0
    milliseconds: float = 0.0


class System(Protocol):
    """A model with all that it takes to answer a task."""

    @property
    def name(self) -> str:
        """As people know it."""

    @property
    def fingerprint(self) -> str:
        """Names the model and all that decides its answers."""

    @property
    def bytes(self) -> int | None:
        """Of its files; None where they are elsewhere."""

    def answers(self, tasks: Sequence[Task], cancel: Event | None = None) -> Iterator[tuple[int, Given]]:
        """The position of a task and what was made of it, in the order in which they are done.

        Stops without an error once `cancel` is set. Raises `EdgeError`.
        """


def tasks_of(
    examples: Sequence[Example], *, distractors: int, most: int | None = None, absent: float = 0.5, seed: int = 0
) -> list[Task]:
    """The answerable examples as tasks, each among passages of other examples; behind them those without answer.

    These are the unanswerable examples, and the share `absent` of the answerable ones once more, with another
    passage in the place of their own. No passage beside it holds an accepted answer. What is drawn follows from the
    question and `seed`.
    """
    pool = sorted({example.passage for example in examples})
    ordered = sorted(examples, key=lambda each: _draw(each.question, seed))
    answerable = [each for each in ordered if each.answers][:most]
    unanswerable = [each for each in ordered if not each.answers][:most]
    tasks = [_task(each, pool, distractors, seed, present=True) for each in answerable]
    tasks += [_task(each, pool, distractors, seed, present=True) for each in unanswerable]
    again = [each for each in answerable if _draw(f"absent {each.question}", seed) < absent]
    tasks += [_task(each, pool, distractors + 1, seed, present=False) for each in again]
    return [task for task in tasks if task.passages]


def _task(example: Example, pool: Sequence[str], others: int, seed: int, *, present: bool) -> Task:
    draw = random.Random(f"{seed} {example.question}")
    chosen = _distractors(example, pool, others, draw)
    if not present:
        return Task(example.question, tuple(chosen))
    place = draw.randrange(len(chosen) + 1)
    passages = (*chosen[:place], example.passage, *chosen[place:])
    return Task(example.question, passages, example.answers, place if example.answers else None)


def _distractors(example: Example, pool: Sequence[str], count: int, draw: random.Random) -> list[str]:
    """Up to `count` other passages that do not hold an accepted answer."""
    found: list[str] = []
    for at in draw.sample(range(len(pool)), len(pool)):
        if len(found) == count:
            break
        if pool[at] != example.passage and not contains(pool[at], example.answers):
            found.append(pool[at])
    return found


def _draw(text: str, seed: int) -> float:
    """A number from 0 to 1 that follows from the text."""
    digest = sha256(f"{seed} {normalise(text)}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def answer_all(
    system: System,
    tasks: Sequence[Task],
    *,
    kept: Path | None = None,
    progress: Update = lambda done, total, detail: None,
    cancel: Event | None = None,
) -> list[Given] | None:
    """What a system makes of every task; None when it was cancelled. A later run goes on from the file `kept`.

    Raises what the system raises, `EdgeError` where it leaves tasks out, and `ConfigError` for a file of another
    system or other tasks.
    """
    facts = {"system": system.fingerprint, "tasks": tasks_digest(tasks)}
    journal = Journal.open(kept, lambda: facts)
    found = {at: Given(**row["given"]) for at, row in journal.rows.items()}
    missing = [at for at in range(len(tasks)) if at not in found]
    progress(len(found), len(tasks), system.name)
    for at, given in system.answers([tasks[at] for at in missing], cancel):
        found[missing[at]] = given
        journal.append(missing[at], {"given": asdict(given)})
        progress(len(found), len(tasks), system.name)
    if len(found) < len(tasks):
        if cancel is not None and cancel.is_set():
            return None
        raise EdgeError(
            f"{system.name} gave no answer to {len(tasks) - len(found)} of {len(tasks)} tasks",
            hint="run it again: the others are kept",
        )
    return [found[at] for at in range(len(tasks))]


def tasks_digest(tasks: Sequence[Task]) -> str:
    """Names the tasks: equal ones in equal order have equal digests."""
    rows = json.dumps([asdict(task) for task in tasks], sort_keys=True)
    return sha256(rows.encode("utf-8", "replace")).hexdigest()


def measure(tasks: Sequence[Task], given: Sequence[Given]) -> dict[str, Any]:
    """Every figure that the answers allow, by name, each {mean, low, high} with its 95 % bootstrap interval.

    `token_f1`, `exact`, `contains`: of the tasks with an answer. `cites_right`: of those answered rightly, by
    `contains`. `abstains`: of the tasks without one; `abstains_wrongly`: of those with one. `tells_absent`: AUROC
    of the signal `answerable`, else of the probability, between the two. `auroc`, `ece`, `brier` of the probability
    (`probabilities`) over all tasks, and `ece_if_exact`, what the error would be by chance alone. `tokens`,
    `milliseconds`: of all.
    """
    pairs = list(zip(tasks, given, strict=True))
    present = [(task, each) for task, each in pairs if task.gold is not None]
    absent = [each for task, each in pairs if task.gold is None]
    good = rights(tasks, given)
    columns: dict[str, Sequence[float]] = {
        "token_f1": [token_f1(each.text, task.answers) for task, each in present],
        "exact": [exact_match(each.text, task.answers) for task, each in present],
        "contains": [contains(each.text, task.answers) for task, each in present],
        "cites_right": [
            float(each.cited == task.gold) for (task, each), yes in zip(pairs, good, strict=True) if yes
        ],
        "abstains": [float(each.refused) for each in absent],
        "abstains_wrongly": [float(each.refused) for _, each in present],
        "tokens": [float(each.tokens) for each in given if each.tokens],
        "milliseconds": [each.milliseconds for each in given if each.milliseconds],
    }
    found: dict[str, Any] = {name: asdict(bootstrap(values)) for name, values in columns.items() if values}
    sure = probabilities(tasks, given)
    answerable = [each.signals.get("answerable") for each in given]
    scores = sure if None in answerable else [value for value in answerable if value is not None]
    if scores is not None and present and absent:
        found["tells_absent"] = _estimate(auroc, scores, [float(task.gold is not None) for task in tasks])
    if sure is not None:
        found |= {"ece": _estimate(expected_calibration_error, sure, good), "brier": _estimate(brier, sure, good)}
        found["ece_if_exact"] = _named(calibration_noise(sure, resamples=200))
        if 0 < sum(good) < len(good):
            found["auroc"] = _estimate(auroc, sure, good)
    return found


def rights(tasks: Sequence[Task], given: Sequence[Given]) -> list[float]:
    """1 for an answer that contains an accepted one; any answer to a task without one is wrong."""
    pairs = zip(tasks, given, strict=True)
    return [contains(each.text, task.answers) if task.gold is not None else 0.0 for task, each in pairs]


def probabilities(tasks: Sequence[Task], given: Sequence[Given]) -> list[float] | None:
    """How likely each answer is to be right: what the system says, or what its signals tell.

    In the second case each by a model that was fitted on other tasks (`fit`): what a calibration with so many
    labels would be worth. None where there are no signals, or too few right or wrong answers.
    """
    stated = [each.probability for each in given if each.probability is not None]
    if len(stated) == len(given):
        return stated
    signs = dict.fromkeys(sorted({name for each in given for name in each.signals}), 1)
    try:
        found = fit([each.signals for each in given], [yes > 0 for yes in rights(tasks, given)], signs)
        return [float(value) for value in found.held_out]
    except ValueError:
        return None


def compare(name: str, tasks: Sequence[Task], mine: Sequence[Given], other: Sequence[Given]) -> dict[str, Any]:
    """How far one model is ahead of another over tasks with an answer: paired, so the interval is of the lead."""
    metric: Callable[[str, Sequence[str]], float] = {
        "token_f1": token_f1,
        "exact": exact_match,
        "contains": contains,
    }[name]
    rows = zip(tasks, mine, other, strict=True)
    values = [
        metric(one.text, task.answers) - metric(two.text, task.answers)
        for task, one, two in rows
        if task.gold is not None
    ]
    return asdict(bootstrap(values)) if values else {}


def _estimate(statistic: Callable[..., float], *columns: Sequence[float]) -> dict[str, float]:
    return _named(bootstrap_statistic(statistic, *columns, resamples=_RESAMPLES))


def _named(found: Estimate) -> dict[str, float]:
    return {"mean": found.value, "low": found.low, "high": found.high}
