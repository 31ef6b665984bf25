"""Find what identifies a person or opens a door, also where it is encoded: rules on every reading of a text.

`find` is the first layer and always on; other layers are functions of the same form. It knows nothing of what
becomes of a find, and it raises rather than look at less than everything.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..errors import PrivacyError
from .patterns import DROPPED, RULES
from .views import decoded_runs, readings


@dataclass(frozen=True, slots=True)
class Finding:
    """`text[start:end]` (characters) is, or holds in some encoding, a value of `kind`, a word in capitals."""

    start: int
    end: int
    kind: str


Detector = Callable[[str], Sequence[Finding]]

_WORK = 16  # characters looked at for each character of the text, readings and decodings together


def find(text: str) -> tuple[Finding, ...]:
    """Every find in a text, in order and without overlaps; an encoded value is found as its whole encoded run.

    Raises `PrivacyError` when encodings are nested so often that the work is out of proportion to the text.

    >>> text = "Mail jo@x.de or jo%40y.de"
    >>> [(finding.kind, text[finding.start : finding.end]) for finding in find(text)]
    [('EMAIL', 'jo@x.de'), ('EMAIL', 'jo%40y.de')]
    """
    return merged(_find(text, [_WORK * len(text) + 10_000]))


def merged(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """In order, with those that overlap or touch made one, of the kind that is dropped, else that of the longest.

    >>> merged([Finding(3, 9, "PHONE"), Finding(0, 5, "ID"), Finding(8, 12, "CARD")])
    (Finding(start=0, end=12, kind='CARD'),)
    """
    result: list[Finding] = []
    for each in sorted(findings, key=lambda finding: (finding.start, -finding.end)):
        if not result or each.start > result[-1].end:
            result.append(each)
            continue
        last = result[-1]
        kind = min(last, each, key=_precedence).kind
        result[-1] = Finding(last.start, max(last.end, each.end), kind)
    return tuple(result)


def _precedence(finding: Finding) -> tuple[int, int]:
    place = DROPPED.index(finding.kind) if finding.kind in DROPPED else len(DROPPED)
    return place, finding.start - finding.end


def _find(text: str, work: list[int]) -> list[Finding]:
    """`work` holds what is left of the characters that may be looked at."""
    found = _find_as_it_reads(text, work)
    for view in readings(text):
        for finding in _find_as_it_reads(view.text, work):
            start, end = view.original(finding.start, finding.end)
            found.append(Finding(start, end, finding.kind))
    return found


def _find_as_it_reads(text: str, work: list[int]) -> list[Finding]:
    work[0] -= len(text)
    if work[0] < 0:
        raise PrivacyError("the text is encoded too often over to be checked")
    found = [Finding(start, end, rule.kind) for rule in RULES for start, end in rule.spans(text)]
    dropped = merged(finding for finding in found if finding.kind in DROPPED)
    starts = [finding.start for finding in dropped]
    for run in decoded_runs(text):
        before = bisect_right(starts, run.start) - 1
        if before >= 0 and run.end <= dropped[before].end:
            continue  # all of it is dropped already
        inside = [finding for decoded in run.texts for finding in _find(decoded, work)]
        if inside:
            found.append(Finding(run.start, run.end, min(inside, key=_precedence).kind))
    return found
