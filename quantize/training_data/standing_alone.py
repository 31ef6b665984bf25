"""Whether a question is understood without its passage, and how the passage's title makes it so.

Of a passage that begins by saying what its title names, "he" and "the film" stand for that: "When was he born?"
becomes "When was Bach born?". Where they may stand for something else the title is not put in. Knows nothing of
teachers, of replies or of answers.
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
_NAME = re.compile(r"(?<=\s)[^\W\d_a-z]\w+|\d|(?<!\w)[\"“‘']\w")
_FORMS = (("he", "him", "his"), ("she", "her", "hers"), ("it", "its"), ("they", "them", "their"))
_PRONOUN = re.compile(rf"\b(?:{'|'.join(form for forms in _FORMS for form in forms)})\b", re.IGNORECASE)
_OWNERS = frozenset(("his", "its", "their"))
_OBJECT = re.compile(  # what follows "her" where that owns nothing
    r"\W*$|[?.!,;]| (?:in|on|at|for|to|by|from|with|and|as|of|when|after|before|during|about|that|a|an|the|how|"
    r"what|who|where|why|because|while|until|since|into|over|or|but|than)\b",
    re.IGNORECASE,
)
_BEFORE_OWNER = re.compile(
    r"\b(?:is|was|are|were|did|does|do|has|had|of|in|for|with|by|from|to|on|at|about|and) $", re.IGNORECASE
)
_NO_SUBJECT = re.compile(  # "it" that stands for nothing
    r"\bhow long \w+ it\b|\btakes? to\b|\bwhat time\b|\bcalled when\b|\b(?:is|was) it \w+ (?:to|that|for|in)\b",
    re.IGNORECASE,
)
# "X is an English film director": the words up to the first that ends the noun, whose last one is what X is.
_IS_ONE = re.compile(r"\b(?:is|was|are|were) (?:an?|the|one of the) ([\w' -]+)", re.IGNORECASE)
_ENDS_NOUN = re.compile(
    r" (?:of|by|in|on|from|for|at|with|to|as|about|between|during|that|which|who|whose|where|and|or|directed|"
    r"written|produced|starring|based|released|located|situated|set|made|published|formed|founded|built|recorded)\b.*",
    re.IGNORECASE,
)
_AFTER_KIND = re.compile(  # otherwise "the film" may be the film director
    r"[^\w\s-]|$| (?:is|was|are|were|did|does|do|has|had|have|can|could|will|would|in|on|at|of|to|from|for|by|with|"
    r"and|or|as|about|when|after|before|during|first|shot|released|directed|set|based|located|situated|recorded|published|"
    r"written|made|produced|filmed|called|named|known|built|founded|formed|played|play|star|win|receive|take)\b",
    re.IGNORECASE,
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
    >>> standing_alone("Who was his father?", bach), standing_alone("When was it built?", bach)
    ("Who was Bach's father?", None)
    >>> standing_alone("Who made the film?", SourcePassage("Vertigo is a film by Hitchcock.", "Vertigo"))
    'Who made the film Vertigo?'
    """
    if stands_alone(question):
        return question
    found = list(_STANDS_FOR.finditer(question))
    name, kind = _subject(passage)
    if len(found) != 1 or not name or _POINTS_AT_TEXT.search(question):
        return None
    match = found[0]
    before, said, rest = question[: match.start()], match[0].casefold(), question[match.end() :]
    if said.startswith("the "):
        put = f"{match[0]} {name}" if said[4:] == kind and _AFTER_KIND.match(rest) else ""
    elif rest[:1] in ("'", "’") or (said == "it" and _NO_SUBJECT.search(question)):
        put = ""
    else:
        put = _named(said, name, before, rest) if _forms(said) and _forms(said) == _forms_of(passage) else ""
    full = f"{before}{put}{rest}"
    return full if put and stands_alone(full) else None


def _subject(passage: SourcePassage) -> tuple[str, str]:
    """What the passage begins with, if that is its title, and what it is said to be; empty where it is not said."""
    title, text = _BRACKETS.sub("", passage.title).strip(), passage.text
    heading, _, below = text.partition("\n")
    if heading.strip("# ") in (title, passage.title):
        text = below.lstrip()
    named, opening = _words(title), _words(text[:_OPENING])
    article = opening[:1] == ["the"] and named[:1] != ["the"]
    is_one = _IS_ONE.search(text[:_OPENING])
    if not named or opening[article : article + 1] != named[:1] or not set(named) <= set(opening) or not is_one:
        return "", ""
    kinds = _words(_ENDS_NOUN.sub("", is_one[1]))
    return f"the {title}" if article else title, kinds[-1] if kinds else ""


def _named(said: str, name: str, before: str, rest: str) -> str:
    """The name for a pronoun, as its owner where it is one; nothing where that cannot be told."""
    if said in _OWNERS or (said == "her" and not _OBJECT.match(rest)):
        if name.endswith(("'s", "’s")) or (said == "her" and not _BEFORE_OWNER.search(before)):
            return ""
        return f"{name}'" if name.endswith("s") else f"{name}'s"
    return "" if said == "hers" else name


def _forms_of(passage: SourcePassage) -> tuple[str, ...]:
    """The pronoun that the passage uses first, in all its forms."""
    first = _PRONOUN.search(passage.text)
    return _forms(first[0].casefold()) if first is not None else ()


def _forms(pronoun: str) -> tuple[str, ...]:
    return next((forms for forms in _FORMS if pronoun in forms), ())


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
