"""From what a user typed to an FTS5 MATCH expression that is always valid.

Every term is quoted, so quotes, operators and punctuation are text and never syntax. Splits words where FTS5's
`unicode61` tokenizer splits them. Knows nothing of the store, and only of English in its list of stop words.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice

MAX_TERMS = 64
MAX_BYTES = 4096
MAX_REPEATS = 4
"""How often one term counts. FTS5 walks through all passages that have it each time: "the" typed sixty-four times
took 0.7 seconds on ten thousand passages."""
MAX_STOP_WORDS = 8
"""Of a question with nothing else, each once."""

SMALL_STORE = 5_000
"""Passages up to which every term is searched for: that takes a few milliseconds at most."""
RAREST = 16
"""Terms of a question that are searched for even if many passages have them. Done to stores of any size it changed
nDCG@10 by -0.0006 on CISI (whose questions are long; 0.036 is two standard errors), by -0.0004 (0.001) on Cranfield
and not at all on SQuAD. Fewer cost more than they save: 8 by -0.012 on Cranfield."""

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
    """The `match_terms` of a question, joined by OR; "" where it has none, which matches nothing.

    >>> match_expression("What's the c++ policy?")
    '"c" OR "policy"'
    """
    return any_of(match_terms(question))


def any_of(terms: Sequence[str]) -> str:
    """An expression that matches where one of the terms does."""
    return " OR ".join(terms)


def match_terms(question: str) -> list[str]:
    """The terms of `question`, each quoted, in its order; each is an FTS5 expression by itself.

    English stop words are dropped unless nothing else is left: then the first `MAX_STOP_WORDS` are searched for. A
    repeated term counts as often as it stands, up to `MAX_REPEATS` times. An identifier that FTS5 splits
    (`node.js`, `loop.run_in_executor`) becomes its parts and a phrase for each of its endings, so that the passage
    about that very name ranks first however it is qualified there. The first `MAX_TERMS` tokens and `MAX_BYTES`
    bytes count. No string raises.

    >>> match_terms("is node.js ok")
    ['"node js"', '"node"', '"js"', '"ok"']
    >>> match_terms("who is who"), match_terms(' "?* ')
    (['"who"', '"is"'], [])
    """
    return _quoted(_terms(question, STOP_WORDS), MAX_TERMS, MAX_REPEATS) or _quoted(
        _terms(question, frozenset()), MAX_STOP_WORDS, 1
    )


def telling(terms: Sequence[str], passages: int, count: Callable[[str, int], int]) -> list[str]:
    """Those of the terms that are worth their time in a store of so many passages; all of them in a small one.

    FTS5 takes a microsecond or two for each passage that has any of the terms, so the most common ones take nearly
    all of the time. Those that more than half of the passages have add nothing to BM25 and are dropped, unless
    there are no others. Of the rest the `RAREST` rarest stay, and those that at most one passage in twenty has.
    `count(term, limit)` says how many passages have a term, up to `limit`.

    >>> having = {"engine": 70_000, "valve": 800}
    >>> telling(["engine", "valve"], 100_000, lambda term, limit: min(having[term], limit))
    ['valve']
    """
    if passages <= SMALL_STORE:
        return list(terms)
    half = passages // 2
    having = {term: count(term, half + 1) for term in dict.fromkeys(terms)}
    rarest_first = sorted((term for term in having if having[term] <= half), key=having.__getitem__)
    kept = {term for place, term in enumerate(rarest_first) if place < RAREST or having[term] <= passages // 20}
    return [term for term in terms if term in kept] or list(terms)


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


def _quoted(terms: Iterator[list[str]], most: int, repeats: int) -> list[str]:
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
    return quoted
