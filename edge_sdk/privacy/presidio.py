"""Presidio as a second layer: names, places and what else its recognisers know, found by a language model.

The package and its models are loaded when the first text is looked at. Whatever it raises goes to the caller, and
the gate sends nothing then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from ..errors import MissingExtraError
from .detectors import Finding

# Presidio's names to ours; what is not here keeps its own name, without the signs.
KINDS: Mapping[str, str] = {
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "CREDIT_CARD": "CARD",
    "CRYPTO": "KEY",
    "IBAN_CODE": "IBAN",
    "IP_ADDRESS": "IP",
    "MAC_ADDRESS": "MAC",
    "LOCATION": "PLACE",
    "NRP": "GROUP",
}
NOT_PRIVATE = frozenset({"DATE_TIME", "URL"})
"""Entities that are left alone unless `entities` asks for them: most questions about facts hold one."""


class PresidioDetector:
    """A `Detector` over `presidio_analyzer.AnalyzerEngine`; pass its `find` to the gate.

    `entities` are Presidio's names, None for all but dates and links; finds below `least_score` are left out. An
    `analyzer` of your own replaces the default one, for which the extra `presidio` and a spaCy model are needed.
    """

    def __init__(
        self,
        language: str = "en",
        *,
        entities: tuple[str, ...] | None = None,
        least_score: float = 0.4,
        analyzer: Any = None,
    ) -> None:
        self._language, self._entities, self._least_score = language, entities, least_score
        if analyzer is not None:
            self.__dict__["_analyzer"] = analyzer

    @cached_property
    def _analyzer(self) -> Any:
        try:
            from presidio_analyzer import AnalyzerEngine  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise MissingExtraError("the Presidio layer", "presidio") from None
        return AnalyzerEngine()

    def find(self, text: str) -> list[Finding]:
        """What Presidio finds in the text as it stands; encodings are the rules' business."""
        wanted = None if self._entities is None else list(self._entities)
        results = self._analyzer.analyze(
            text=text, language=self._language, entities=wanted, score_threshold=self._least_score
        )
        return [
            Finding(result.start, result.end, _kind(result.entity_type))
            for result in results
            if self._entities is not None or result.entity_type not in NOT_PRIVATE
        ]


def _kind(entity: str) -> str:
    """Ours for Presidio's: `US_SSN` and its kin are all identity numbers.

    >>> _kind("PERSON"), _kind("LOCATION"), _kind("US_SSN"), _kind("IT_FISCAL_CODE")
    ('PERSON', 'PLACE', 'ID', 'ID')
    """
    if entity in KINDS:
        return KINDS[entity]
    return "ID" if re.match(r"[A-Z]{2,3}_", entity) else re.sub(r"[^A-Z]", "", entity.upper())[:20]
