"""Local, remote or abstain, and why: the first routing rule, explicit and without any calibration.

Pure: numbers that retrieval has measured go in, a decision and sentences with those numbers come out. It knows
nothing of models, prompts or the network, and it claims no probability.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .records import Hit, Route
from .retrieval.fulltext import match_expression

WhenUnsure = Literal["abstain", "local", "remote"]

WORD_WEIGHT = 0.5
"""What all of the question's words in one passage count for, where a cosine of 1 counts for 1. A logistic
regression on the sets below put it at 0.46; BM25, word rarity and five more features added nothing to it."""

SUPPORT_FLOOR = 0.58
"""Below this cosine plus weighted share of words, no passage supports an answer.

Chosen on SQuAD with MiniLM-L6 int8 (803 documents, 500 questions with their answer in them): the largest that
calls fewer than 1 % of those unsupported; each half of the questions alone would have put it at 0.51 or 0.59.
Share of questions called unsupported, 8 passages retrieved:

    documents                questions with an answer   without (nearly all)
    SQuAD, Wikipedia         0.8 % of 500               68 % of 1000 NQ-open, 78 % of 1000 CLINC150 out of scope
    Cranfield, aerodynamics  0.4 % of 225               94 % of 500 SQuAD, 98 % of 1000 NQ-open
    80 Python modules        0 of 60                    97 % of 300 SQuAD, 91 % of 400 CLINC150 out of scope

A cosine alone, at 1 % on SQuAD, finds 47 % and 60 % of the first row. What is close to the documents' topic and
not answered by them passes: the model itself must then say so.
"""

WORDS_FLOOR = 0.3
"""The floor on the share of words where there is no cosine, for want of an encoder (25 % and 29 % found)."""

_STEM = 5  # letters by which two words count as the same: "invent", "invented", "inventors"
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do when the documents do not support an answer: say so, try all the same, or ask the remote."""

    when_unsure: WhenUnsure = "abstain"


@dataclass(frozen=True, slots=True)
class Support:
    """What retrieval found. `words_found` of the question's `words` are in the passage that has most of them."""

    supported: bool
    top_similarity: float | None  # the best cosine; None without an encoder
    best_bm25: float | None
    words_found: int
    words: int
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a question goes; the reasons are sentences with numbers, the last one decided."""

    route: Route
    reasons: tuple[str, ...]


def support(question: str, hits: Sequence[Hit]) -> Support:
    """Whether anything among the retrieved passages supports an answer: cosine and shared words above a floor.

    >>> support("Who brews the tea?", []).reason
    'no passage found'
    """
    wanted = _stems(" ".join(match_expression(question).split('"')[1::2]))
    found = max((len(wanted & _stems(f"{hit.passage.heading} {hit.passage.text}")) for hit in hits), default=0)
    similarity = max((hit.similarity for hit in hits if hit.similarity is not None), default=None)
    bm25 = max((hit.bm25 for hit in hits if hit.bm25 is not None), default=None)
    share = found / len(wanted) if wanted else 0.0
    words = f"{found} of {len(wanted)} words of the question"
    if not hits:
        supported, reason = False, "no passage found"
    elif similarity is None:
        supported = share >= WORDS_FLOOR
        reason = f"a passage has {words}" if supported else f"no passage has more than {words}"
        reason += f" ({share:.0%}, floor {WORDS_FLOOR:.0%}; no encoder to compare meanings)"
    else:
        score = round(similarity + WORD_WEIGHT * share, 2)  # what is compared is what is printed
        supported = score >= SUPPORT_FLOOR
        numbers = f"best similarity {similarity:.2f}, {words}: support {score:.2f}, floor {SUPPORT_FLOOR}"
        reason = (
            f"the passages support an answer ({numbers})"
            if supported
            else f"no passage supports an answer ({numbers})"
        )
    return Support(supported, similarity, bm25, found, len(wanted), reason)


def decide_before(question: str, hits: Sequence[Hit], policy: Policy) -> Decision:
    """Decide on what retrieval found, before anything is generated."""
    found = support(question, hits)
    if found.supported:
        return Decision("local", (found.reason,))
    if policy.when_unsure == "local" and hits:
        return Decision("local", (found.reason, "answered all the same, as asked"))
    return unsure((found.reason,), policy)


def decide_after(decision: Decision, refused: bool, policy: Policy) -> Decision:
    """Decide again when the local answer is there; `refused` when the model found no answer in the passages."""
    if not refused or policy.when_unsure == "local":
        return decision
    return unsure((*decision.reasons, "the local model found no answer in the passages"), policy)


def unsure(reasons: tuple[str, ...], policy: Policy) -> Decision:
    """The decision for what may not be served locally, the last reason being why."""
    return Decision("remote" if policy.when_unsure == "remote" else "abstain", reasons)


def _stems(text: str) -> frozenset[str]:
    return frozenset(word[:_STEM] for word in _WORD.findall(text.casefold()))
