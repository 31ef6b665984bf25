"""Questions about passages, asked by a teacher, with answers that stand there and that it gives again when asked.

Whatever a teacher keeps is not paid for twice, so a run that was stopped goes on where it was when it is started
again. Knows nothing of how a teacher computes or of where examples go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from threading import Event as Flag

from ..collection import Update
from ..teachers.teacher import Reply, Teacher
from .check import LEAST_AGREEMENT, WAVE, Candidate, Checked, asked_twice
from .drops import Drops
from .locate import locate
from .passages import SourcePassage
from .questions import MOST_PAIRS, Pair, parse_pairs, question_request
from .standing_alone import standing_alone

LONGEST_ANSWER = 80
"""Characters; a longer one is no short answer."""
_SHORTEST_QUESTION = 3  # words


def generate_examples(
    passages: Iterable[SourcePassage],
    teacher: Teacher,
    *,
    most: int = MOST_PAIRS,
    least_agreement: float = LEAST_AGREEMENT,
    source: str = "generated",
    wave: int = WAVE,
    drops: Drops | None = None,
    progress: Update = lambda done, total, detail: None,
    cancel: Flag | None = None,
) -> Iterator[Checked]:
    """Examples of up to `most` questions a passage, in the order of the passages.

    Every question is understood without its passage, which may lend it its title, and does not hold its answer; the
    answer stands in the passage as whole words. `wave` passages are asked about together and then checked together.
    `drops` gets the account, `progress` the passages done. `cancel` ends the run; what was answered by then is
    given. Raises what the teacher raises.
    """
    account = Drops() if drops is None else drops
    yield from asked_twice(
        passages,
        teacher,
        lambda passage: question_request(passage, most),
        lambda passage, reply: _candidates(passage, reply, account),
        least_agreement=least_agreement,
        source=source,
        wave=wave,
        drops=account,
        progress=progress,
        cancel=cancel,
    )


def _candidates(passage: SourcePassage, reply: Reply, drops: Drops) -> Iterator[Candidate]:
    pairs = parse_pairs(reply)
    if not pairs:
        drops.drop("no question in the reply", reply.text)
    asked = set[str]()
    for pair in pairs:
        place = locate(pair.answer, passage.text)
        answer = passage.text[slice(*place)] if place else ""
        question = standing_alone(pair.question, passage) or ""
        if reason := _fault(pair, question, answer):
            drops.drop(reason, f"{question or pair.question} {pair.answer}")
        elif question.casefold() not in asked:
            asked.add(question.casefold())
            yield Candidate(question, passage, (answer,))


def _fault(pair: Pair, question: str, answer: str) -> str:
    if not answer:
        return "answer not in the passage"
    if len(answer) > LONGEST_ANSWER:
        return "answer too long"
    if len(pair.question.split()) < _SHORTEST_QUESTION:
        return "question too short"
    if not question:
        return "question needs its passage"
    return "" if locate(answer, question) is None else "question holds the answer"
