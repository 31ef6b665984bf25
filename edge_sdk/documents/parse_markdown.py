"""Markdown to sections: the text stays the source, markdown-it says where its headings are.

So a `#` in fenced code is no heading, and offsets refer to what the author wrote. Knows nothing of files.
"""

from __future__ import annotations

import re
from itertools import pairwise

from ..records import Section
from .plain_text import MAX_HEADING, heading_text

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)?(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_DATA_URI = re.compile(r"\bdata:[\w/+.-]+;base64,[A-Za-z0-9+/=]{64,}")
_INLINE = (  # what a heading's words look like once rendered
    (re.compile(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])"), r"\1"),  # links and images
    (re.compile(r"[ \t]*\{#[\w-]+\}[ \t]*$"), ""),  # {#anchor}
    (re.compile(r"<[^>]*>"), ""),
    (re.compile(r"(`+|\*{1,3}|~~|(?<!\w)_{1,3}(?=\w)|(?<=\w)_{1,3}(?!\w))"), ""),
    (re.compile(r"\\([!-/:-@\[-`{-~])"), r"\1"),
)


def parse_markdown(source: str) -> tuple[str, str, tuple[Section, ...]]:
    """Title (or ""), text and sections of a Markdown document (CommonMark; ATX and setext headings).

    The text is `source` less its front matter and embedded base64 images. Headings inside lists and quotes
    open no section. `source` has `\\n` line ends.

    >>> title, text, sections = parse_markdown("# Tea\\n\\n## Brew `it`\\n\\n```sh\\n# no heading\\n```\\n")
    >>> title, [section.headings for section in sections]
    ('Tea', [('Tea',), ('Tea', 'Brew it')])
    """
    from markdown_it import MarkdownIt

    front = _FRONT_MATTER.match(source)
    text = _DATA_URI.sub("data:", source[front.end() :] if front else source)
    tokens = MarkdownIt("commonmark").disable(["inline", "reference"]).parse(text)
    starts = _line_starts(text)
    sections: list[Section] = []
    stack: list[tuple[int, str]] = []
    begin = 0
    title = _front_title(front)
    for opening, inline in pairwise(tokens):
        if opening.type != "heading_open" or opening.level or opening.map is None:
            continue
        words = _plain(inline.content)
        if not words:
            continue
        level, start = int(opening.tag[1:]), starts[opening.map[0]]
        if start > begin:
            sections.append(Section(begin, start, tuple(heading for _, heading in stack)))
        stack = [entry for entry in stack if entry[0] < level] + [(level, words)]
        title = title or (words if level == 1 else "")
        begin = start
    if begin < len(text):
        sections.append(Section(begin, len(text), tuple(heading for _, heading in stack)))
    return title, text, tuple(sections)


def _line_starts(text: str) -> list[int]:
    return [0, *(found.end() for found in re.finditer("\n", text))]


def _front_title(front: re.Match[str] | None) -> str:
    found = _FRONT_TITLE.search(front.group(1) or "") if front else None
    return found.group(1).strip("\"'") if found else ""


def _plain(inline: str) -> str:
    inline = inline[:MAX_HEADING]  # a setext heading may be a whole paragraph
    for pattern, replacement in _INLINE:
        inline = pattern.sub(replacement, inline)
    return heading_text(inline)
