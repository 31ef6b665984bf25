"""The Presidio layer, with a stand-in for the package: it is asked for by name only and fails closed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from edge_sdk.errors import MissingExtraError
from edge_sdk.privacy.detectors import Finding
from edge_sdk.privacy.gate import Outgoing, PrivacyPolicy, Withheld, prepare
from edge_sdk.privacy.presidio import PresidioDetector

OPEN = PrivacyPolicy("prefer_local")


@dataclass
class Result:
    """Like `presidio_analyzer.RecognizerResult`."""

    entity_type: str
    start: int
    end: int


class Analyzer:
    """Knows one person, one date and one bank number."""

    opened = 0

    def __init__(self) -> None:
        type(self).opened += 1
        self.calls: list[dict[str, Any]] = []

    def analyze(self, **arguments: Any) -> list[Result]:
        self.calls.append(arguments)
        known = {"Ada Lovelace": "PERSON", "London": "LOCATION", "1843": "DATE_TIME", "AB-77": "US_BANK_NUMBER"}
        text = arguments["text"]
        return [
            Result(kind, text.index(word), text.index(word) + len(word))
            for word, kind in known.items()
            if word in text
        ]


def test_names_and_places_get_pseudonyms_that_come_back() -> None:
    sent = prepare(
        OPEN, "Did Ada Lovelace live in London in 1843?", detectors=[PresidioDetector(analyzer=Analyzer()).find]
    )
    assert isinstance(sent, Outgoing)
    assert sent.messages[-1].content == "Did PERSON_1 live in PLACE_1 in 1843?"
    assert sent.vault.restore("PERSON_1 did.") == "Ada Lovelace did."


def test_the_settings_reach_presidio() -> None:
    analyzer = Analyzer()
    detector = PresidioDetector("de", entities=("DATE_TIME",), least_score=0.7, analyzer=analyzer)
    assert detector.find("AB-77 in 1843") == [Finding(9, 13, "DATE_TIME".replace("_", "")), Finding(0, 5, "ID")]
    assert analyzer.calls == [
        {"text": "AB-77 in 1843", "language": "de", "entities": ["DATE_TIME"], "score_threshold": 0.7}
    ]


def test_the_package_is_opened_once_and_at_the_first_text(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("presidio_analyzer")
    module.AnalyzerEngine = Analyzer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "presidio_analyzer", module)
    before = Analyzer.opened
    detector = PresidioDetector()
    assert Analyzer.opened == before
    detector.find("Ada Lovelace")
    detector.find("London")
    assert Analyzer.opened == before + 1


def test_without_the_package_there_is_one_line_and_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    detector = PresidioDetector()
    with pytest.raises(MissingExtraError, match=r"pip install 'edge-sdk\[presidio\]'"):
        detector.find("x")
    result = prepare(OPEN, "Who?", detectors=[detector.find])
    assert isinstance(result, Withheld)
    assert "nothing was sent" in result.reason and "edge-sdk[presidio]" in result.reason


def test_when_presidio_fails_nothing_is_sent() -> None:
    class Broken:
        def analyze(self, **_: object) -> list[Result]:
            raise OSError("no model")

    result = prepare(OPEN, "Who?", detectors=[PresidioDetector(analyzer=Broken()).find])
    assert isinstance(result, Withheld) and result.cause == "failure"
