"""What a language model may answer that is to answer in the passages' own words: those that a reader found likely.

A reader finds the right words more often than it prefers them; a small language model prefers them more often than
it finds them. Knows nothing of engines; `evidence` chooses what the model is given to read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .prompt import NOT_FOUND, Prompt
from .records import Hit

if TYPE_CHECKING:
    from .readers.extract import Extract

RULE = "one of a reader's likely spans, 1"
"""Names what is offered; to be changed with it, as calibrations depend on it."""
DOUBTFUL = 0.2
"""Probability that the passages hold an answer, by the reader, below which the model may say that they do not.

Of 200 questions of SQuAD beside two distractors SmolLM2 with the adapter of assistant.edge 1.4 answers right in:

                                                        answer in the passages    not there: says so
    in any words                                        .580, says no to .095     .975
    in a reader's words, or says no                     .620, says no to .135     .975
    in a reader's words; says no where it doubts, too   .720, says no to .035     .975
    the same, as likely as both together find them      .735, says no to .015     .983
"""


def choices(
    extract: Extract | None, hits: Sequence[Hit], prompt: Prompt, *, numbered: bool
) -> tuple[tuple[str, float], ...]:
    """The answers to choose from, each once, with its log-probability by the reader.

    `extract` is what was found in the first of the `hits`. Each names its passage, where they are `numbered`. None
    where no reader found words that the model is shown.
    """
    places = {hit: number for number, hit in enumerate(prompt.passages)}
    found: dict[str, float] = {}
    for span in extract.likely if extract is not None else ():
        words, place = " ".join(span.text.split()), places.get(hits[span.passage])
        if words and place is not None and span.text in prompt.shown[place]:
            answer = f"{words} [{place + 1}]" if numbered else words
            found[answer] = _either(found.get(answer, -math.inf), float(span.score))
    doubts = extract is not None and (extract.probability is None or extract.probability < DOUBTFUL)
    if found and doubts:
        found[NOT_FOUND] = max(found.values())
    return tuple(found.items())


def _either(one: float, other: float) -> float:
    """The logarithm of the sum of what has these logarithms."""
    most, least = max(one, other), min(one, other)
    return most + math.log1p(math.exp(least - most))
