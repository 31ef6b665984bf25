"""The quickest local answer: words that a reader found in a passage, quoted with the sentence around them.

It takes milliseconds where a generation takes seconds, and it cannot invent. Whether it is served is decided by
a calibration of its own. Knows nothing of retrieval, remotes or stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .citations import CitedText, cite_span
from .confidence.setup import SIGNALS_HASH, Setup
from .drafting import Draft
from .records import Hit

if TYPE_CHECKING:
    from .readers.extract import Extract

READ = 5
"""Passages that are read, best first."""


class Reader(Protocol):
    """What finds the words; see `readers.reader` for the real one."""

    name: str

    @property
    def fingerprint(self) -> str:
        """Names all that decides what it finds."""

    def read(self, question: str, passages: Sequence[str]) -> Extract:
        """The best words of all passages, and how sure it is of them."""


@dataclass(frozen=True, slots=True)
class Extractor:
    """Answers with the words of a passage."""

    reader: Reader

    def extract(self, question: str, hits: Sequence[Hit]) -> Extract:
        """What the reader finds in the best passages."""
        return self.reader.read(question, [hit.passage.text for hit in hits[:READ]])

    def draft(self, extract: Extract, hits: Sequence[Hit]) -> Draft:
        """The answer, cited; empty where the reader found no words."""
        passages = tuple(hit.passage for hit in hits[:READ])
        if extract.best is None:
            return Draft(passages=passages)
        span = extract.best
        citation = cite_span(span.passage + 1, passages[span.passage], span.start, span.end)
        reasons = (f"the words stand in passage {span.passage + 1} of {len(passages)} that the reader read",)
        return Draft(
            CitedText(span.text, (citation,), 0), reasons, passages=passages, usable=True, model=self.reader.name
        )

    def setup(self, retrieval: str, encoder: str) -> Setup:
        """What a calibration of these answers is filed under; the two names say what finds the passages."""
        return Setup(
            {
                "model": self.reader.fingerprint,
                "prompt": "the words of a passage with the highest expected F1",
                "passages": f"{READ} read",
                "retrieval": retrieval,
                "encoder": encoder,
                "signals": SIGNALS_HASH,
            }
        )
