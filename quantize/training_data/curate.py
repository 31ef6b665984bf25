"""Which examples are worth learning from: each is looked at in turn, and dropped for the first reason that applies.

The rules are cheap ones first. What was dropped, why, and what the rest is like goes into a report. The outcome
follows from the examples and their order. Knows nothing of where examples come from or of what is trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from edge_sdk.encoders.embed import Encoder

from ..metrics import token_f1
from .diversity import coverage, facility_location
from .drops import Drops
from .example import Example
from .grounding import groundedness
from .language import language
from .leakage import Leakage
from .near_duplicates import NearDuplicates, Shingles, jaccard, shingles

Scores = Callable[[Example], float]

_SAME = 0.8  # token F1 from which two answers are one


@dataclass(frozen=True, slots=True)
class Rules:
    """What an example must be like. Bounds are inclusive."""

    question_words: tuple[int, int] = (3, 40)
    passage_characters: tuple[int, int] = (60, 6000)
    answer_characters: int = 300
    languages: tuple[str, ...] = ("en",)  # codes of `language`; empty: whatever it is
    groundedness: float = 1.0  # share of an answer's words that the passage must hold
    passage_likeness: float = 0.7  # Jaccard similarity from which two passages are one; see `near_duplicates`
    question_likeness: float = 0.7  # the same of two questions about one passage
    quality: float | None = None  # the least score, where scores are given
    budget: int | None = None  # how many to choose in the end


@dataclass(frozen=True, slots=True)
class Curated:
    """The examples that are left, the account of the others, and figures about the choice under a budget."""

    examples: tuple[Example, ...]
    drops: Drops
    coverage: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**self.drops.to_dict(), "examples": describe(self.examples), "coverage": dict(self.coverage)}

    def markdown(self) -> str:
        """The report for people."""
        facts = [f"| {name} | {_shown(value)} |" for name, value in describe(self.examples).items()]
        facts += [f"| coverage, {name} | {value:.3f} |" for name, value in self.coverage.items()]
        return "\n".join([self.drops.markdown(), "| what is kept | |", "| --- | --- |", *facts]) + "\n"


def curate(
    examples: Iterable[Example],
    rules: Rules = Rules(),
    *,
    leakage: Leakage | None = None,
    titles: Mapping[str, str] = {},
    scores: Scores | None = None,
    encoder: Encoder | None = None,
) -> Curated:
    """Keep the examples that follow the rules, give nothing away of the evaluation and repeat no earlier one.

    `titles` are those of passages, for `leakage`; `scores` is for example `quality.similarity_scores`. With a
    budget, which needs an `encoder`, those stay whose questions together stand best for all, answered and
    unanswerable ones in the proportion that they came in. Raises `ValueError` for a budget without an encoder.
    """
    if rules.budget is not None and encoder is None:
        raise ValueError("a choice under a budget needs an encoder")
    drops, kept = Drops(), list[Example]()
    checks = _checks(rules, leakage, titles, scores)
    for example in examples:
        reason = next(filter(None, (check(example) for check in checks)), "")
        if reason:
            drops.drop(reason, f"{example.question} {' / '.join(example.answers)}".strip())
        else:
            kept.append(example)
    figures: Mapping[str, float] = {}
    if rules.budget is not None and encoder is not None:
        kept, figures = _within(rules.budget, kept, encoder, drops)
    drops.keep(len(kept))
    return Curated(tuple(kept), drops, figures)


def split(examples: Iterable[Example], held_out: float) -> tuple[list[Example], list[Example]]:
    """The examples to learn from and those held out, about `held_out` of all; a passage is on one side only.

    Which one follows from its text, so it stays there when data are added. Passages that are nearly the same may be
    on both sides: `Leakage` of the second finds that in the first.
    """
    sides: tuple[list[Example], list[Example]] = [], []
    for example in examples:
        sides[example.held_out < held_out].append(example)
    return sides


def describe(examples: Sequence[Example]) -> dict[str, object]:
    """What a set of examples is like."""
    answered = [example for example in examples if example.answers]
    words = Counter(example.question.lower().partition(" ")[0] for example in examples)
    return {
        "examples": len(examples),
        "unanswerable": len(examples) - len(answered),
        "passages": len({example.passage for example in examples}),
        "words of a question, median": median(len(each.question.split()) for each in examples) if examples else 0,
        "words of an answer, median": median(len(each.answers[0].split()) for each in answered) if answered else 0,
        "first words": dict(words.most_common(8)),
        "sources": dict(Counter(example.source for example in examples).most_common(8)),
    }


# --- the rules ------------------------------------------------------------------------------------------


Check = Callable[[Example], str]


def _checks(rules: Rules, leakage: Leakage | None, titles: Mapping[str, str], scores: Scores | None) -> list[Check]:
    """In the order in which they are asked; each says why an example goes, or ""."""
    seen, repeats = set[str](), _Repeats(rules)

    def twice(example: Example) -> str:
        known = example.id in seen
        seen.add(example.id)
        return "twice" if known else ""

    def leaks(example: Example) -> str:
        return leakage.of(example, titles.get(example.passage, "")) if leakage else ""

    def quality(example: Example) -> str:
        low = scores is not None and rules.quality is not None and scores(example) < rules.quality
        return "question does not fit its passage" if low else ""

    checks: list[Check] = [
        twice,
        lambda example: _length(example, rules),
        lambda example: _language(example, rules.languages),
        lambda example: _grounding(example, rules.groundedness),
        leaks,
        repeats.of,
        quality,
    ]
    return checks


def _length(example: Example, rules: Rules) -> str:
    measured = (
        ("question", len(example.question.split()), rules.question_words),
        ("passage", len(example.passage), rules.passage_characters),
        ("answer", max(map(len, example.answers), default=0), (0, rules.answer_characters)),
    )
    for what, length, (least, most) in measured:
        if not least <= length <= most:
            return f"{what} too {'short' if length < least else 'long'}"
    return ""


def _language(example: Example, wanted: Sequence[str]) -> str:
    found = language(f"{example.question} {example.passage}")
    return f"language: {found or 'unknown'}" if wanted and found not in wanted else ""


def _grounding(example: Example, least: float) -> str:
    if not example.answers or least <= 0:
        return ""
    best = max(groundedness(answer, example.passage, example.question) for answer in example.answers)
    return "answer not in the passage" if best < least else ""


class _Repeats:
    """The examples so far by passage; nearly the same passages are one."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._near = NearDuplicates(rules.passage_likeness)
        self._passages: dict[str, int] = {}
        self._asked: dict[int, list[tuple[Shingles, Example]]] = {}

    def of(self, example: Example) -> str:
        """The reason, or "" for what is asked for the first time, which is remembered."""
        earlier = self._asked.setdefault(self._passage(example.passage), [])
        words = shingles(example.question, 2)
        for others, other in earlier:
            likeness = jaccard(words, others)
            if likeness >= self._rules.question_likeness:
                return "question repeats another one"
            if likeness >= self._rules.question_likeness / 2 and _same_answers(example, other):
                return "question and answer repeat others"
        earlier.append((words, example))
        return ""

    def _passage(self, text: str) -> int:
        if text not in self._passages:
            found = self._near.find(text)
            self._passages[text] = self._near.add(text) if found is None else found
        return self._passages[text]


def _same_answers(one: Example, other: Example) -> bool:
    """That two questions have no answer does not make them alike."""
    return max((token_f1(answer, other.answers) for answer in one.answers), default=0.0) >= _SAME


# --- the choice under a budget --------------------------------------------------------------------------


def _within(
    budget: int, examples: list[Example], encoder: Encoder, drops: Drops
) -> tuple[list[Example], dict[str, float]]:
    """The chosen examples, in their order; and how well they stand for all, beside as many chosen at random."""
    if len(examples) <= budget:
        return examples, {}
    vectors = encoder.encode([example.question for example in examples])
    unanswerable = np.array([not example.answers for example in examples])
    chosen: list[int] = []
    for group in (np.flatnonzero(~unanswerable), np.flatnonzero(unanswerable)):  # the same questions, often
        share = budget - len(chosen) if len(chosen) else round(budget * len(group) / len(examples))
        chosen += group[facility_location(vectors[group], share)].tolist()
    random = np.random.default_rng(0).permutation(len(examples))[: len(chosen)].tolist()
    figures = {"chosen": coverage(vectors, chosen), "at random": coverage(vectors, random)}
    stay = set(chosen)
    for at, example in enumerate(examples):
        if at not in stay:
            drops.drop("beyond the budget", example.question)
    return [examples[at] for at in sorted(stay)], figures


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count:,}" for name, count in value.items())
    return f"{value:,}" if isinstance(value, int | float) else str(value)
