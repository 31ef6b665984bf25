"""Cuts a parsed document into passages with exact character offsets.

Knows nothing of files, encoders or the store. Cuts fall at the best border that is near the aimed length:
a blank line, else the end of a sentence, of a line, of a word. Time is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..records import Chunk, ParsedDocument, Section

TARGET = 900
"""Characters that a passage aims at: about 200 of the 256 word pieces that the encoder reads."""
LIMIT = 1200
"""Characters that a passage never exceeds."""
SMALL = 60
"""Characters below which a section is joined with its neighbour: a heading alone, a note of one line."""
HEADING_SEPARATOR = " › "

_INK = re.compile(r"\S")
_BORDERS = (
    re.compile(r"\n[^\S\n]*\n\s*"),  # paragraph
    re.compile(r"[.!?…][\"')\]»”’]*\s+(?![a-z\s])|[。！？]+\s*"),  # sentence; "e.g. this" does not end one
    re.compile(r"\n\s*"),  # line
    re.compile(r"\s+"),  # word
)


@dataclass(slots=True)
class _Span:
    """A passage in the making. `leaves` are the last headings of the sections it holds."""

    start: int
    end: int
    parent: tuple[str, ...]
    leaves: tuple[str, ...]
    whole: bool  # whole sections only, so it may be joined with a neighbour


def chunk_document(
    document: ParsedDocument, *, target: int = TARGET, limit: int = LIMIT, small: int = SMALL
) -> list[Chunk]:
    """Cut `document` into passages, in order and without overlap, that hold every visible character.

    Each is at most `limit` characters, stripped, not empty, and does not mix sections, except that one below
    `small` characters is joined with its neighbour under the same parent, and one small line (a heading alone)
    with its own first subsection.
    Text between the document's sections counts as a section without headings.

    >>> text = "Tea\\n\\nBoil water. Wait."
    >>> parsed = ParsedDocument("a.txt", "a", text, (Section(0, len(text), ("Drinks", "Tea")),), "", "text/plain")
    >>> [(chunk.heading, chunk.text) for chunk in chunk_document(parsed, target=8, limit=12)]
    [('Drinks › Tea', 'Tea'), ('Drinks › Tea', 'Boil water.'), ('Drinks › Tea', 'Wait.')]
    """
    if not 0 < target <= limit:
        raise ValueError(f"target {target} is not between 1 and limit {limit}")
    text = document.text
    spans: list[_Span] = []
    for section in _sections_without_gaps(document.sections, len(text)):
        for span in _split(text, section, target, limit):
            joined = _join(text, spans[-1], span, small, target) if spans else None
            if joined is None:
                spans.append(span)
            else:
                spans[-1] = joined
    return [Chunk(text[span.start : span.end], span.start, span.end, _heading(span)) for span in spans]


def embedding_text(heading: str, text: str) -> str:
    """What the encoder reads for a passage: its headings and then its text.

    Not the document's title: all its passages share that, which makes them harder to tell apart by meaning.
    The full-text index has it.

    >>> embedding_text("json › dumps", "json.dumps(obj)")
    'json › dumps\\njson.dumps(obj)'
    """
    return f"{heading}\n{text}" if heading else text


def _sections_without_gaps(sections: Sequence[Section], length: int) -> Iterator[Section]:
    position = 0
    for section in sections:
        if section.start > position:
            yield Section(position, section.start)
        yield section
        position = section.end
    if position < length:
        yield Section(position, length)


def _split(text: str, section: Section, target: int, limit: int) -> Iterator[_Span]:
    """The passages of one section; none when it holds only white space."""
    parent, leaves = section.headings[:-1], section.headings[-1:]
    end = section.start + len(text[section.start : section.end].rstrip())
    first = start = _next_ink(text, section.start, end)
    while start < end:
        stop = _cut(text, start, end, target, limit)
        stripped = start + len(text[start:stop].rstrip())
        yield _Span(start, stripped, parent, leaves, whole=start == first and stop == end)
        start = _next_ink(text, stop, end)


def _next_ink(text: str, start: int, end: int) -> int:
    found = _INK.search(text, start, end)
    return found.start() if found else end


def _cut(text: str, start: int, end: int, target: int, limit: int) -> int:
    """Where the passage that begins at `start` ends: everything, or the best border near the aimed length."""
    rest = end - start
    if rest <= limit:
        return end
    aim = min(target, (rest + 1) // 2)  # halves, where two passages remain: no tiny last one
    window = text[start : start + limit]
    for border in _BORDERS:
        cuts = [cut for found in border.finditer(window) if (cut := found.end()) > aim // 2]
        if cuts:
            return start + min(cuts, key=lambda cut: abs(cut - aim))
    return start + aim


def _join(text: str, last: _Span, span: _Span, small: int, target: int) -> _Span | None:
    """Both as one passage, where they belong together: one that is small leads, or small ones make a short list."""
    length = span.end - last.start
    if not (last.whole and span.whole) or length > target:
        return None
    if last.end - last.start >= small and (span.end - span.start >= small or length > target // 3):
        return None
    if last.parent == span.parent:
        return _Span(last.start, span.end, span.parent, (*last.leaves, *span.leaves), whole=True)
    if (*last.parent, *last.leaves) == span.parent and "\n" not in text[last.start : last.end]:  # a heading alone
        return _Span(last.start, span.end, span.parent, span.leaves, whole=True)
    return None


def _heading(span: _Span) -> str:
    leaves = ", ".join(dict.fromkeys(span.leaves))
    return HEADING_SEPARATOR.join((*span.parent, leaves)) if leaves else ""
