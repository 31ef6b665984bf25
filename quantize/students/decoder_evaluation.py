"""How well a decoder reads: right answers, brief ones, right passages cited, and silence where there is no answer.

Each question is put with its passage and others, in the engine, with the prompt that the runtime makes; then once
more without its passage. Knows nothing of training; any engine can be asked, a teacher's too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean
from threading import Event

from edge_sdk.citations import is_refusal, resolve_citations
from edge_sdk.engines.engine import Engine
from edge_sdk.errors import ConfigError
from edge_sdk.prompt import Reading, Style
from edge_sdk.records import Citation, GenerateOptions, Hit, Passage

from ..collection import Update
from ..metrics import Interval, bootstrap, contains, exact_match, token_f1
from ..training_data.example import Example
from .decoder_data import Neighbours, Task, task_prompt

_MARK = re.compile(r"\s*\[\d+\]")
_BRIEF = 40  # tokens that an answer should not exceed


@dataclass(frozen=True, slots=True)
class Given:
    """An answer to a task. `cited` are the passages it cites, by their place in the task, counted from 1."""

    task: Task
    text: str
    cited: tuple[int, ...]
    tokens: int
    logprob: float  # mean over the answer's tokens, in nats
    finished: bool

    @property
    def words(self) -> str:
        """The answer without its marks."""
        return _MARK.sub("", self.text).strip()

    @property
    def refused(self) -> bool:
        """Whether it says that the passages hold no answer."""
        return is_refusal(self.text)


@dataclass(frozen=True, slots=True)
class DecoderReport:
    """Shares from 0 to 1, over questions with their passage (`n`) and without (`n_absent`).

    `cites_right`: of the answers that hold an accepted one, how many cite the right passage and no other; None
    where there is none. `abstains` where the passage is absent, `abstains_wrongly` where it is there. `within_40`:
    of all answers, how many end by themselves within forty tokens.
    """

    n: int
    n_absent: int
    token_f1: Interval
    contains: Interval
    exact_match: Interval
    cites_right: float | None
    abstains: float | None
    abstains_wrongly: float
    tokens: float
    within_40: float


def reading_tasks(
    examples: Sequence[Example],
    *,
    distractors: int = 2,
    near: float = 0.5,
    absent: float = 0.5,
    style: Style = "full",
    seed: int = 0,
) -> list[Task]:
    """Each answerable example with its passage among `distractors`, the same for equal seeds; a share of them again
    without it.

    A share `near` of distractors resemble the passage; none holds an accepted answer. Raises `ConfigError` where
    there are too few passages.
    """
    random, texts = Random(seed), list(dict.fromkeys(example.passage for example in examples))
    places, close = {text: at for at, text in enumerate(texts)}, Neighbours(texts)
    tasks = []
    for example in examples:
        if not example.answers:
            continue
        absence = random.random() < absent
        others = _distractors(
            example, texts, close.of(places[example.passage]), distractors + absence, near, random
        )
        order = random.sample([example.passage, *others[:distractors]], distractors + 1)
        gold = order.index(example.passage) + 1
        tasks.append(Task(example.question, tuple(order), gold, example.answers, style))
        if absence:
            tasks.append(Task(example.question, tuple(others), 0, example.answers, style))
    return tasks


def _distractors(
    example: Example, texts: Sequence[str], close: Sequence[int], count: int, near: float, random: Random
) -> list[str]:
    found: dict[str, None] = {}
    for _ in range(20 * count + 20):
        if len(found) == count:
            return list(found)
        text = texts[random.choice(close)] if close and random.random() < near else random.choice(texts)
        if text != example.passage and not contains(text, example.answers):
            found[text] = None
    raise ConfigError(
        f"there are not {count} passages without the answer to {example.question[:60]!r}", hint="give more passages"
    )


def ask_tasks(
    engine: Engine,
    tasks: Sequence[Task],
    reading: Reading,
    *,
    max_tokens: int = 64,
    progress: Update = lambda done, total, detail: None,
    cancel: Event | None = None,
) -> Iterator[Given]:
    """Answers in the order of the tasks, greedily; they end early once `cancel` is set."""
    for number, task in enumerate(tasks):
        progress(number, len(tasks), task.question)
        prompt = task_prompt(task, engine, reading)
        generation = engine.generate(prompt.text, GenerateOptions(max_tokens=max_tokens), cancel)
        said = list(generation)
        if cancel is not None and cancel.is_set():
            return
        text = "".join(token.text for token in said).strip()
        cited = resolve_citations(text, prompt.passages)
        yield Given(
            task=task,
            text=cited.text,
            cited=tuple(_passage(each, prompt.passages).id for each in cited.citations),
            tokens=len(said),
            logprob=fmean(token.logprob for token in said),
            finished=generation.result.finish_reason == "stop",
        )


def _passage(citation: Citation, hits: Sequence[Hit]) -> Passage:
    """Where the evidence stands, which need not be where the model's mark points."""
    return next(
        hit.passage
        for hit in hits
        if hit.passage.document == citation.document
        and hit.passage.start <= citation.start
        and citation.end <= hit.passage.end
    )


def decoder_report(given: Sequence[Given]) -> DecoderReport:
    """The figures of some answers. Raises `ConfigError` where none had its passage."""
    present, absent = [each for each in given if each.task.gold], [each for each in given if not each.task.gold]
    if not present:
        raise ConfigError("no question was asked with its passage")
    right = [each for each in present if contains(each.words, each.task.answers)]
    return DecoderReport(
        n=len(present),
        n_absent=len(absent),
        token_f1=bootstrap([token_f1(each.words, each.task.answers) for each in present]),
        contains=bootstrap([contains(each.words, each.task.answers) for each in present]),
        exact_match=bootstrap([exact_match(each.words, each.task.answers) for each in present]),
        cites_right=_share([set(each.cited) == {each.task.gold} for each in right]),
        abstains=_share([each.refused for each in absent]),
        abstains_wrongly=fmean(each.refused for each in present),
        tokens=fmean(each.tokens for each in present),
        within_40=fmean(each.finished and each.tokens <= _BRIEF for each in given),
    )


def _share(values: Sequence[bool]) -> float | None:
    return fmean(values) if values else None
