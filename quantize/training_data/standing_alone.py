"""Whether a question is understood without its passage, and how the passage's title makes it so.

Of a passage that begins with what its title names, "he" and "the film" stand for that: "When was he born?" becomes
"When was Bach born?". Knows nothing of teachers, of replies or of answers.
"""

from __future__ import annotations

import re

from .passages import SourcePassage

_OPENING = 200  # characters in which a passage says what it is about
_POINTS_AT_TEXT = re.compile(
    r"\b(?:according to the|(?:the|this) (?:text|passage|article|paragraph|sentence|quiz)|mentioned|described)\b",
    re.IGNORECASE,
)
_STANDS_FOR = re.compile(
    r"\b(?:he|she|it|they|him|her|them|his|hers|its|their|this|these|those|"
    r"the (?:film|movie|book|novel|song|album|band|group|series|show|episode|game|play|story|company|"
    r"organi[sz]ation|club|team|school|university|building|church|town|city|village|river|region|area|country|"
    r"event|battle|war|person|man|woman|actor|actress|director|writer|singer|player|king|queen|subject|"
    r"character|protagonist))\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<=\s)[^\W\d_a-z]\w+|\d|(?<=\s)[\"“‘']\w")
_SUBJECTS = frozenset(("he", "she", "it", "they", "him", "them"))
_OWNERS = frozenset(("his", "its", "their"))
_OWNED = re.compile(
    r" (?!(?:in|on|at|for|to|by|from|with|and|as|of|when|after|before|during|about|that)\b)[a-z]", re.IGNORECASE
)
_BRACKETS = re.compile(r"\s*\([^()]*\)$")
_WORD = re.compile(r"\w+")


def stands_alone(question: str) -> bool:
    """Whether a question is understood without its passage: it points at no text and at nothing it has not named.

    >>> [stands_alone(text) for text in ("When was he born?", "When was Bach born?", "What does the text say?")]
    [False, True, False]
    >>> stands_alone("Who made the film?"), stands_alone("Who made the film Vertigo?")
    (False, True)
    """
    if _POINTS_AT_TEXT.search(question):
        return False
    return not _STANDS_FOR.search(question) or bool(_NAME.search(question))


def standing_alone(question: str, passage: SourcePassage) -> str | None:
    """The question, with the passage's title in it where it needs that; None where it does not stand alone with it.

    >>> bach = SourcePassage("Bach was a composer. His father played, too.", "Bach (composer)")
    >>> standing_alone("When was he born?", bach), standing_alone("Who was his father?", bach)
    ('When was Bach born?', "Who was Bach's father?")
    >>> standing_alone("Who made the film?", SourcePassage("Vertigo is a film by Hitchcock.", "Vertigo"))
    'Who made the film Vertigo?'
    """
    if stands_alone(question):
        return question
    title = _BRACKETS.sub("", passage.title).strip()
    found = list(_STANDS_FOR.finditer(question))
    if len(found) != 1 or _POINTS_AT_TEXT.search(question) or not _is_about(passage.text, title):
        return None
    match = found[0]
    said, rest = match[0].casefold(), question[match.end() :]
    if said.startswith("the "):  # what is called so, if the passage says that this is what it is
        if said[4:] not in _words(passage.text[:_OPENING]):
            return None
        name = f"{match[0]} {title}"
    elif said in _OWNERS or (said == "her" and _OWNED.match(rest)):
        name = f"{title}'" if title.endswith("s") else f"{title}'s"
    elif said in _SUBJECTS or said == "her":
        name = title
    else:
        return None
    return f"{question[: match.start()]}{name}{rest}"


def _is_about(text: str, title: str) -> bool:
    """Whether a text begins with the title's first word, an article aside, and soon has all of them."""
    named, opening = _words(title), _words(text[:_OPENING])
    return named[:1] == opening[:1] != [] and set(named) <= set(opening)


def _words(text: str) -> list[str]:
    words = _WORD.findall(text.casefold())
    return words[1:] if words[:1] in (["the"], ["a"], ["an"]) else words
