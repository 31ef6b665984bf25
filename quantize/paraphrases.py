"""The same question in other words, and almost the same words with another question: by rules, for measuring.

What a learned answer may be served for is measured on both. Made by templates from real questions, so the first are
simpler than what people write and the second harder than what they ask. Knows nothing of stores or answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from random import Random

_QUESTION = r"(?:who|what|which|where|when|why|how)"
_AUXILIARY = "is|was|are|were|did|do|does|has|had|have|would|will|can"
_WAYS_TO_ASK = (
    (r"^when\b", "In what year"),
    (r"^(?:in )?(?:what|which) year\b", "When"),
    (r"^why\b", "For what reason"),
    (r"^where\b", "In what place"),
    (rf"^which (?!(?:{_AUXILIARY})\b)", "What "),
    (rf"^what (?!year\b)(?=[a-z]+ (?:{_AUXILIARY})\b)", "Which "),
)
_NAME = re.compile(r"(?<=\s)(?!(?:Who|What|Which|Where|When|Why|How)\b)[^\W\d_a-z]\w{2,}")
_WORD = re.compile(r"(?<=\s)(?!between\b|called\b|known\b|named\b|located\b|which\b|where\b|being\b)[a-z]{5,}\b")
_SYNONYMS = (
    ("begin", "start"), ("began", "started"), ("big", "large"), ("biggest", "largest"), ("movie", "film"),
    ("build", "construct"), ("built", "constructed"), ("buy", "purchase"), ("country", "nation"), ("kind", "type"),
    ("created", "made"), ("happen", "occur"), ("happened", "occurred"), ("needed", "required"), ("help", "assist"),
    ("finished", "completed"), ("wrote", "authored"), ("lived", "resided"), ("get", "obtain"),
    ("died", "passed away"), ("used", "utilized"), ("important", "significant"),
)  # fmt: skip
_OPPOSITES = (
    ("first", "last"), ("largest", "smallest"), ("most", "least"), ("more", "less"), ("before", "after"),
    ("oldest", "youngest"), ("highest", "lowest"), ("with", "without"), ("north", "south"), ("male", "female"),
    ("increase", "decrease"), ("start", "end"), ("won", "lost"), ("best", "worst"), ("maximum", "minimum"),
    ("inside", "outside"), ("longest", "shortest"), ("on", "off"), ("from", "to"),
    ("above", "below"), ("early", "late"), ("husband", "wife"), ("born", "buried"), ("open", "closed"),
)  # fmt: skip
_OTHER_WORD = {"who": "Where", "when": "Where", "where": "When", "why": "How", "how": "Why", "what": "Why"}


def paraphrases(question: str) -> Iterator[tuple[str, str]]:
    """The same question in other words, each with the name of the rule that made it; at least one.

    >>> dict(paraphrases("When did the war begin?"))["question word"]
    'In what year did the war begin?'
    """
    bare = question.strip().rstrip("?. ")
    first, _, rest = bare.partition(" ")
    yield "plain", bare.lower()
    if re.match(_QUESTION, bare, re.I):
        yield "polite", f"Could you please tell me {first.lower()} {rest}?"
    if changed := _sub(r"^(what|who|where|when|how) is\b", r"\1's", bare):
        yield "contraction", f"{changed}?"
    if copula := re.fullmatch(r"(what|who|where) (is|was|are|were) (the .+)", bare, re.I):
        yield "copula last", f"Tell me {copula[1].lower()} {copula[3]} {copula[2]}."
        if copula[1].lower() == "what":
            yield "imperative", f"Name {copula[3]}."
    for pattern, replacement in _WAYS_TO_ASK:
        if changed := _sub(pattern, replacement, bare):
            yield "question word", f"{changed}?"
    if changed := _sub(rf"^who (?!(?:{_AUXILIARY})\b)", "What is the name of the person who ", bare):
        yield "who by name", f"{changed}?"
    if moved := re.fullmatch(r"((?:in|on|during|at) [^,]+), (.+)", bare, re.I):
        yield "word order", f"{moved[2]} {moved[1][0].lower()}{moved[1][1:]}?"
    elif moved := re.fullmatch(
        rf"((?i:{_QUESTION})\b.+) ((?:in|during) (?:the )?(?:[A-Z]\w+|\d+)(?: [A-Z]\w+)*)", bare
    ):
        yield "word order", f"{moved[2][0].upper()}{moved[2][1:]}, {first.lower()}{moved[1][len(first) :]}?"
    for one, other in _SYNONYMS:
        for mine, yours in ((one, other), (other, one)):
            if changed := _sub(rf"\b{mine}\b", yours, bare):
                yield "synonym", f"{changed}?"


def near_misses(question: str, others: Sequence[str], seed: int = 0) -> Iterator[tuple[str, str]]:
    """Another question in almost the same words, with the name of each rule: never to be taken for it.

    `others` lend names and words that take the place of this question's.

    >>> [text for kind, text in near_misses("Who won in 1990?", ["Who lost in Rome?"]) if kind == "number"]
    ['Who won in 1991?']
    """
    random = Random(f"{seed} {question}")
    bare = question.strip().rstrip("?. ")
    if number := re.search(r"\d+", bare):
        yield "number", f"{bare[: number.start()]}{int(number[0]) + 1}{bare[number.end() :]}?"
    names = list(dict.fromkeys(_NAME.findall(bare)))
    if names:
        for lender in random.sample(others, min(20, len(others))):
            lent = [name for name in _NAME.findall(lender) if name not in bare]
            if lent:
                yield "name", f"{_replaced(bare, random.choice(names), lent[0])}?"
                break
    if len(names) > 1:
        swapped = _replaced(_replaced(_replaced(bare, names[0], "\0"), names[1], names[0]), "\0", names[1])
        yield "names exchanged", f"{swapped}?"
    words = _WORD.findall(bare)
    if words:
        for lender in random.sample(others, min(20, len(others))):
            lent = [word for word in _WORD.findall(lender) if word not in bare]
            if lent:
                yield "word replaced", f"{_replaced(bare, random.choice(words), lent[0])}?"
                yield "word added", f"{bare} {lent[0]}?"
                break
        yield "word dropped", f"{_replaced(bare, random.choice(words), '')}?".replace("  ", " ")
    if changed := _sub(r"\b(is|was|are|were|did|does|do|can|will)\b( \w+)?", r"\1\2 not", bare):
        yield "negation", f"{changed}?"
    for one, other in _OPPOSITES:
        for mine, yours in ((one, other), (other, one)):
            if changed := _sub(rf"\b{mine}\b", yours, bare):
                yield "opposite", f"{changed}?"
    first, _, rest = bare.partition(" ")
    if first.lower() in _OTHER_WORD:
        yield "question word", f"{_OTHER_WORD[first.lower()]} {rest}?"


def _sub(pattern: str, replacement: str, text: str) -> str:
    """The text with the first match replaced; "" where nothing matches."""
    changed, count = re.subn(pattern, replacement, text, count=1, flags=re.IGNORECASE)
    return changed[:1].upper() + changed[1:] if count else ""


def _replaced(text: str, word: str, by: str) -> str:
    return re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", lambda match: by, text)
