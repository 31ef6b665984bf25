"""Practice for readers without a teacher: a phrase of a passage is asked for with the words around it.

The question is a sentence without the phrase, some of its words lost or moved, behind a question word that suits
the phrase (noisy cloze questions: Lewis, Denoyer and Riedel 2019, "Unsupervised Question Answering by Cloze
Translation"). It is no good English, but it takes what most questions take: to find the place that says the same,
and there the words that are missing. English only; knows nothing of what learns from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from edge_sdk.evidence import sentences

from .example import Example
from .passages import SourcePassage

Kind = Literal["date", "number", "name", "phrase"]

SOURCE = "cloze"
LONGEST_PASSAGE = 800
"""Characters; a longer one costs a reader several windows a question, and every passage is also a distractor."""
_LOST, _MOVED, _TURNED = 0.08, 0.4, 0.75  # shares: of words; of questions with words moved; with the verb in front
_LONGEST, _MOST_REPEATS = 60, 3  # characters of a phrase; times that a passage may hold it
_LEAST_WORDS = 3  # of more than three letters, that a question keeps

_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("date", re.compile(rf"\b((?:\d{{1,2}} )?(?:{_MONTH})(?: \d{{1,2}},?)? \d{{4}}|(?:1[0-9]|20)\d\ds?)\b")),
    (
        "number",
        re.compile(
            r"(?<![\w.,-])((?:\d[\d,]*(?:\.\d+)?|two|three|four|five|six|seven|eight|nine|ten|twelve)"
            r"(?:%| (?:million|billion|percent|per cent))?)(?![\w-])"
        ),
    ),
    ("name", re.compile(r"\b([A-Z][\w'’.-]*(?:(?: (?:of|the|de|van|von|and|for|in))? [A-Z][\w'’-]*){0,4})")),
    (
        "phrase",
        re.compile(
            r"\b(?:an?|the|their|his|its|of|as|with|for|by|in|and) ((?:[a-z][a-z-]+ ){0,2}[a-z][a-z-]{3,})"
            r"(?=[,.;:)]| (?:of|in|on|at|by|for|and|or|to|with|that|which|who|from|is|was|were|are|as|when)\b)"
        ),
    ),
)
_FUNCTION = frozenset(
    "of in on at by for and or to with that which who from is was were are as when where into during the a an it"
    " its his her he she they their this these those be been has have had not but also most more than both other"
    " such".split()
)
_AUXILIARIES = frozenset("is was are were has had can could would will".split())
_BEFORE_PLACES = frozenset("in at from near to outside".split())
_BEFORE_PEOPLE = frozenset(
    "by with starring director actor actress singer president king queen wife husband son daughter brother sister"
    " father mother".split()
)
_WORDS: dict[str, tuple[str, ...]] = {
    "date": ("when", "when", "in what year", "what year"),
    "number": ("how many", "how many", "how much", "what number of"),
    "place": ("where", "where", "in which city", "what place"),
    "person": ("who", "who", "whom", "which person"),
    "name": ("who", "what", "which", "what is the name of"),
    "phrase": ("what", "what", "which", "what kind of", "what type of", "how", "why"),
}


@dataclass(frozen=True, slots=True)
class _Gap:
    kind: Kind
    sentence: int
    start: int
    end: int


def cloze_examples(passages: Iterable[SourcePassage], *, most: int = 1, seed: int = 0) -> Iterator[Example]:
    """Up to `most` questions of each passage, each from another sentence; fewer where there is little to ask.

    What is asked follows from a passage and the seed, whatever stands beside it. Long passages are left out.

    >>> text = "The Brigham Tea Company was founded in 1923. Its first owner was Clara Voss, a chemist from Leeds."
    >>> [example] = cloze_examples([SourcePassage(text, "Brigham Tea")])
    >>> example.answers[0] in text, example.question.endswith("?"), example.source
    (True, True, 'cloze')
    """
    for passage in passages:
        if len(passage.text) <= LONGEST_PASSAGE:
            random = Random(f"{seed} {passage.text}".encode("utf-8", "replace"))
            for question, answer in _asked(passage, most, random):
                yield Example(question, passage.text, (answer,), SOURCE)


def _asked(passage: SourcePassage, most: int, random: Random) -> Iterator[tuple[str, str]]:
    text = passage.text
    parts = [text[start:end] for start, end in sentences(text)]
    gaps = [gap for number, part in enumerate(parts) for gap in _gaps(part, number)]
    random.shuffle(gaps)
    used: set[int] = set()
    for gap in gaps:
        if len(used) == most:
            return
        answer = parts[gap.sentence][gap.start : gap.end]
        if gap.sentence in used or text.count(answer) > _MOST_REPEATS:
            continue
        question = _question(parts[gap.sentence], gap, passage.title, random)
        if question and answer.casefold() not in question.casefold():
            used.add(gap.sentence)
            yield question, answer


def _gaps(sentence: str, number: int) -> Iterator[_Gap]:
    """Phrases that can be asked for: what one pattern has found, later ones do not cut."""
    taken: list[tuple[int, int]] = []
    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(sentence):
            start, end = match.span(1)
            end -= sentence[start:end].endswith(".")
            phrase = sentence[start:end]
            overlaps = any(start < last and first < end for first, last in taken)
            begins = kind == "name" and start == 0 and " " not in phrase  # every sentence begins like a name
            empty = kind == "phrase" and not _FUNCTION.isdisjoint(phrase.split())
            if not (overlaps or begins or empty) and 2 <= len(phrase) <= _LONGEST:
                taken.append((start, end))
                yield _Gap(kind, number, start, end)


def _question(sentence: str, gap: _Gap, title: str, random: Random) -> str:
    """What is left of the sentence around the gap, as a question; empty where it is too little."""
    before, after = sentence[: gap.start].split(), sentence[gap.end :].split()
    last = before[-1].casefold() if before else ""
    if before and title and gap.sentence:
        first = before[0].casefold()
        if first in ("it", "he", "she", "they"):
            before[0] = title
        elif first in ("his", "her", "its", "their"):
            before[0] = f"{title}'s"
    kind: str = gap.kind
    if kind == "name":
        kind = "place" if last in _BEFORE_PLACES else "person" if last in _BEFORE_PEOPLE else "name"
    if kind == "place":
        before = before[:-1]
    words = before[-random.randint(4, 10) :] + after[: random.randint(2, 8)]
    words = [bare for word in words if random.random() > _LOST and (bare := word.strip('(),;:."“”'))]
    if sum(len(word) > 3 for word in words) < _LEAST_WORDS:
        return ""
    verb = next((at for at, word in enumerate(words) if at and word in _AUXILIARIES), None)
    if verb is not None and random.random() < _TURNED:
        words = [words[verb], *words[:verb], *words[verb + 1 :]]
    elif random.random() < _MOVED:
        places = [at + random.uniform(0.0, 1.8) for at in range(len(words))]
        words = [word for _, word in sorted(zip(places, words, strict=True))]
    question = f"{random.choice(_WORDS[kind])} {' '.join(words)}?"
    return question[0].upper() + question[1:]
