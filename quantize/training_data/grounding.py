"""How much of an answer its passage holds, in words: rules that find support, not truth.

English as far as `edge_sdk.fallback.english` goes; another language is compared word by word. Knows nothing of
where answers come from.
"""

from __future__ import annotations

from edge_sdk.fallback.english import LIGHT, NEGATIONS, NUMBERS, PRONOUNS, meaning, rewritten
from edge_sdk.fallback.rewording import tokens

from .locate import locate


def groundedness(answer: str, passage: str, question: str = "") -> float:
    """Share of an answer's words that its passage holds, from 0 to 1; 1 where it stands there, 0 for no answer.

    Inflection aside. Words of the question prove nothing and are not counted, unless the answer has no others. A
    number that the passage does not have makes it 0.

    >>> passage = "The bridge was built by Ann Lee in 1889."
    >>> [groundedness(answer, passage) for answer in ("Ann Lee builds it", "in 1890", "Bob Lee")]
    [1.0, 0.0, 0.5]
    """
    if locate(answer, passage) is not None:
        return 1.0
    said, held = _meanings(answer), set(_meanings(passage))
    if any(any(map(str.isdigit, word)) and word not in held for word in said):
        return 0.0
    asked = set(_meanings(question))
    told = [word for word in said if word not in asked] or said
    return sum(word in held for word in told) / len(told) if told else 0.0


def _meanings(text: str) -> list[str]:
    words = [word.lower() for word in tokens(rewritten(text))]
    telling = [word for word in words if word in NEGATIONS or not (word in LIGHT or word in PRONOUNS)]
    return [meaning(NUMBERS.get(word, word)) for word in telling]
