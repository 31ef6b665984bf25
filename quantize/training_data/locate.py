"""Where an answer stands in its passage, though it may be written in other letters and with other blanks.

Rules on characters; meaning is not looked at. Knows nothing of questions or of who answered.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

_ALIKE = str.maketrans("‘’ʼ`´“”„«»‐‑‒–—−", "'''''\"\"\"\"\"------")
_AROUND = " \t\n.,;:!?\"'“”‘’`*_()[]"
_WITHOUT_BLANKS = re.compile(
    "[\u0e00-\u0eff\u2e80-\ua4cf]"
)  # Thai, Lao, Chinese, Japanese: words stand side by side
_PAIRS = {"(": ")", "[": "]"}


def locate(answer: str, passage: str) -> tuple[int, int] | None:
    """Start and end of the first place where `passage` has `answer` as whole words, or None.

    Literally where it does; else whatever the case, accents, blanks and the form of quotes and dashes. The place
    has the passage's own characters, and it neither begins nor ends within a word or number.

    >>> passage = "Lambert( died after 938) was the half- brother of Guy."
    >>> [passage[slice(*locate(answer, passage))] for answer in ("Half-Brother", "Lambert (died after 938)", "938")]
    ['half- brother', 'Lambert( died after 938)', '938']
    >>> locate("93", passage)
    """
    answer = trimmed(answer)
    return _find(passage, answer) or _find_folded(passage, answer) if answer else None


def trimmed(answer: str) -> str:
    """An answer without what people and models put around it: blanks, quotes, a full stop, marks of emphasis.

    >>> trimmed(' "the Rhine". '), trimmed("Acme (UK)"), trimmed("**1889**")
    ('the Rhine', 'Acme (UK)', '1889')
    """
    kept = answer.strip(_AROUND)
    if kept:  # a bracket that closes one inside belongs to the answer
        rest = answer[answer.find(kept) + len(kept) :]
        for opening, closing in _PAIRS.items():
            if kept.count(opening) > kept.count(closing) and rest.startswith(closing):
                kept, rest = kept + closing, rest[1:]
    return kept


def _find(passage: str, answer: str) -> tuple[int, int] | None:
    start = passage.find(answer)
    while start >= 0:
        if _is_whole(passage, start, start + len(answer)):
            return start, start + len(answer)
        start = passage.find(answer, start + 1)
    return None


def _find_folded(passage: str, answer: str) -> tuple[int, int] | None:
    wanted, _ = _folded(answer)
    text, places = _folded(passage)
    at = text.find(wanted) if wanted else -1
    while at >= 0:
        start, end = places[at], places[at + len(wanted) - 1] + 1
        if _is_whole(passage, start, end):
            return start, end
        at = text.find(wanted, at + 1)
    return None


@lru_cache(maxsize=256)
def _folded(text: str) -> tuple[str, tuple[int, ...]]:
    """The text without case, accents and blanks, and for each of its characters the place that it comes from."""
    pairs = [(letter, place) for place, character in enumerate(text) for letter in _letters(character)]
    return "".join(letter for letter, _ in pairs), tuple(place for _, place in pairs)


def _letters(character: str) -> Iterator[str]:
    for letter in unicodedata.normalize("NFKD", character.translate(_ALIKE)).casefold():
        if not letter.isspace() and not unicodedata.combining(letter):
            yield letter


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether no word, and no number with its separators, goes on beyond either end."""
    before, first = text[max(0, start - 2) : start], text[start : start + 1]
    last, after = text[end - 1 : end], text[end : end + 2]
    return not (_goes_on(before[::-1], first) or _goes_on(after, last))


def _goes_on(beyond: str, edge: str) -> bool:
    if edge > "\u0dff" and _WITHOUT_BLANKS.match(edge):
        return False
    if beyond[:1].isalnum() or unicodedata.combining(beyond[:1] or " "):
        return edge.isalnum()
    return edge.isdigit() and beyond[:1] in tuple(".,:/") and beyond[1:].isdigit()
