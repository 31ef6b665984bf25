"""A given set of questions, answered by a teacher from passages that were found for each, with the evidence.

Knows nothing of how passages are found, or of how a teacher computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event as Flag

from ..collection import Update
from ..teachers.teacher import Reply, Teacher
from .check import LEAST_AGREEMENT, WAVE, Candidate, Checked, asked_twice
from .drops import Drops
from .grounding import groundedness
from .locate import locate
from .passages import SourcePassage
from .questions import evidence_request, is_unanswered, parse_evidence


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """A question and the passages that may answer it, the likeliest first; at least one."""

    question: str
    passages: tuple[SourcePassage, ...]


def label_questions(
    questions: Iterable[Unlabelled],
    teacher: Teacher,
    *,
    least_agreement: float = LEAST_AGREEMENT,
    source: str = "labelled",
    wave: int = WAVE,
    drops: Drops | None = None,
    progress: Update = lambda done, total, detail: None,
    cancel: Flag | None = None,
) -> Iterator[Checked]:
    """An example of each question whose answer stands in one of its passages and is given again from that alone.

    A question that the teacher finds unanswered, asked with all passages and again with the likeliest alone,
    becomes an unanswerable example with that one. The order is that of the questions. `drops` gets the account.
    `cancel` ends the run; what was answered by then is given. Raises what the teacher raises.
    """
    account = Drops() if drops is None else drops
    yield from asked_twice(
        questions,
        teacher,
        lambda asked: evidence_request(asked.question, asked.passages),
        lambda asked, reply: _candidate(asked, reply, account),
        least_agreement=least_agreement,
        source=source,
        wave=wave,
        drops=account,
        progress=progress,
        cancel=cancel,
    )


def _candidate(asked: Unlabelled, reply: Reply, drops: Drops) -> Iterator[Candidate]:
    number, said = parse_evidence(reply)
    if is_unanswered(said):
        yield Candidate(asked.question, asked.passages[0], ())
        return
    for passage in _likeliest(asked, number):
        if (place := locate(said, passage.text)) is not None:
            yield Candidate(asked.question, passage, (passage.text[slice(*place)],))
            return
    drops.drop("answer not in the passages", f"{asked.question} {reply.text}")


def _likeliest(asked: Unlabelled, number: int | None) -> Sequence[SourcePassage]:
    """The passages, the cited one first, then those that hold more of the question's words."""
    cited = asked.passages[number - 1] if number is not None and 0 < number <= len(asked.passages) else None
    others = sorted(asked.passages, key=lambda passage: -groundedness(asked.question, passage.text))
    return others if cited is None else [cited, *others]
