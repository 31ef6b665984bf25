"""What a language model may answer that is to answer in the passages' own words: those that a reader found likely.

A reader finds the right words more often than it prefers them; a small language model prefers them more often than
it finds them. Knows nothing of engines; `evidence` chooses what the model is given to read.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .engines.paths import log_sum
from .prompt import NOT_FOUND, Prompt
from .readers.overlap import expected, words_of
from .records import GenerationResult, Hit

if TYPE_CHECKING:
    from .readers.extract import Extract

RULE = "one of a reader's likely spans, completed, 2"
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

HOLDING = 0.2
"""What it counts for, beside F1, that an answer has all words of the right one.

Of 400 questions of SQuAD beside two distractors, where the answer is in the passages:

    HOLDING                        as said     0    .1    .2    .3    .5
    answer contained                  .703  .710  .723  .730  .735  .750
    token F1                          .709  .708  .710  .708  .703  .694
    words                              3.5   3.6   3.8   4.0   4.3   4.8
"""
_MARK = re.compile(r" \[\d+\]$")


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
            found[answer] = log_sum([found.get(answer, -math.inf), float(span.score)])
    doubts = extract is not None and (extract.probability is None or extract.probability < DOUBTFUL)
    if found and doubts:
        found[NOT_FOUND] = max(found.values())
    return tuple(found.items())


def completed(said: str, offered: Sequence[tuple[str, float]], end: GenerationResult) -> str:
    """The answer to give, where one of those `offered` was said to its `end`.

    It may be a longer or shorter one, whose words hold or are part of these, from the same passage, if that can be
    expected to agree better with what is right.
    """
    texts = [text for text, _ in offered]
    own = _words(said)
    if end.finish_reason != "stop" or not end.shares or said not in texts or said == NOT_FOUND or not own:
        return said
    words = {text: _words(text) for text in texts if text != NOT_FOUND}
    likely = [share for text, share in zip(texts, end.shares, strict=True) if text != NOT_FOUND]
    worth = {
        text: round(expected(each, list(words.values()), likely, holding=HOLDING), 9)
        for text, each in words.items()
        if _MARK.findall(text) == _MARK.findall(said) and each and (each <= own or own <= each)
    }
    return max(worth, key=lambda text: (worth[text], text == said))


def held(given: str, offered: Sequence[tuple[str, float]], end: GenerationResult) -> float | None:
    """The probability of the answers `offered` all of whose words are `given`; None where none was begun."""
    if offered and not end.shares:
        return None
    own = _words(given)
    return min(1.0, sum(share for (text, _), share in zip(offered, end.shares, strict=True) if _words(text) <= own))


def _words(answer: str) -> Counter[str]:
    return words_of(_MARK.sub("", answer))
