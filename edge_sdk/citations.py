"""From an answer's `[n]` marks to evidence: document, character offsets and the quoted sentence.

A number that points at no passage is invented: it is taken out of the text and counted. Knows nothing of
models or stores; all matching is on words, so it is cheap and can be explained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .prompt import NOT_FOUND
from .records import Citation, Hit, Passage

_MARK = re.compile(r"\s?\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]")
_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"[^\n]+?(?:[.!?](?=\s|$)|(?=\n|$))", re.UNICODE)
_REFUSALS = re.compile(
    r"\b(?:documents?|passages?|context|text)\b[^.\n]{0,40}\b(?:do(?:es)?\s+not|don't|doesn't)\s+"
    r"(?:say|mention|contain|hold|provide|include|specify|state)"
    r"|\bnot\s+(?:in|mentioned\s+in|found\s+in|provided\s+in|specified\s+in)\s+the\s+(?:given\s+|provided\s+)?"
    r"(?:documents?|passages?|text|context)\b"
    r"|\bthere\s+is\s+no\s+(?:information|mention)\b",
    re.IGNORECASE,
)
_MATCH_SHARE = 0.6  # of an answer's content words that a sentence must hold to count as its evidence


@dataclass(frozen=True, slots=True)
class CitedText:
    """An answer with its citations resolved. `dropped` numbers pointed at no passage."""

    text: str
    citations: tuple[Citation, ...]
    dropped: int


def resolve_citations(answer: str, passages: Sequence[Hit]) -> CitedText:
    """Resolve each `[n]` of `answer` to the sentence of passage n that best supports the words before the mark.

    Where the model cited nothing, the sentence that holds most of the answer's words becomes a citation with
    `by="match"`, provided it holds at least 60 % of them; otherwise there is none.
    """
    citations: list[Citation] = []
    dropped = 0
    parts: list[str] = []
    position = 0
    for mark in _MARK.finditer(answer):
        claim = answer[position : mark.start()] or answer[: mark.start()]
        numbers = [int(number) for number in mark[1].split(",")]
        good = [number for number in numbers if 1 <= number <= len(passages)]
        dropped += len(numbers) - len(good)
        parts.append(answer[position : mark.start()])
        if good:
            lead = " " if mark[0][0].isspace() else ""
            parts.append(lead + "".join(f"[{number}]" for number in good))
        citations += [_citation(number, passages[number - 1].passage, claim) for number in good]
        position = mark.end()
    parts.append(answer[position:])
    text = "".join(parts).strip()
    if not citations and text and not is_refusal(text):
        citations = _matched(text, passages)
    return CitedText(text, tuple(dict.fromkeys(citations)), dropped)


def is_refusal(answer: str) -> bool:
    """Whether the answer says that the documents do not hold one.

    >>> is_refusal("The documents do not say."), is_refusal("It does not block [1].")
    (True, False)
    """
    return answer.strip() == NOT_FOUND or bool(_REFUSALS.search(answer[:400]))


def _citation(number: int, passage: Passage, claim: str) -> Citation:
    start, end, _ = _best_sentence(passage.text, _words(claim))
    return Citation(
        number,
        passage.document,
        passage.start + start,
        passage.start + end,
        passage.text[start:end],
        passage.heading,
        "model",
    )


def _matched(answer: str, passages: Sequence[Hit]) -> list[Citation]:
    wanted = _words(answer)
    if not wanted:
        return []
    scored = [
        (share, -number, start, end)
        for number, hit in enumerate(passages, 1)
        for start, end, share in [_best_sentence(hit.passage.text, wanted)]
        if share >= _MATCH_SHARE
    ]
    if not scored:
        return []
    _, negative, start, end = max(scored)
    passage = passages[-negative - 1].passage
    quote = passage.text[start:end]
    return [
        Citation(
            -negative, passage.document, passage.start + start, passage.start + end, quote, passage.heading, "match"
        )
    ]


def _best_sentence(text: str, wanted: frozenset[str]) -> tuple[int, int, float]:
    """The earliest sentence with the largest share of `wanted`: start, end and that share."""
    best = (0, len(text), -1.0)
    for sentence in _SENTENCE.finditer(text):
        start = sentence.start()
        stripped = sentence[0].strip()
        if not stripped:
            continue
        start += len(sentence[0]) - len(sentence[0].lstrip())
        share = len(wanted & _words(stripped)) / len(wanted) if wanted else 0.0
        if share > best[2]:
            best = (start, start + len(stripped), share)
    return (best[0], best[1], max(best[2], 0.0))


def _words(text: str) -> frozenset[str]:
    """Words that carry meaning: two characters or more and not among the commonest."""
    return frozenset(word for word in _WORD.findall(text.lower()) if len(word) > 1 and word not in _COMMON)


_COMMON = frozenset(
    "the of and to in is it that this for on as with be are was were by an or at from which you can not "
    "if its has have had will would there their they he she his her we our your but do does".split()
)
