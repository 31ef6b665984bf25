"""The measurement of a search runs on a small store and a small encoder; its figures are not looked at here."""

from __future__ import annotations

from pathlib import Path

import pytest
from bert_models import random_weights, write_bert

from edge_sdk.bench.retrieve import PARTS, bench_retrieve
from edge_sdk.config import Settings, load_settings
from edge_sdk.errors import EngineError, ModelNotFoundError


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    weights = random_weights(hidden=64, heads=2, inner=96, layers=1, words=259, positions=256)
    write_bert(tmp_path / "encoder", weights, "int8")
    return load_settings({"home": tmp_path / "home", "encoder": str(tmp_path / "encoder")}, {})


def test_the_first_search_and_the_warm_ones_are_measured_with_their_parts(settings: Settings) -> None:
    steps: list[tuple[float, str]] = []
    report = bench_retrieve(
        settings, passages=120, questions=24, progress=lambda done, total, detail: steps.append((done, detail))
    )
    first, warm, long = report["first_ms"], report["warm_ms"], report["long_ms"]
    assert isinstance(first, dict)
    assert isinstance(warm, dict)
    assert isinstance(long, dict)
    assert first.keys() == {"open", "encoder", "index", "search", "total"}
    assert warm["questions"] + long["questions"] == 24 - 3  # the first of each process
    assert long["questions"] > 0
    for figures in (warm, long):
        assert 0 < figures["median"] <= figures["p99"] <= figures["max"]
        assert figures["parts"].keys() == {*PARTS, "rest"}
        assert all(value > 0 for value in figures["parts"].values())
    assert report["passages"] == 120
    assert [done for done, detail in steps if detail == "making a store"] == [0, 50, 100]
    assert not settings.store.exists()


def test_what_cannot_be_measured_is_an_error_in_one_line(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelNotFoundError):
        bench_retrieve(load_settings({"home": settings.home, "encoder": "/nowhere/at-all"}, {}), passages=50)
    monkeypatch.setattr("edge_sdk.bench.retrieve._fill", lambda path, *rest: path.write_bytes(b"no store at all"))
    with pytest.raises(EngineError, match=r"measuring the search failed: .*damaged or not a store"):
        bench_retrieve(settings, passages=50)
