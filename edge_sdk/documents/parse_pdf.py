"""PDF to text, one section a page, with pypdf.

Runs inside `parse_worker`; knows nothing of files. A page that cannot be read says so in the text; scanned
pages hold no text and nothing is recognised in images.
"""

from __future__ import annotations

import io
import logging
import re

from pypdf import PdfReader
from pypdf.errors import PyPdfError

from ..errors import DocumentError
from .outline import OutlineWriter

_LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})
_HYPHENATED = re.compile(r"(?<=[a-z])-\n(?=[a-z])")


def parse_pdf(data: bytes, writer: OutlineWriter, max_pages: int) -> str:
    """Write the pages; returns the title from the metadata, or "".

    Ligatures become letters and words hyphenated at a line end are joined, so that they can be found.
    """
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it reports every repair
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not _opens_without_password(reader):
            raise DocumentError("it is encrypted", hint="save a copy without a password")
        pages = len(reader.pages)
    except (PyPdfError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise DocumentError(f"it is not a readable PDF ({_reason(error)})") from error
    if pages > max_pages:
        raise DocumentError(f"it has {pages:,} pages, more than {max_pages:,}", hint="split it")
    unreadable = 0
    for number in range(1, pages + 1):
        try:
            text = reader.pages[number - 1].extract_text()
        except MemoryError:
            raise
        except Exception:  # pypdf raises anything on a damaged page; the other pages are worth having
            unreadable += 1
            text = "[this page cannot be read]"
        writer.heading(1, f"page {number}", show=False)
        writer.block(_HYPHENATED.sub("", text.translate(_LIGATURES)))
    if pages and unreadable == pages:
        raise DocumentError("none of its pages can be read")
    return _title(reader)


def _opens_without_password(reader: PdfReader) -> bool:
    """Many PDFs are encrypted with an empty user password: anybody may read them."""
    try:
        return bool(reader.decrypt(""))
    except (PyPdfError, NotImplementedError):
        return False


def _title(reader: PdfReader) -> str:
    try:
        title = reader.metadata.title if reader.metadata else None
    except Exception:  # metadata is as damaged as its writer left it
        return ""
    return " ".join(str(title or "").split())


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
