"""Examples to what a decoder learns from: the very prompts that it gets at run time, and the answers to give.

Several passages make a sheet, and all their questions are asked of it: those that it answers, with the number of
the passage, and some that it does not, with the sentence that says so. A sheet is read once for all its questions,
which saves two thirds of the work. Where sentences are to be chosen, each question gets its own, and a sheet is
what all prompts begin with. Knows nothing of models; the engine renders and tokenizes.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from threading import Event
from typing import Protocol

from edge_sdk.errors import ConfigError
from edge_sdk.evidence import choose
from edge_sdk.prompt import NOT_FOUND, Prompt, Reading, Style, build_prompt
from edge_sdk.readers.extract import Span
from edge_sdk.records import Hit, Message, Passage

from ..collection import Update
from ..metrics import contains
from ..teachers.teacher import Request
from ..teachers.top_logits import TopLogits, TopLogitsFile
from ..training_data.example import Example
from ..training_data.locate import locate
from .decoder_rivals import Read, Rivals, other_answers, rivals

_WORD = re.compile(r"\w{3,}")
_COMMON = 0.05  # share of passages beyond which a word says nothing of what a passage is about
_NEAREST = 8  # passages that resemble one, of which distractors are drawn
_FOUND = math.log(0.5)  # as sure as a reader that is right is of an answer's words, for the choice of sentences


class Renderer(Protocol):
    """What a prompt is made with: every `Engine` has it."""

    def render(self, messages: Sequence[Message]) -> str: ...

    def count(self, text: str) -> int: ...


class Tokenizer(Renderer, Protocol):
    """What is wanted of the engine that the student will run in: `GgufEngine` has it."""

    def tokens(self, text: str) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Lessons:
    """How questions are put. `passages` make a sheet; `near` is the share of sheets whose passages are alike.

    `unanswerable` is the share of questions whose answer is not on the sheet, `brief` that of sheets whose
    questions are asked for a few words (`Style`), without numbers to cite. `most` are asked of a passage.
    """

    passages: int = 3
    near: float = 0.5
    unanswerable: float = 0.15
    brief: float = 0.3
    most: int = 4

    def __post_init__(self) -> None:
        if self.passages < 1 or self.most < 1 or not all(0 <= each <= 1 for each in (self.near, self.brief)):
            raise ConfigError(f"sheets of {self.passages} passages cannot be made with {self}")
        if not 0 <= self.unanswerable < 1:
            raise ConfigError(f"a share of {self.unanswerable} unanswerable questions", hint="use less than 1")


@dataclass(frozen=True, slots=True)
class Task:
    """A question put to passages; `gold` is the one that answers it, counted from 1, or 0 for none."""

    question: str
    passages: tuple[str, ...]
    gold: int
    answers: tuple[str, ...]
    style: Style = "full"

    def targets(self, number: int | None) -> list[str]:
        """The right answers, the one to learn first: words, and the passage's number, where passages have any."""
        mark = f" [{number}]" if number else ""
        return [answer.strip() + mark for answer in self.answers] if self.gold else [NOT_FOUND]


@dataclass(frozen=True, slots=True)
class Branch:
    """What follows a sheet: `tokens` of the rest of a prompt and of its answer, which begins at `answer`.

    `soft` says how likely a teacher of the same vocabulary found what might be said at each place of the answer,
    `rivals` which other tokens each of the answer's is to be chosen among, where it is.
    """

    tokens: tuple[int, ...]
    answer: int
    soft: TopLogits | None = None
    rivals: Rivals = ()


@dataclass(frozen=True, slots=True)
class Sheet:
    """Tokens that several prompts begin with, and how each goes on."""

    prefix: tuple[int, ...]
    branches: tuple[Branch, ...]

    @property
    def length(self) -> int:
        """Tokens to read in all."""
        return len(self.prefix) + sum(len(branch.tokens) for branch in self.branches)


class TaskMaker:
    """Examples by their passages, from which tasks are drawn; equal seeds draw equal ones."""

    def __init__(self, examples: Sequence[Example], lessons: Lessons) -> None:
        """Raises `ConfigError` for fewer passages than a sheet has."""
        self._lessons = lessons
        self._asked: dict[str, list[Example]] = defaultdict(list)
        for example in examples:
            self._asked[example.passage].append(example)
        self._texts = list(self._asked)
        if len(self._texts) < lessons.passages:
            raise ConfigError(
                f"{len(self._texts)} passages are too few for sheets of {lessons.passages}",
                hint="give more examples",
            )
        self._near = Neighbours(self._texts)

    def sheets(self, seed: int) -> Iterator[list[Task]]:
        """Tasks that share their passages: every passage is on one sheet, but for the few that fill none."""
        random, lessons = Random(seed), self._lessons
        waiting = dict.fromkeys(random.sample(range(len(self._texts)), len(self._texts)))
        while len(waiting) >= lessons.passages:
            first = next(iter(waiting))
            del waiting[first]
            chosen = [first]
            near = random.random() < lessons.near
            close = [at for at in self._near.of(first) if at in waiting] if near else []
            random.shuffle(close)
            chosen += close[: lessons.passages - 1]
            for at in chosen[1:]:
                del waiting[at]
            while len(chosen) < lessons.passages:
                at = next(iter(waiting))
                del waiting[at]
                chosen.append(at)
            random.shuffle(chosen)
            if tasks := self._tasks(chosen, random):
                yield tasks

    def _tasks(self, chosen: Sequence[int], random: Random) -> list[Task]:
        lessons, texts = self._lessons, tuple(self._texts[at] for at in chosen)
        style: Style = "brief" if random.random() < lessons.brief else "full"
        tasks = []
        for number, text in enumerate(texts, 1):
            asked = self._asked[text]
            for each in random.sample(asked, min(lessons.most, len(asked))):
                tasks.append(Task(each.question, texts, number if each.answers else 0, each.answers, style))
        share = lessons.unanswerable
        wanted = sum(task.gold > 0 for task in tasks) * share / (1 - share) - sum(not task.gold for task in tasks)
        count = int(wanted) + (random.random() < wanted % 1) if wanted > 0 else 0
        others = [at for text in chosen for at in self._near.of(text) if at not in chosen]
        for at in random.sample(others, min(count, len(others))):
            each = random.choice(self._asked[self._texts[at]])
            answerable = any(contains(text, each.answers) for text in texts)
            if each.answers and not answerable:
                tasks.append(Task(each.question, texts, 0, (), style))
        random.shuffle(tasks)
        return tasks


class Neighbours:
    """Passages that share rare words, by the sum of inverse document frequencies."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._words = [sorted(set(_WORD.findall(text.lower()))) for text in texts]
        self._holders: dict[str, list[int]] = defaultdict(list)
        for at, words in enumerate(self._words):
            for word in words:
                self._holders[word].append(at)
        self._most = max(_COMMON * len(texts), 8.0)

    def of(self, at: int) -> list[int]:
        """The nearest passages to one, nearest first, never itself."""
        scores: dict[int, float] = defaultdict(float)
        for word in self._words[at]:  # in the same order in every process, as sums of numbers want it
            holders = self._holders[word]
            if 1 < len(holders) <= self._most:
                for other in holders:
                    scores[other] += math.log(len(self._words) / len(holders))
        scores.pop(at, None)
        return sorted(scores, key=lambda other: (-scores[other], other))[:_NEAREST]


def make_sheets(
    maker: TaskMaker,
    tokenizer: Tokenizer,
    reading: Reading,
    end: int,
    *,
    read: Read | None = None,
    longest: int = 40,
    seed: int = 0,
    progress: Update = lambda done, total, detail: None,
    cancel: Event | None = None,
) -> list[Sheet]:
    """All tasks of an epoch in tokens, each prompt exactly as `build_prompt` makes it; `end` ends every answer.

    With `read` sentences are chosen as with that reader at run time, and answers have as rivals what it finds
    likely, where `reading` is extractive. A question whose passage has no room in `reading.prompt_tokens`, whose
    answer is in no chosen sentence or takes more than `longest` tokens, is left out; and once `cancel` is set,
    all the rest.
    """
    made = []
    for number, tasks in enumerate(maker.sheets(seed)):
        progress(number, None, "sheets")
        made += list(_sheets(tasks, tokenizer, reading, end, longest, read))
        if made and cancel is not None and cancel.is_set():
            break
    return made


def _sheets(
    tasks: Sequence[Task], tokenizer: Tokenizer, reading: Reading, end: int, longest: int, reader: Read | None
) -> Iterator[Sheet]:
    """Tasks that share passages, as one sheet; more where a long question leaves no room for all passages."""
    sharing: dict[tuple[int, ...], list[tuple[list[int], int, Rivals]]] = defaultdict(list)
    for task in tasks:
        extract = reader(task.question, task.passages) if reader is not None else None
        shown = _shown(task, tokenizer, reading, _likely(task) if extract is None else extract.likely)
        prompt = _prompt(task, tokenizer, reading, shown)
        read = tuple(hit.passage.id for hit in prompt.passages)
        if task.gold and not (task.gold in read and _is_told(task, shown)):
            continue
        cites = reading.numbered and task.style == "full"
        right = task.targets(read.index(task.gold) + 1 if cites and task.gold else None)
        before = tokenizer.tokens(prompt.text)

        def said(answer: str, before: list[int] = before, text: str = prompt.text) -> list[int]:
            """The answer's tokens; none where its first would swallow the prompt's last."""
            whole = tokenizer.tokens(text + answer)
            return [*whole[len(before) :], end] if whole[: len(before)] == before else []

        answer = said(right[0])
        if 0 < len(answer) <= longest:
            beside: Rivals = ()
            if extract is not None and reading.extractive:
                others = other_answers(extract, as_hits(task.passages), prompt, right, numbered=cites)
                beside = rivals(answer, [said(each) for each in others])
            sharing[() if reading.evidence_tokens else read].append(([*before, *answer], len(before), beside))
    for answered in sharing.values():
        shared = _common([tokens[: start - 1] for tokens, start, _ in answered])
        branches = tuple(
            Branch(tuple(tokens[shared:]), start - shared, rivals=beside) for tokens, start, beside in answered
        )
        yield Sheet(tuple(answered[0][0][:shared]), branches)


def soft_sheets(requests: Sequence[Request], top: TopLogitsFile, tokenizer: Tokenizer) -> list[Sheet]:
    """What a teacher said to requests, token by token, with what else it found likely, where `top` has that.

    Raises `ConfigError` where the teacher's vocabulary is not as large as the student's tokens need.
    """
    made = []
    for request in requests:
        if (found := top.get(request.key)) is not None:
            prompt, said = tokenizer.tokens(tokenizer.render(request.messages)), found.chosen.tolist()
            if max(prompt) >= top.vocabulary:
                raise ConfigError(
                    f"token {max(prompt)} is not among the {top.vocabulary} of {top.path.name}",
                    hint="distil logits from a teacher of the same vocabulary",
                )
            made.append(Sheet(tuple(prompt[:-1]), (Branch((prompt[-1], *said), 1, found),)))
    return made


def task_prompt(task: Task, engine: Renderer, reading: Reading) -> Prompt:
    """The prompt for a task, as it is put to a model that is judged; passages are numbered in the task's order."""
    return _prompt(task, engine, reading, _shown(task, engine, reading))


def _prompt(task: Task, engine: Renderer, reading: Reading, shown: Mapping[Hit, str]) -> Prompt:
    return build_prompt(
        task.question,
        list(shown),
        render=engine.render,
        count=engine.count,
        budget=reading.prompt_tokens,
        limit=reading.prompt_tokens,
        style=task.style,
        numbered=reading.numbered,
        shown=shown.__getitem__,
    )


def _shown(task: Task, engine: Renderer, reading: Reading, likely: Sequence[Span] = ()) -> dict[Hit, str]:
    """What is given of each passage that anything is given of."""
    hits, wanted = as_hits(task.passages), reading.evidence_tokens
    if not wanted:
        return {hit: hit.passage.text for hit in hits}
    excerpts = choose(task.question, hits, wanted, count=engine.count, likely=likely)
    return {excerpt.hit: excerpt.text for excerpt in excerpts}


def _is_told(task: Task, shown: Mapping[Hit, str]) -> bool:
    """Whether an answer stands in what is given of its passage; sentences that were left out may have had it."""
    given = next(text for hit, text in shown.items() if hit.passage.id == task.gold)
    whole = given == task.passages[task.gold - 1]
    return whole or any(locate(answer, given) is not None for answer in task.answers)


def _likely(task: Task) -> list[Span]:
    """Where the first answer stands in its passage, as a reader that is right would find it."""
    text = task.passages[task.gold - 1] if task.gold else ""
    places = (place for answer in task.answers if (place := locate(answer, text)) is not None)
    return [Span(task.gold - 1, *place, text[slice(*place)], _FOUND) for place in places][:1]


def as_hits(passages: Sequence[str]) -> list[Hit]:
    """Passages as retrieval would give them."""
    return [
        Hit(Passage(number, f"d{number}", "", "", text, 0, len(text)), 1.0 / number)
        for number, text in enumerate(passages, 1)
    ]


def _common(rows: Sequence[Sequence[int]]) -> int:
    """Length of what all rows begin with.

    >>> _common([[1, 2, 3], [1, 2, 4, 5]])
    2
    """
    return next((at for at, each in enumerate(zip(*rows, strict=False)) if len(set(each)) > 1), min(map(len, rows)))
