"""Figures as bars, in text and as a picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.bench.plot import Chart, bars, charts, write_plot
from edge_sdk.errors import ConfigError, MissingExtraError

CONTENDERS: dict[str, Any] = {
    "edge": {"first_token_ms": 100.0, "joules": None, "spread": {"first_token_ms": [90.0, 120.0]}, "p95": {}},
    "llama_class": {"first_token_ms": 400.0, "spread": {}},
}


def test_contenders_and_models_give_one_chart_a_measure() -> None:
    (one,) = charts({"contenders": CONTENDERS})
    assert one == Chart(
        "first token ms",
        {"edge": 100.0, "llama_class": 400.0},
        {"edge": (90.0, 120.0), "llama_class": (400.0, 400.0)},
    )
    assert [chart.title for chart in charts({"models": {"small": CONTENDERS}})] == ["small: first token ms"]
    assert charts({"rows": 3}) == []


@given(st.dictionaries(st.text("ab", min_size=1), st.floats(0, 1e9), max_size=5))
def test_bars_are_as_long_as_their_values(values: dict[str, float]) -> None:
    lines = list(bars(Chart("ms", values, {}), width=20))
    lengths = [line.count("█") for line in lines]
    assert len(lines) == len(values)
    assert max(lengths, default=20) == 20 or max(values.values()) == 0
    for length, value in zip(lengths, values.values(), strict=True):
        assert all(length <= other for other, more in zip(lengths, values.values(), strict=True) if more >= value)


def test_a_picture_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    write_plot({"contenders": CONTENDERS}, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigError, match="nothing to plot"):
        write_plot({"rows": 3}, tmp_path / "plot.png")
    with pytest.raises(ConfigError, match=r"ends in \.png"):
        write_plot({"contenders": CONTENDERS}, tmp_path / "plot.words")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_plot({"contenders": CONTENDERS}, tmp_path / "none" / "plot.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"edge-sdk\[bench\]"):
        write_plot({"contenders": CONTENDERS}, tmp_path / "plot.png")
