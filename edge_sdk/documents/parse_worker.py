"""The child process that parses one hostile document: bytes on standard input, one JSON line out.

Run as `python -m edge_sdk.documents.parse_worker FORMAT LIMITS`. It limits its own memory and processor time
where the system can, opens no file and no socket, and never learns the document's name. `parse` starts it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping

from ..errors import DocumentError
from .outline import OutlineWriter


def main(arguments: list[str]) -> int:
    """Parse standard input; the exit status is 0 whenever a JSON line could be written."""
    limits: dict[str, int] = json.loads(arguments[1])
    parse = _parser(arguments[0], limits)
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout = sys.stderr  # nothing that a parser prints may mix with the result
    _limit_resources(limits)
    with output:
        output.write(json.dumps(_parsed(parse, sys.stdin.buffer.read(), limits)))
    return 0


def _parser(format_name: str, limits: Mapping[str, int]) -> Callable[[bytes, OutlineWriter], str]:
    """The parser of a format. It is imported before the limits hold, and only here."""
    match format_name:
        case "html":
            from .parse_html import parse_html

            return parse_html
        case "pdf":
            from .parse_pdf import parse_pdf

            return lambda data, writer: parse_pdf(data, writer, limits["pages"])
        case "docx":
            from .parse_docx import parse_docx

            return lambda data, writer: parse_docx(data, writer, limits["unpacked_bytes"], limits["unpacked_ratio"])
    raise ValueError(f"there is no parser for {format_name!r}")


def _parsed(
    parse: Callable[[bytes, OutlineWriter], str], data: bytes, limits: Mapping[str, int]
) -> dict[str, object]:
    writer = OutlineWriter(limits["text_characters"])
    try:
        title = parse(data, writer)
        text, sections = writer.finish()
    except DocumentError as error:
        return {"error": error.message, "hint": error.hint}
    except MemoryError:
        return {"error": f"it needs more than {limits['memory_bytes'] >> 20} MB of memory", "hint": ""}
    except Exception as error:  # parsers raise anything on a damaged file
        return {"error": f"it is damaged ({type(error).__name__}: {error})", "hint": ""}
    return {
        "title": title,
        "text": text,
        "sections": [[section.start, section.end, *section.headings] for section in sections],
    }


def _limit_resources(limits: Mapping[str, int]) -> None:
    try:
        import resource
    except ImportError:  # Windows: the parent's deadline is the only limit
        return
    seconds = int(limits["seconds"]) + 1
    for name, amount in (
        ("RLIMIT_AS", int(limits["memory_bytes"])),
        ("RLIMIT_CPU", seconds),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NOFILE", 16),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some
            kind = getattr(resource, name)
            _, hard = resource.getrlimit(kind)
            resource.setrlimit(kind, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
