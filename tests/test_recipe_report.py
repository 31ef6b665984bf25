"""The report says what the figures say, in one file, whatever models are called."""

from __future__ import annotations

import re
import xml.dom.minidom
from functools import cache
from typing import Any

import pytest
from test_cascade import made_tiers

from quantize.recipes import report
from quantize.recipes.cascade import evaluate_cascade
from quantize.recipes.smallest import Candidate, judge, smallest


def figure(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05}


@cache
def cascade() -> dict[str, Any]:
    return evaluate_cascade(*made_tiers())


def document(name: str = "reader") -> dict[str, Any]:
    return {
        "name": "manuals",
        "tasks": {"present": 400, "absent": 200, "passages": 3},
        "systems": {
            name: {
                "role": "student",
                "megabytes": 22.5,
                "figures": {"token_f1": figure(0.8), "milliseconds": figure(31)},
            },
            "rule": {"role": "baseline", "megabytes": 0.0, "figures": {"token_f1": figure(0.3)}},
            "teacher": {"role": "teacher", "megabytes": None, "figures": {"token_f1": figure(0.85)}},
        },
        "comparisons": [{"name": name, "baseline": "rule", "gained": {"token_f1": figure(0.5)}}],
        "floor": {"token_f1": 0.75},
        "verdicts": [{"name": name, "bytes": 22_500_000, "passes": True, "surely": False, "short": []}],
        "smallest": name,
        "reliability": {name: {"probability": [0.1, 0.4, 0.9], "right": [0.0, 0.0, 1.0]}},
        "cascade": cascade(),
        "others": {
            "Head: intent": {"neural": {"MB": 1.5, "accuracy": 0.91}, "linear": {"MB": 0.2, "accuracy": 0.8}}
        },
    }


def test_the_tables_hold_the_figures() -> None:
    text = report.markdown(document())
    assert "| reader | student | 22.5 | 0.800 (0.750 to 0.850) | 31.0 (" in text
    assert "| rule | baseline | 0.0 | 0.300" in text and "| teacher | teacher | elsewhere | 0.850" in text
    assert "| reader | rule | +0.500 (0.450 to 0.550) |" in text
    assert "The floor is token F1 0.75. The smallest is reader." in text
    assert "| neural | 1.500 | 0.910 |" in text
    assert re.search(r"With \d+% leaving the device", text)


def test_the_page_needs_no_other_file() -> None:
    pytest.importorskip("matplotlib")
    page = report.page(document())
    assert page.count("<svg") == 3
    assert not re.search(r'(?:src|href)="(?!#)', page)
    for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        xml.dom.minidom.parseString(picture)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "names within pictures would take each other's place"
    assert page == report.page(document())


def test_names_stay_text() -> None:
    pytest.importorskip("matplotlib")
    name = "a|b <script>alert(1)</script> *x*"
    assert "<script" not in report.page(document(name))
    assert r"a\|b \<script\>" in report.markdown(document(name))


def test_an_evaluation_of_nothing_but_a_head_is_a_report() -> None:
    pytest.importorskip("matplotlib")
    empty = {**document(), "systems": {}, "comparisons": [], "floor": {}, "reliability": {}, "cascade": None}
    assert "Head: intent" in report.markdown(empty) and "<svg" not in report.page(empty)


def test_the_smallest_that_passes_is_chosen() -> None:
    floor = {"token_f1": 0.7, "milliseconds": 50.0}
    found = [
        judge(Candidate("tiny", 1, {"token_f1": 0.4, "milliseconds": 1}, {}), floor),
        judge(Candidate("small", 20, {"token_f1": 0.75, "milliseconds": 40}, {"token_f1": 0.72}), floor),
        judge(Candidate("large", 90, {"token_f1": 0.9, "milliseconds": 45}, {"token_f1": 0.6}), floor),
        judge(Candidate("slow", 5, {"token_f1": 0.9, "milliseconds": 90}, {}), floor),
        judge(Candidate("unmeasured", 2, {"milliseconds": 1}, {}), floor),
    ]
    chosen = smallest(found)
    assert chosen is not None and chosen.name == "small"
    assert {each.name: each.surely for each in found if each.passes} == {"small": True, "large": False}
    assert found[0].short == ("token_f1 is 0.4, the floor 0.7",)
    assert found[4].short == ("token_f1 was not measured",)
    assert smallest([found[0]]) is None
