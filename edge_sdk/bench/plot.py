"""The figures of a measurement as bars: for a terminal, and as a picture with matplotlib (the `bench` extra).

Knows only the form that the documents of benchmarks share: contenders with their measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MissingExtraError

_BLOCKS = " ▏▎▍▌▋▊▉█"
_HEIGHT = 0.35  # inches of a bar
_SKIPPED = {"completion_tokens", "cached_tokens"}


@dataclass(frozen=True, slots=True)
class Chart:
    """One measure of several contenders; `spread` has between which values it lies, itself twice where unknown."""

    title: str
    values: Mapping[str, float]
    spread: Mapping[str, tuple[float, float]]


def charts(document: Mapping[str, Any]) -> list[Chart]:
    """One chart a measure, for `contenders`, and for those of each of the `models`."""
    found: list[Chart] = []
    groups = {"": document["contenders"]} if "contenders" in document else document.get("models", {})
    for name, contenders in groups.items():
        for measure in _measures(contenders):
            having = {who: row for who, row in contenders.items() if isinstance(row.get(measure), int | float)}
            spread = {
                who: (float(least), float(most))
                for who, row in having.items()
                for least, most in [row.get("spread", {}).get(measure) or (row[measure], row[measure])]
            }
            title = measure.replace("_", " ")
            values = {who: float(row[measure]) for who, row in having.items()}
            found.append(Chart(f"{name}: {title}" if name else title, values, spread))
    return found


def bars(chart: Chart, width: int = 40) -> Iterator[str]:
    """Lines of text, the longest bar `width` characters long.

    >>> list(bars(Chart("ms", {"edge": 10.0, "other": 25.0}, {}), width=5))
    ['edge   ██    10', 'other  █████ 25']
    """
    longest, names = max(chart.values.values(), default=0.0), max(map(len, chart.values), default=0)
    for name, value in chart.values.items():
        eighths = round(8 * width * value / longest) if longest > 0 else 0
        bar = "█" * (eighths // 8) + _BLOCKS[eighths % 8].strip()
        yield f"{name:<{names}}  {bar:<{width}} {value:.4g}"


def write_plot(document: Mapping[str, Any], path: Path) -> None:
    """Write the charts as a picture; the name's ending says of which kind. Raises `ConfigError`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("`--plot`", "bench") from error
    every = charts(document)
    if not every:
        raise ConfigError("there is nothing to plot in this result")
    rows = [len(chart.values) for chart in every]
    figure = Figure(figsize=(7, sum(0.9 + _HEIGHT * row for row in rows)), layout="constrained")
    for axes, chart in zip(
        figure.subplots(len(every), 1, squeeze=False, height_ratios=rows)[:, 0], every, strict=True
    ):
        names = list(chart.values)
        aside = [[abs(value - chart.spread[name][end]) for name, value in chart.values.items()] for end in (0, 1)]
        axes.barh(names, list(chart.values.values()), xerr=aside, color="tab:blue", ecolor="black", capsize=3)
        axes.invert_yaxis()
        axes.set_title(chart.title, fontsize=10, loc="left")
    try:
        figure.savefig(path)
    except ValueError as error:  # an ending that it does not know
        raise ConfigError(f"{path.name}: {error}", hint="give a name that ends in .png") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _measures(contenders: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of what at least one contender has a figure of, in order."""
    names = dict.fromkeys(name for row in contenders.values() for name, value in row.items() if _is_number(value))
    return [name for name in names if name not in _SKIPPED]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
