"""An answer is believed when it is given twice: a teacher is asked a question again, with nothing but the passage.

The teacher may be another one than the answer's own. Knows nothing of where questions and first answers come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from threading import Event as Flag
from typing import TypeVar

from ..collection import Update
from ..metrics import token_f1
from ..teachers.teacher import Reply, Request, Teacher
from .drops import Drops
from .example import Example
from .locate import locate
from .passages import SourcePassage
from .questions import answer_request, is_unanswered

LEAST_AGREEMENT = 0.6
"""Token F1 from which two answers are the same."""
SAMPLED = 0.7
"""The temperature of further samples."""
WAVE = 64
"""Items that a teacher is asked about together, to be checked together."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A question about a passage and its accepted answers in the passage's own words; none where it has none."""

    question: str
    passage: SourcePassage
    answers: tuple[str, ...]

    @classmethod
    def of(cls, example: Example, title: str = "") -> Candidate:
        """An example that exists, to be checked by another teacher."""
        return cls(example.question, SourcePassage(example.passage, title), example.answers)


@dataclass(frozen=True, slots=True)
class Checked:
    """An example, how far its two answers agreed (token F1), and the title of what it was asked about."""

    example: Example
    agreement: float
    title: str = ""


def check(
    candidates: Sequence[Candidate],
    teacher: Teacher,
    *,
    samples: int = 1,
    least_agreement: float = LEAST_AGREEMENT,
    source: str = "",
    drops: Drops,
    cancel: Flag | None = None,
) -> Iterator[Checked]:
    """The candidates whose answer the teacher gives, too, in their order; the others go to `drops`.

    It is asked `samples` times, greedily the first time, and the mean agreement counts. Where it words the answer
    otherwise and that also stands in the passage, both are accepted answers. A candidate without an answer stays
    when the teacher finds none. What is cancelled is neither given nor dropped.
    """
    requests = [
        answer_request(each.question, each.passage, temperature=SAMPLED * bool(sample), seed=sample)
        for each in candidates
        for sample in range(samples)
    ]
    replies = ask(teacher, requests, cancel)
    for at, candidate in enumerate(candidates):
        said = [reply.text for reply in replies[at * samples : (at + 1) * samples] if reply is not None]
        if len(said) < samples:
            continue
        agreed = sum(_agreement(candidate, text) for text in said) / samples
        if agreed >= least_agreement:
            drops.keep()
            example = Example(candidate.question, candidate.passage.text, _answers(candidate, said[0]), source)
            yield Checked(example, agreed, candidate.passage.title)
        else:
            how = "not answered" if is_unanswered(said[0]) else "answered otherwise"
            expected = " / ".join(candidate.answers) or "no answer"
            drops.drop(f"{how} when asked again", f"{candidate.question} {expected} / {said[0]}")


def asked_twice(
    items: Iterable[_Item],
    teacher: Teacher,
    first: Callable[[_Item], Request],
    candidates: Callable[[_Item, Reply], Iterable[Candidate]],
    *,
    least_agreement: float,
    source: str,
    wave: int,
    drops: Drops,
    progress: Update,
    cancel: Flag | None,
) -> Iterator[Checked]:
    """Ask about each item, make candidates of the replies, check these; in the order of the items.

    `progress` gets the items done. `cancel` ends the run; what was answered by then is given.
    """
    done, rest = 0, iter(items)
    while (cancel is None or not cancel.is_set()) and (group := list(islice(rest, wave))):
        progress(done, None, f"{drops.kept:,} examples of {drops.seen:,} questions")
        replies = ask(teacher, [first(item) for item in group], cancel)
        answered = [(item, reply) for item, reply in zip(group, replies, strict=True) if reply is not None]
        found = [candidate for item, reply in answered for candidate in candidates(item, reply)]
        yield from check(found, teacher, least_agreement=least_agreement, source=source, drops=drops, cancel=cancel)
        done += len(group)
    progress(done, done, f"{drops.kept:,} examples of {drops.seen:,} questions")


def ask(teacher: Teacher, requests: Sequence[Request], cancel: Flag | None = None) -> list[Reply | None]:
    """The replies in the order of the requests; None for what was cancelled before it was answered."""
    replies: list[Reply | None] = [None] * len(requests)
    for position, reply in teacher.replies(requests, cancel):
        replies[position] = reply
    return replies


def agreement(answers: Sequence[str]) -> float:
    """How far answers of several samples or teachers to one question are the same: the mean token F1 of all pairs.

    >>> agreement(["in Basel", "Basel", "Bern"])
    0.2222222222222222
    >>> agreement(["alone"])
    1.0
    """
    scores = [token_f1(one, [other]) for one, other in combinations(answers, 2)]
    return sum(scores) / len(scores) if scores else 1.0


def _agreement(candidate: Candidate, reply: str) -> float:
    if not candidate.answers or is_unanswered(reply):
        return float(not candidate.answers and is_unanswered(reply))
    return token_f1(reply, candidate.answers)


def _answers(candidate: Candidate, reply: str) -> tuple[str, ...]:
    """The accepted answers, and the teacher's where it stands in the passage in other words."""
    place = locate(reply, candidate.passage.text) if candidate.answers else None
    other = (candidate.passage.text[slice(*place)],) if place else ()
    return tuple(dict.fromkeys((*candidate.answers, *other)))
