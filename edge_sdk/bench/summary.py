"""Numbers to what is reported of them: the median, a high percentile, and how sure the median is.

Knows nothing of what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

Row = Mapping[str, float | None]
_SIDE = 0.98  # half of 1.96: of the square root of n, the ranks on either side of the median (95 %)


def summarise(rows: Sequence[Row]) -> dict[str, object]:
    """The median of each measure, its 95 % percentile under `p95`, and under `spread` the interval of the median.

    A measure that every row lacks is None, and has neither.

    >>> summarise([{"ms": 3.0, "joules": None}, {"ms": 1.0, "joules": None}, {"ms": 2.0, "joules": None}])
    {'ms': 2.0, 'joules': None, 'p95': {'ms': 3.0}, 'spread': {'ms': [1.0, 3.0]}}
    """
    columns = {name: [row[name] for row in rows if row.get(name) is not None] for name in _names(rows)}
    known = {name: [float(value) for value in values if value is not None] for name, values in columns.items()}
    return {
        **{name: rounded(median(values)) if values else None for name, values in known.items()},
        "p95": {name: rounded(percentile(values, 95)) for name, values in known.items() if values},
        "spread": {name: interval(values) for name, values in known.items() if values},
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that so many percent do not exceed: one that was measured, nothing between two.

    >>> percentile([10.0, 20.0, 30.0, 40.0], 50), percentile([10.0, 20.0, 30.0, 40.0], 95)
    (20.0, 40.0)
    """
    ranked = sorted(values)
    return ranked[max(0, math.ceil(percent / 100 * len(ranked)) - 1)]


def interval(values: Sequence[float]) -> list[float]:
    """Between which two values the median lies, at 95 %, whatever the distribution: by ranks, all of few values.

    >>> interval([5.0, 1.0, 3.0]), interval([float(n) for n in range(100)])
    ([1.0, 5.0], [40.0, 59.0])
    """
    ranked = sorted(values)
    aside = max(0, math.floor(len(ranked) / 2 - _SIDE * math.sqrt(len(ranked))))
    return [rounded(ranked[aside]), rounded(ranked[len(ranked) - 1 - aside])]


def rounded(value: float) -> float:
    """Four significant digits, and no fewer than the whole number.

    >>> rounded(1234.567), rounded(0.123456)
    (1235.0, 0.1235)
    """
    digits = 4 - math.ceil(math.log10(abs(value))) if value and math.isfinite(value) else 0
    return round(value, max(0, digits))


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))
