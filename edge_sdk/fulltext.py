"""From what a user typed to an FTS5 MATCH expression that is always valid.

Every term is quoted, so quotes, operators and punctuation are text and never syntax. Splits words where FTS5's
`unicode61` tokenizer splits them. Knows nothing of the store, and only of English in its list of stop words.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import groupby, islice

MAX_TERMS = 64
MAX_BYTES = 4096
MAX_REPEATS = 4
"""How often one term counts. FTS5 walks through all passages that have it each time: "the" typed sixty-four times
took 0.7 seconds on ten thousand passages."""
MAX_STOP_WORDS = 8
"""Of a question with nothing else, each once."""

STOP_WORDS = frozenset(
    """a about above after again against all am an and any are as at be because been before being below between both
    but by can could did do does doing down during each few for from further had has have having he her here hers
    herself him himself his how i if in into is it its itself just me more most my myself no nor not now of off on
    once only or other our ours ourselves out over own same shall she should so some such than that the their theirs
    them themselves then there these they this those through to too under until up very was we were what when where
    which while who whom whose why will with would you your yours yourself yourselves""".split()
)
"""English words that say nothing of what a text is about."""
# What stands left and right of the apostrophe of a contraction; not dropped elsewhere ("who won").
_CONTRACTED = frozenset(
    """s t d ll m re ve ain aren couldn didn doesn don hadn hasn haven isn mightn mustn needn shan shouldn wasn
    weren won wouldn""".split()
)
_ABBREVIATED = frozenset(("e.g", "i.e"))
_APOSTROPHES = frozenset("'’ʼ＇")
_IDENTIFIER = re.compile(r"\w+(?:[.:@]+\w+)*")
_MOST_SEEN = 4 * MAX_TERMS  # terms looked at: what repeats itself further is not read to its end
_LONGEST_IDENTIFIER = 8  # parts
_LONGEST_TERM = 256  # bytes; longer ones are pasted data, not words


def match_expression(question: str) -> str:
    """The terms of `question`, each quoted, joined by OR; "" where it holds no term, which matches nothing.

    English stop words are dropped unless nothing else is left: then the first `MAX_STOP_WORDS` are searched for. A
    repeated term counts as often as it stands, up to `MAX_REPEATS` times. An identifier that FTS5 splits
    (`node.js`, `loop.run_in_executor`) becomes its parts and a phrase for each of its endings, so that the passage
    about that very name ranks first however it is qualified there. The first `MAX_TERMS` tokens and `MAX_BYTES`
    bytes count. No string raises.

    >>> match_expression("What's the c++ policy?")
    '"c" OR "policy"'
    >>> match_expression("is node.js ok")
    '"node js" OR "node" OR "js" OR "ok"'
    >>> match_expression("who is who"), match_expression(' "?* ')
    ('"who" OR "is"', '')
    """
    return _join(_terms(question, STOP_WORDS), MAX_TERMS, MAX_REPEATS) or _join(
        _terms(question, frozenset()), MAX_STOP_WORDS, 1
    )


def _terms(question: str, stop_words: frozenset[str]) -> Iterator[list[str]]:
    """What to search for, word by word: the phrases of an identifier, then the parts of the word one by one."""
    for word in question.split():
        parts = ["".join(run) for inside, run in groupby(word, _in_term) if inside]
        if stop_words and not _APOSTROPHES.isdisjoint(word):
            parts = [part for part in parts if part.casefold() not in _CONTRACTED]
        if word.strip(".,;:()").casefold() in _ABBREVIATED:
            continue
        parts = [part for part in parts if part.casefold() not in stop_words]
        if parts:
            yield from _phrases(word)
        yield from ([part] for part in parts)


def _phrases(word: str) -> Iterator[list[str]]:
    """`a.b.c_d` as [a, b, c, d], [b, c, d] and [c, d].

    >>> list(_phrases("os.path.is_file()"))
    [['os', 'path', 'is', 'file'], ['path', 'is', 'file'], ['is', 'file']]
    """
    for identifier in _IDENTIFIER.findall(word):
        names = [re.findall(r"[^\W_]+", name) for name in re.split(r"[.:@]+", identifier)]
        if sum(map(len, names)) > _LONGEST_IDENTIFIER:
            continue
        for first in range(len(names)):
            phrase = [part for name in names[first:] for part in name]
            if len(phrase) > 1:
                yield phrase


def _in_term(character: str) -> bool:
    """Whether `unicode61` may keep it: letters, digits, private use; and marks, which are part of their letter."""
    return character.isalnum() or unicodedata.category(character) in ("Mn", "Mc", "Co")


def _join(terms: Iterator[list[str]], most: int, repeats: int) -> str:
    """At most so many tokens, each term at most so often."""
    quoted: list[str] = []
    seen = Counter[str]()
    tokens = size = 0
    for parts in islice(terms, _MOST_SEEN):
        term = " ".join(parts)
        length = len(term.encode())
        seen[term.casefold()] += 1
        if length > _LONGEST_TERM or seen[term.casefold()] > repeats:
            continue
        tokens, size = tokens + len(parts), size + length + len('"" OR ')
        if tokens > most or size > MAX_BYTES:
            break
        quoted.append(f'"{term}"')
    return " OR ".join(quoted)
