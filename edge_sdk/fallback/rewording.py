"""Whether two questions are one question in other words: what must be equal before an answer is used again.

Rules on words; vectors only choose which questions are compared. Strict on purpose: a paraphrase that is not
recognised costs one more call, two questions taken for one cost a wrong answer. Knows nothing of answers, stores or
encoders.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from .english import (
    ASKS,
    AUXILIARIES,
    DEICTIC,
    DIRECTING,
    HAPPEN,
    LIGHT,
    NEGATIONS,
    NUMBERS,
    PAST,
    PRONOUNS,
    meaning,
    rewritten,
)

LONGEST = 1000
"""Characters; what is longer is a pasted text and never the same question as another one."""

_DO = frozenset(("do", "does", "did"))
_ANYONE = frozenset(("i", "you", "we", "one"))
_SIGN = re.compile(
    r"(?P<inner>(?<=\d)[.:,/](?=\d)|(?<!\S)-(?=\d)|!(?=[=\w]))|(?P<alone>(?<=\d\s)[-/](?=\s\d))|[^\w\s]"
)


@dataclass(frozen=True, slots=True)
class _Question:
    """What a question asks for. `words` maps what a word means to the ways in which it is written."""

    asks: frozenset[str]  # question words; "whether" for a question without one
    words: Mapping[str, frozenset[str]]
    negations: Counter[str]  # "not" twice is not "not" once
    directed: frozenset[tuple[str, str]]  # "to paris": a word whose role is in the preposition before it
    exact: frozenset[str]  # names and identifiers, which have no inflection and no synonym
    order: tuple[str, ...]  # what each word means, from the first to the last
    time: str
    asks_object: bool  # "who did X beat", which has the words of "who beat X"
    has_roles: bool  # "did X beat Y", where the order alone says who does what


def difference(one: str, other: str) -> str:
    """What makes two questions different ones; "" where they ask the same.

    They must agree in question words, numbers, names and identifiers, negations, tense, the words after directing
    prepositions ("from", "by", "than"), every other word that carries meaning (up to inflection and a few
    synonyms), and in the order of names, or of all words where that says who does what.

    >>> difference("Who wrote Hamlet?", "By whom was Hamlet written?")
    ''
    >>> difference("Who won the cup in 2019?", "Who won the cup in 2020?")
    "only one has '2019'"
    >>> difference("Can I cook it with salt?", "Can I cook it without salt?")
    "only one has 'without'"
    """
    if max(len(one), len(other)) > LONGEST:
        return f"one is longer than {LONGEST} characters"
    a, b = _read(one), _read(other)
    if not a.words or not b.words:
        return "one has no word that carries meaning"
    if lone := _only_in(a, b) or _only_in(b, a):
        return f"only one has {lone!r}"
    if a.time != b.time:
        return f"one asks of the {a.time}, the other of the {b.time}"
    if a.asks_object != b.asks_object:
        return "one asks who or what does something, the other to whom or what it is done"
    if not _same_order(a, b):
        return "their words are in another order"
    return ""


def needs_more(question: str) -> str:
    """Why a question cannot be answered by what was once answered; "" where it can.

    It may depend on the turn before ("How do I reset it?"), on the day, the place or who asks.

    >>> needs_more("How do I reset it?"), needs_more("When did Kant write his first critique?")
    ("'it' stands for something outside the question", '')
    """
    if len(question) > LONGEST:
        return f"it is longer than {LONGEST} characters"
    said = 0
    for word in map(str.lower, tokens(rewritten(question))):
        if word in DEICTIC:
            return f"{word!r} depends on when, where or by whom it is asked"
        if word in PRONOUNS and said < 2:
            return f"{word!r} stands for something outside the question"
        said += word not in LIGHT and word not in ASKS
    return "" if _read(question).words else "it has no word that carries meaning"


def _only_in(one: _Question, other: _Question) -> str:
    """What the first has and the second has not, as it is written; "" where there is nothing."""
    for missing in (sorted(one.asks - other.asks), sorted(one.negations - other.negations)):
        if missing:
            return missing[0]
    for means, written in one.words.items():
        theirs = other.words.get(means, frozenset())
        if not theirs or (written & one.exact) - theirs:
            return min(written)
    return " ".join(min(one.directed - other.directed, default=()))


def _same_order(one: _Question, other: _Question) -> bool:
    """Whether names and numbers follow each other in the same way, and all words where that says who does what.

    What comes first may be put last ("In 1990, who beat Rome?"), except in a question without a question word. "How
    did Rome beat Gaul?" is not "How did Gaul beat Rome?".
    """
    turns = range(1 if "whether" in one.asks else len(one.order))
    if any(one.order[at:] + one.order[:at] == other.order for at in turns):
        return True
    names = {meaning(word) for word in one.exact | other.exact}
    mine, yours = ([word for word in each.order if word in names] for each in (one, other))
    return mine == yours and not one.has_roles and not other.has_roles


# --- reading ----------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _read(text: str) -> _Question:
    written = tokens(rewritten(text))
    small = [word.lower() for word in written]
    asks = {ASKS[word] for word in small if word in ASKS}
    words: dict[str, set[str]] = {}
    exact, order = set(), []
    for at, (token, word) in enumerate(zip(written, small, strict=True)):
        acronym = len(token) > 1 and token.isupper() and not text.isupper()  # US, IT, WHO
        if _is_light(word, asks):
            if not acronym:
                continue
            word = token
        word = NUMBERS.get(word, word)
        if any(map(str.isdigit, word)) or "_" in token or acronym or (at and token != token.lower()):
            exact.add(word)
        words.setdefault(meaning(word), set()).add(word)
        if word not in NEGATIONS:  # "isn't it" is "is it not"
            order.append(meaning(word))
    return _Question(
        asks=frozenset(asks or {"whether"}),
        words={means: frozenset(ways) for means, ways in words.items()},
        negations=Counter(word for word in small if word in NEGATIONS),
        directed=frozenset(_directed(small, asks)),
        exact=frozenset(exact),
        order=tuple(order),
        time=_time(small),
        asks_object=bool(asks & {"who", "what"}) and not _DO.isdisjoint(small[1:]),
        has_roles=not asks or any(word in _DO and after not in _ANYONE for word, after in pairwise(small)),
    )


def _directed(words: Sequence[str], asks: set[str]) -> set[tuple[str, str]]:
    pairs = set()
    for at, word in enumerate(words):
        if word in DIRECTING and not (word == "to" and at and words[at - 1] in ASKS):  # "how to", "when to"
            following = next((each for each in words[at + 1 :] if each in ASKS or not _is_light(each, asks)), "who")
            if following not in ASKS:
                pairs.add((DIRECTING[word], meaning(NUMBERS.get(following, following))))
    return pairs


def tokens(text: str) -> list[str]:
    """Words, numbers and signs that carry meaning; punctuation separates them."""
    return _SIGN.sub(_kept_sign, text).split()


def _kept_sign(match: re.Match[str]) -> str:
    """The dot of 3.11, the signs of C++ and C#, a combining mark: part of a word. Other symbols are words."""
    sign = match[0]
    kind = unicodedata.category(sign)
    if match["inner"] or sign in "+#" or kind.startswith("M"):
        return sign
    return f" {sign} " if match["alone"] or kind.startswith("S") or sign in "%&*@" else " "


def _is_light(word: str, asks: set[str]) -> bool:
    if word in LIGHT or word in ASKS:
        return True
    if word in HAPPEN:
        return not asks.isdisjoint(("when", "where"))
    return word in ("can", "could") and "how" in asks


def _time(words: Sequence[str]) -> str:
    for time, auxiliaries in AUXILIARIES.items():
        if not auxiliaries.isdisjoint(words):
            return time
    past = any(word in PAST or (word.endswith("ed") and len(word) > 4) for word in words)
    return "past" if past else "present"
