"""Whether training data give away what is measured on: the same question, passage or title, or a long run of words.

Runs of words as for GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C). Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

from ..metrics import normalise
from .example import Example

RUN = 13
"""Words in a row that two texts do not share by accident."""


class Leakage:
    """What a set of questions is measured on, as hashes; says by what an example would give it away.

    >>> passage = "The Rhine is 1,230 kilometres long and rises in the canton of Grisons in the Swiss Alps."
    >>> held_out = Leakage([Example("How long is the Rhine?", passage)], titles=["Rhine"])
    >>> held_out.of(Example("how long is the rhine", "It is long."))
    'question of the evaluation set'
    >>> held_out.of(Example("Where does it rise?", f"Rivers. {passage}")), held_out.of(Example("Who?", "Ann."))
    ('13 words in a row of a passage of the evaluation set', '')
    """

    def __init__(self, evaluation: Iterable[Example], *, titles: Iterable[str] = (), run: int = RUN) -> None:
        """`titles` are those of the works that the evaluation's passages come from."""
        self._run = run
        self._titles = {normalise(title) for title in titles} - {""}
        self._questions: set[str] = set()
        self._runs: set[int] = set()
        for example in evaluation:
            self._questions.add(normalise(example.question))
            self._runs.update(_runs(example.passage, run))

    def of(self, example: Example, title: str = "") -> str:
        """The reason why an example must not be trained on, or ""."""
        if normalise(example.question) in self._questions:
            return "question of the evaluation set"
        return self.of_passage(example.passage, title)

    def of_passage(self, text: str, title: str = "") -> str:
        """The same for a passage, before anything is asked about it."""
        if title and normalise(title) in self._titles:
            return "title of the evaluation set"
        if any(run in self._runs for run in _runs(text, self._run)):
            return f"{self._run} words in a row of a passage of the evaluation set"
        return ""


def _runs(text: str, run: int) -> Iterator[int]:
    """The runs of a text as 64-bit hashes; a shorter text is one run."""
    words = re.findall(r"\w+", text.casefold())
    for at in range(max(1, len(words) - run + 1) if words else 0):
        joined = " ".join(words[at : at + run]).encode("utf-8", "replace")
        yield int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "little")
