"""HTML to text under its headings, with Beautiful Soup and the standard library's parser.

What a reader of the page does not see as its content (scripts, styles, navigation, forms, hidden elements)
is dropped. Runs inside `parse_worker`; knows nothing of files and limits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from bs4 import BeautifulSoup, Comment, Tag
from bs4.element import NavigableString, PreformattedString

from .outline import OutlineWriter

_DROPPED = frozenset(
    "audio button canvas dialog head iframe input math nav noscript object script select style svg template "
    "textarea video".split()
)
_BLOCKS = frozenset(
    "address article aside blockquote body caption dd details div dl dt fieldset figcaption figure footer form "
    "header hr html legend li main ol p pre section summary table tbody td tfoot th thead tr ul".split()
)
_HEADINGS = {"h1": 1, "h2": 2, "h3": 3, "h4": 4, "h5": 5, "h6": 6}
_TIGHT = {"li", "dt", "dd", "tr"}  # set line by line, without blank lines between
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)


def parse_html(data: bytes, writer: OutlineWriter) -> str:
    """Write the page's content; returns its title, or "".

    The encoding is found as a browser would: byte order mark, `<meta charset>`, UTF-8, Windows-1252.
    """
    soup = BeautifulSoup(data, "html.parser")
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    main = soup.find("main") or soup.find(role="main")
    root = main if isinstance(main, Tag) and main.get_text(strip=True) else soup
    page = _Page(writer)
    for node, entering in _walk(root):
        page.visit(node, entering)
    page.flush()
    return title or page.first_heading


class _Page:
    """Text that is being collected for the block at hand."""

    def __init__(self, writer: OutlineWriter) -> None:
        self._writer = writer
        self._inline: list[str] = []
        self._lines: list[str] = []  # of the tight block at hand: list items, table rows
        self._preformatted = 0
        self._row = 0
        self.first_heading = ""

    def visit(self, node: NavigableString | Tag, entering: bool) -> None:
        if isinstance(node, NavigableString):
            self._inline.append(node if self._preformatted else re.sub(r"\s+", " ", node))
            return
        name = node.name
        if name == "br" and entering:
            self._inline.append("\n")
        elif name == "tr":
            if entering:
                self._end_line()
            self._row += 1 if entering else -1
            if not entering:
                self._end_line()
        elif name in ("td", "th") and self._row:
            if not entering:
                self._inline.append(" | ")
        elif self._row and name in _BLOCKS:
            self._inline.append(" ")
        elif name in _HEADINGS:
            if entering:
                self.flush()
            else:
                text = (
                    " ".join("".join(self._inline).split()).removesuffix("¶").rstrip()
                )  # the sign of a link to itself
                self._inline.clear()
                self.first_heading = self.first_heading or text
                self._writer.heading(_HEADINGS[name], text)
        elif name == "pre":
            self.flush()
            self._preformatted += 1 if entering else -1
        elif name in _TIGHT:
            self._end_line()
            if entering and name == "li":
                self._inline.append("- ")
        elif name in _BLOCKS:
            self.flush()

    def flush(self) -> None:
        """End the block at hand."""
        self._end_line()
        self._writer.block("\n".join(self._lines))
        self._lines.clear()

    def _end_line(self) -> None:
        text = "".join(self._inline)
        self._inline.clear()
        if not self._preformatted:
            text = re.sub(r" *\n *", "\n", re.sub(r"[^\S\n]+", " ", text)).strip().removesuffix("|").rstrip()
        if text.strip() and text != "-":
            self._lines.append(text)


def _walk(root: Tag) -> Iterator[tuple[NavigableString | Tag, bool]]:
    """Every visible node in document order, tags twice: entering and leaving. Any depth: no recursion."""
    stack: list[tuple[object, bool]] = [(root, True)]
    while stack:
        node, entering = stack.pop()
        if isinstance(node, Tag):
            if entering:
                if node.name in _DROPPED or _is_hidden(node):
                    continue
                stack.append((node, False))
                stack.extend((child, True) for child in reversed(node.contents))
            yield node, entering
        elif isinstance(node, NavigableString) and not isinstance(node, (Comment, PreformattedString)):
            yield node, True


def _is_hidden(tag: Tag) -> bool:
    return (
        tag.has_attr("hidden")
        or tag.get("aria-hidden") == "true"
        or bool(_HIDDEN_STYLE.search(str(tag.get("style", ""))))
    )
