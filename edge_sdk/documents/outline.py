"""Builds a document's text block by block under a stack of headings, and notes where each section lies.

Parsers of formats without source text worth showing (HTML, PDF, DOCX, docstrings) write through it. It knows
nothing of those formats.
"""

from __future__ import annotations

from ..errors import DocumentError
from ..records import Section
from .plain_text import clean, heading_text


class OutlineWriter:
    """Collects blocks of text; a heading of level n ends every section of level n and deeper.

    >>> writer = OutlineWriter()
    >>> writer.heading(1, "Guide"); writer.block("Read me."); writer.heading(2, "Install"); writer.block("Run it.")
    >>> text, sections = writer.finish()
    >>> [(section.headings, text[section.start : section.end]) for section in sections]
    [(('Guide',), 'Guide\\n\\nRead me.'), (('Guide', 'Install'), 'Install\\n\\nRun it.')]
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._blocks: list[str] = []
        self._length = 0  # of the blocks and the blank lines between them
        self._stack: list[tuple[int, str]] = []
        self._open = 0  # where the current section began
        self._sections: list[Section] = []

    def heading(self, level: int, text: str, *, show: bool = True) -> None:
        """Begin a section. With `show=False` the heading is context only and not part of the text."""
        self._close()
        self._stack = [entry for entry in self._stack if entry[0] < level]
        if context := heading_text(text):
            self._stack.append((level, context))
            if show:
                self.block(" ".join(text.split()))

    def block(self, text: str) -> None:
        """Add a paragraph, set off by a blank line. Raises `DocumentError` past the limit."""
        text = clean(text).rstrip().lstrip("\n")
        if not text:
            return
        self._blocks.append(text)
        self._length += len(text) + 2
        if self._limit is not None and self._length > self._limit:
            raise DocumentError(f"it holds more than {self._limit:,} characters of text", hint="split it")

    def finish(self) -> tuple[str, tuple[Section, ...]]:
        """The whole text and its sections, in order."""
        self._close()
        return "\n\n".join(self._blocks), tuple(self._sections)

    def _close(self) -> None:
        if self._length > self._open:
            end = self._length - 2  # the last blank line belongs to no section
            self._sections.append(Section(self._open, end, tuple(text for _, text in self._stack)))
        self._open = self._length
