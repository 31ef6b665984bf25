"""The evaluation as a page for people: Markdown, and HTML that holds its pictures and needs no other file.

Works on the JSON document of the evaluation alone. Knows nothing of how it came about.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import plots

COLUMNS = {
    "token_f1": "token F1",
    "exact": "exact",
    "contains": "contained",
    "cites_right": "cites right",
    "abstains": "abstains, absent",
    "abstains_wrongly": "abstains, present",
    "tells_absent": "absent, AUROC",
    "auroc": "right, AUROC",
    "ece": "ECE",
    "tokens": "tokens",
    "milliseconds": "ms",
}
"""Figures of a system and their headings, in the order of the table."""
_WHAT = (
    "Shares are from 0 to 1, in brackets 95 % bootstrap intervals. *cites right*: of the answers that are right. "
    "*absent*: no passage holds the answer. *AUROC* of telling it, and of telling right answers from wrong ones; "
    "*ECE*: expected calibration error of probabilities that were fitted on other tasks."
)


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is to the left, the others to the right."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """An SVG with its caption."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Heading:
    """Of a section."""

    text: str


Block = str | Table | Picture | Heading


def markdown(document: Mapping[str, Any]) -> str:
    """The report without pictures."""
    parts = []
    for block in _blocks(document, pictures=False):
        if isinstance(block, Heading):
            parts.append(f"## {_escaped(block.text)}")
        elif isinstance(block, Table):
            rule = ["---", *["---:"] * (len(block.head) - 1)]
            rows = [block.head, rule, *block.rows]
            parts.append("\n".join(f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in rows))
        elif isinstance(block, str):
            parts.append(block)
    return f"# {_escaped(document['name'])}\n\n" + "\n\n".join(parts) + "\n"


def page(document: Mapping[str, Any]) -> str:
    """The report as one HTML file with its pictures. Raises `MissingExtraError` without matplotlib."""
    title, parts = html.escape(document["name"]), []
    for block in _blocks(document, pictures=True):
        if isinstance(block, Heading):
            parts.append(f"<h2>{html.escape(block.text)}</h2>")
        elif isinstance(block, Table):
            parts.append(_html_table(block))
        elif isinstance(block, Picture):
            parts.append(f"<figure>{block.svg}<figcaption>{html.escape(block.caption)}</figcaption></figure>")
        else:
            parts.append(f"<p>{html.escape(block).replace('*', '')}</p>")
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>{_STYLE}</head>\n' \
        f"<body><h1>{title}</h1>\n{body}\n</body></html>\n"  # fmt: skip


_STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { display: inline-block; margin: 1rem 1rem 1rem 0; }
figcaption { color: #555; font-size: .85rem; max-width: 34rem; }
</style>"""


def _blocks(document: Mapping[str, Any], *, pictures: bool) -> Iterator[Block]:
    systems = document["systems"]
    if systems:
        counts = document["tasks"]
        yield (
            f"{counts['present']:,} questions with their answer in one of {counts['passages']} passages, "
            f"{counts['absent']:,} with none; nothing of them was learned from."
        )
        yield _systems_table(systems)
        yield _WHAT
        if pictures:
            floor = document["floor"].get("token_f1")
            yield Picture(plots.quality_plot(systems, floor), "Token F1 over size; dashed: the floor.")
        if pictures and document["reliability"]:
            columns = {name: (rows["probability"], rows["right"]) for name, rows in document["reliability"].items()}
            yield Picture(plots.reliability_plot(columns), "Probability and share of right answers.")
        yield from _comparisons(document["comparisons"])
    yield from _verdicts(document)
    if document["cascade"]:
        yield from _cascade(document["cascade"], pictures=pictures)
    for name, rows in document["others"].items():
        yield Heading(name)
        yield _figures_table(rows)


def _systems_table(systems: Mapping[str, Any]) -> Table:
    used = [name for name in COLUMNS if any(name in system["figures"] for system in systems.values())]
    rows = tuple(
        (
            name,
            system["role"],
            _megabytes(system["megabytes"]),
            *(_cell(system["figures"].get(each)) for each in used),
        )
        for name, system in systems.items()
    )
    return Table(("model", "role", "MB", *(COLUMNS[name] for name in used)), rows)


def _comparisons(rows: Sequence[Mapping[str, Any]]) -> Iterator[Block]:
    if rows:
        yield Heading("Beside its baseline")
        yield Table(
            ("model", "than", *(f"{COLUMNS[name]}, gained" for name in rows[0]["gained"])),
            tuple(
                (row["name"], row["baseline"], *(_cell(value, sign=True) for value in row["gained"].values()))
                for row in rows
            ),
        )


def _verdicts(document: Mapping[str, Any]) -> Iterator[Block]:
    if not document["floor"]:
        return
    yield Heading("The smallest that passes")
    floor = ", ".join(f"{COLUMNS.get(name, name)} {value:g}" for name, value in document["floor"].items())
    chosen = document["smallest"]
    yield f"The floor is {floor}. " + (f"The smallest is {chosen}." if chosen else "No model reaches it.")
    yield Table(
        ("model", "MB", "passes", "what is short"),
        tuple(
            (
                row["name"],
                _megabytes(row["bytes"] / 1e6),
                ("surely" if row["surely"] else "yes") if row["passes"] else "no",
                "; ".join(row["short"]),
            )
            for row in document["verdicts"]
        ),
    )


def _cascade(report: Mapping[str, Any], *, pictures: bool) -> Iterator[Block]:
    yield Heading("The cascade")
    tiers, few, enough = (report[name] for name in ("tiers", "few_leaving", "enough"))
    names = ", ".join(tier["name"] for tier in tiers)
    yield (
        f"{names}, then the remote, on {report['n']:,} questions. With {few['remote_share']:.0%} leaving the "
        f"device the quality is {few['ratio']:.1%} of always asking the remote ({few['interval'][0]:.1%} to "
        f"{few['interval'][1]:.1%}). {enough['ratio']:.1%} of it needs {enough['remote_share']:.0%} leaving."
    )
    if pictures:
        yield Picture(plots.cascade_plot(report), "Each point is a threshold on the probability.")
    yield Table(
        ("tier", "quality alone", "right, AUROC", "ECE", "ms"),
        tuple(
            (tier["name"], *(_number(tier[each]) for each in ("quality", "auroc", "ece", "milliseconds")))
            for tier in tiers
        ),
    )


def _figures_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return Table(
        ("", *names), tuple((each, *(_cell(row.get(name)) for name in names)) for each, row in rows.items())
    )


def _cell(value: Any, *, sign: bool = False) -> str:
    if isinstance(value, Mapping):
        if not value:
            return ""
        mean = f"{value['mean']:+.3f}" if sign else _number(value["mean"])
        return f"{mean} ({_number(value['low'])} to {_number(value['high'])})"
    return _number(value) if isinstance(value, int | float) else str(value or "")


def _number(value: float | None) -> str:
    """Three digits that matter.

    >>> [_number(value) for value in (0.8123, 12.34, 1234.5, None)]
    ['0.812', '12.3', '1,234', '']
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _megabytes(value: float | None) -> str:
    return "elsewhere" if value is None else f"{value:,.1f}"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>\n" for row in table.rows)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>"


def _escaped(text: str) -> str:
    return "".join(f"\\{sign}" if sign in "|\\`*_<>[]" else sign for sign in " ".join(text.split()))
