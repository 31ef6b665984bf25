"""What was left out of the training data and why: a count and a few of the first ones for each reason.

Knows nothing of the reasons.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SAMPLES = 3
"""Shown of what was dropped for one reason."""
_LONGEST = 160  # characters of a sample


@dataclass(slots=True)
class Reason:
    """How often it was the first that applied, and to what."""

    count: int = 0
    samples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Drops:
    """The account of a run: every candidate was either kept or dropped for one reason.

    >>> drops = Drops()
    >>> drops.keep()
    >>> drops.drop("asked twice", "Who?")
    >>> drops.seen, drops.to_dict()["dropped"]
    (2, {'asked twice': {'count': 1, 'samples': ['Who?']}})
    """

    kept: int = 0
    reasons: dict[str, Reason] = field(default_factory=dict)

    def keep(self, count: int = 1) -> None:
        """Some candidates stay."""
        self.kept += count

    def drop(self, reason: str, what: str) -> None:
        """One candidate goes."""
        entry = self.reasons.setdefault(reason, Reason())
        entry.count += 1
        if len(entry.samples) < SAMPLES:
            text = " ".join(what.split())
            entry.samples.append(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")

    @property
    def dropped(self) -> int:
        """For whatever reason."""
        return sum(reason.count for reason in self.reasons.values())

    @property
    def seen(self) -> int:
        """Candidates in all."""
        return self.kept + self.dropped

    def to_dict(self) -> dict[str, object]:
        """For JSON; reasons in the order in which they were first met."""
        dropped = {
            name: {"count": reason.count, "samples": reason.samples} for name, reason in self.reasons.items()
        }
        return {"seen": self.seen, "kept": self.kept, "dropped": dropped}

    def markdown(self) -> str:
        """A table of reasons, the commonest first, and below it the samples."""
        ranked = sorted(self.reasons.items(), key=lambda item: -item[1].count)
        rows = [
            f"| {_cell(name)} | {reason.count:,} | {_share(reason.count, self.seen)} |" for name, reason in ranked
        ]
        table = ["| | examples | share |", "| --- | ---: | ---: |", f"| seen | {self.seen:,} | |", *rows]
        table.append(f"| **kept** | **{self.kept:,}** | {_share(self.kept, self.seen)} |")
        samples = [f"- {_cell(name)}: " + _cell(" · ".join(reason.samples)) for name, reason in ranked]
        return "\n".join([*table, *(["", "Dropped, for example:", "", *samples] if samples else [])]) + "\n"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _cell(text: str) -> str:
    """What people wrote, as plain text in Markdown."""
    return "".join(f"\\{sign}" if sign in "|\\`*_<>[]" else sign for sign in text)
