"""From an answer's `[n]` marks to evidence: document, character offsets and the quoted sentence.

A number that points at no passage is invented: it is taken out of the text and counted. Where the passage says
little of it, while another says it, that one is the evidence. Knows nothing of models or stores; all matching is on
words, so it is cheap and can be explained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .prompt import NOT_FOUND
from .records import Citation, Hit, Passage

_MARK = re.compile(r"\s?\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]")
_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"\S.*?(?:[.!?](?=\s|$)|(?=\n\s*\n)|$)", re.DOTALL)  # a wrapped line does not end one
_LINE = re.compile(r"\S[^\n]*")
_LONGEST_QUOTE = 300  # characters; a longer "sentence" is a list or code, there a line is the evidence
_REFUSALS = re.compile(
    r"\b(?:documents?|passages?|context|text)\b[^.\n]{0,40}\b(?:do(?:es)?\s+not|don't|doesn't)\s+"
    r"(?:say|mention|contain|hold|provide|include|specify|state)"
    r"|\bnot\s+(?:in|mentioned\s+in|found\s+in|provided\s+in|specified\s+in)\s+the\s+(?:given\s+|provided\s+)?"
    r"(?:documents?|passages?|text|context)\b"
    r"|\bthere\s+is\s+no\s+(?:information|mention)\b",
    re.IGNORECASE,
)
_MATCH_SHARE = 0.4  # of an answer's content words that a passage must hold to count as its evidence
_LEAST_WORDS = 3  # content words before a mark that say what it stands for
_CORRECT_SHARE = 0.6  # of these words that a sentence must hold, and twice as many as the cited passage's best


@dataclass(frozen=True, slots=True)
class CitedText:
    """An answer with its citations resolved. `dropped` numbers pointed at no passage."""

    text: str
    citations: tuple[Citation, ...]
    dropped: int


def resolve_citations(answer: str, passages: Sequence[Hit]) -> CitedText:
    """Resolve each `[n]` of `answer` to the sentence of passage n that best supports the words before the mark.

    Where the model cited nothing, the passage that holds most of the answer's words is cited with `by="match"`,
    provided it holds at least two fifths of them; otherwise there is no citation. So is a passage that was not
    cited, in place of one that is cited once, where a sentence of it holds three fifths of the words before that
    mark, and at least twice as many as any of the other; the mark keeps its number.
    """
    text, dropped = _without_unknown(answer, len(passages))
    marks = list(_MARK.finditer(text))
    cited = [int(mark[1]) for mark in marks]
    citations: list[Citation] = []
    position = 0
    for mark, number in zip(marks, cited, strict=True):
        claim = _claim(text, position, mark)
        better = _better(number, claim, passages) if cited.count(number) == 1 else number
        right = number if better in cited else better
        citations.append(
            _citation(number, passages[right - 1].passage, claim, "model" if right == number else "match")
        )
        position = mark.end()
    text = text.strip()
    if not citations and text and not is_refusal(text):
        citations = _matched(text, passages)
    return CitedText(text, tuple(dict.fromkeys(citations)), dropped)


def _without_unknown(answer: str, known: int) -> tuple[str, int]:
    """The answer with one mark a number and only the numbers up to `known`, and how many others there were."""
    dropped = 0

    def keep(mark: re.Match[str]) -> str:
        nonlocal dropped
        numbers = [int(number) for number in mark[1].split(",")]
        good = [number for number in numbers if 1 <= number <= known]
        dropped += len(numbers) - len(good)
        lead = " " if good and mark[0][0].isspace() else ""
        return lead + "".join(f"[{number}]" for number in good)

    before = -1
    while dropped != before:  # what stands around a dropped mark may be a mark itself
        before = dropped
        answer = _MARK.sub(keep, answer)
    return answer, dropped


def cite_span(number: int, passage: Passage, start: int, end: int) -> Citation:
    """The sentence around `passage.text[start:end]`, as evidence for just these words."""
    around = [
        part
        for sentence in _SENTENCE.finditer(passage.text)
        for part in _parts(passage.text, *sentence.span())
        if part[0] <= start and end <= part[1]
    ]
    first, last = around[0] if around else (start, end)
    quote = passage.text[first:last]
    return Citation(
        number, passage.document, passage.start + first, passage.start + last, quote, passage.heading, "match"
    )


def is_refusal(answer: str) -> bool:
    """Whether the answer says that the documents do not hold one.

    >>> is_refusal("The documents do not say."), is_refusal("It does not block [1].")
    (True, False)
    """
    return answer.strip() == NOT_FOUND or bool(_REFUSALS.search(answer[:400]))


def _claim(answer: str, position: int, mark: re.Match[str]) -> str:
    """What a mark stands for: the words since the one before it; where these say too little, all before, or all."""
    for claim in (answer[position : mark.start()], answer[: mark.start()]):
        if len(_words(claim)) >= _LEAST_WORDS:
            return claim
    return answer


def _better(number: int, claim: str, passages: Sequence[Hit]) -> int:
    """The passage that says what is claimed, where the cited one does not; else that one."""
    wanted = _words(_MARK.sub(" ", claim))

    def held(hit: Hit) -> int:
        text = hit.passage.text
        return len(wanted & _words(text[slice(*_best_sentence(text, wanted))]))

    least = max(_LEAST_WORDS, _CORRECT_SHARE * len(wanted), 2 * held(passages[number - 1]))
    if least > len(wanted):  # as a rule: nobody else can say it so much better
        return number
    shares = [held(hit) for hit in passages]
    best = max(shares)
    return shares.index(best) + 1 if best >= least else number


def _citation(number: int, passage: Passage, claim: str, by: Literal["model", "match"] = "model") -> Citation:
    start, end = _best_sentence(passage.text, _words(_MARK.sub(" ", claim)))
    quote = passage.text[start:end]
    return Citation(
        number, passage.document, passage.start + start, passage.start + end, quote, passage.heading, by
    )


def _matched(answer: str, passages: Sequence[Hit]) -> list[Citation]:
    wanted = _words(answer)
    shares = [len(wanted & _words(hit.passage.text)) / max(1, len(wanted)) for hit in passages]
    best = max(shares, default=0.0)
    if best < _MATCH_SHARE:
        return []
    number = shares.index(best) + 1
    return [_citation(number, passages[number - 1].passage, answer, "match")]


def _best_sentence(text: str, wanted: frozenset[str]) -> tuple[int, int]:
    """Start and end of the sentence that holds most of `wanted`; the shortest, then the earliest of several."""
    spans = [span for sentence in _SENTENCE.finditer(text) for span in _parts(text, *sentence.span())]
    return max(
        spans, key=lambda span: (len(wanted & _words(text[slice(*span)])), span[0] - span[1]), default=(0, 0)
    )


def _parts(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """The sentence without outer blanks, or its lines where it is too long to be one."""
    if end - start > _LONGEST_QUOTE:
        lines = [line.span() for line in _LINE.finditer(text, start, end)]
        return [(first, min(last, first + _LONGEST_QUOTE)) for first, last in lines]
    return [(start, start + len(text[start:end].rstrip()))]


def _words(text: str) -> frozenset[str]:
    """The words that carry meaning, by their first five letters: "raised" and "raises" are one."""
    return frozenset(word[:5] for word in _WORD.findall(text.lower()) if len(word) > 1 and word not in _COMMON)


_COMMON = frozenset(
    "the of and to in is it that this for on as with be are was were by an or at from which you can not "
    "if its has have had will would there their they he she his her we our your but do does".split()
)
