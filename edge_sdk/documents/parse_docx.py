"""DOCX to text under its headings, with python-docx.

Runs inside `parse_worker`; knows nothing of files. Paragraphs and tables of the body are read; headers,
footers, notes, comments and text boxes are not.
"""

from __future__ import annotations

import io
import re
import zipfile

from docx import Document
from docx.table import Table
from docx.text.paragraph import Paragraph

from ..errors import DocumentError
from .outline import OutlineWriter

_HEADING_STYLE = re.compile(r"heading ([1-9])$", re.IGNORECASE)  # so in every language of Word


def parse_docx(data: bytes, writer: OutlineWriter, max_unpacked: int, max_ratio: int) -> str:
    """Write the body; returns the title from the properties, or "".

    The archive's directory is checked before anything is unpacked; `zipfile` itself never yields more than
    the size declared there.
    """
    try:
        _check_archive(data, max_unpacked, max_ratio)
        document = Document(io.BytesIO(data))
        for block in document.iter_inner_content():
            if isinstance(block, Table):
                writer.block(_rows(block))
            elif isinstance(block, Paragraph):
                _paragraph(block, writer)
        return " ".join((document.core_properties.title or "").split())
    except (DocumentError, MemoryError):
        raise
    except Exception as error:  # lxml, zipfile and python-docx raise anything on a damaged file
        raise DocumentError(f"it is not a readable DOCX ({error or type(error).__name__})") from error


def _check_archive(data: bytes, max_unpacked: int, max_ratio: int) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max_unpacked or unpacked > max_ratio * len(data):
        raise DocumentError(
            f"it unpacks from {len(data):,} to {unpacked:,} bytes; at most {max_unpacked:,} bytes and "
            f"{max_ratio} times its size are allowed"
        )


def _paragraph(paragraph: Paragraph, writer: OutlineWriter) -> None:
    style = (paragraph.style.name or "") if paragraph.style is not None else ""
    heading = _HEADING_STYLE.match(style)
    if heading:
        writer.heading(int(heading.group(1)) + 1, paragraph.text)
    elif style.lower() == "title":
        writer.heading(1, paragraph.text)
    else:
        writer.block(f"- {paragraph.text}" if style.lower().startswith("list") else paragraph.text)


def _rows(table: Table) -> str:
    """One line a row; a cell that spans columns is listed once."""
    lines = []
    for row in table.rows:
        cells: list[str] = []
        previous = None
        for cell in row.cells:
            if cell._tc is not previous:
                cells.append(" ".join(cell.text.split()))
            previous = cell._tc
        lines.append(" | ".join(cells))
    return "\n".join(line for line in lines if line.strip(" |"))
