"""Files to `ParsedDocument`: reads a file within limits, tells its format, parses it.

Text and Markdown are parsed here; HTML, PDF and DOCX in a child process (`parse_worker`), because their
parsers meet hostile input with large native and third-party code. Knows nothing of passages and the store.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import DocumentError, MissingExtraError
from ..records import ParsedDocument, Section
from .parse_markdown import parse_markdown
from .plain_text import clean, decode, heading_text, looks_binary

_DOCX_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
MEDIA_TYPES: Mapping[str, str] = {
    "text": "text/plain",
    "markdown": "text/markdown",
    "html": "text/html",
    "pdf": "application/pdf",
    "docx": _DOCX_TYPE,
}
SUFFIXES: Mapping[str, str] = {  # what a directory is searched for; a file that is named may have any suffix
    ".txt": "text",
    ".text": "text",
    ".rst": "text",
    ".adoc": "text",
    ".org": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".docx": "docx",
}
_IN_CHILD = {  # format: (what it is needed for, the package that parses it)
    "html": ("reading HTML", "bs4"),
    "pdf": ("reading PDF", "pypdf"),
    "docx": ("reading DOCX", "docx"),
}


@dataclass(frozen=True, slots=True)
class ParseLimits:
    """What one document may cost. The defaults suit a device with 1 GB of memory."""

    file_bytes: int = 50_000_000
    text_characters: int = 20_000_000
    pages: int = 3_000  # of a PDF
    unpacked_bytes: int = 200_000_000  # of a DOCX
    unpacked_ratio: int = 100
    seconds: float = 120.0  # in the child process
    memory_bytes: int = 768 << 20  # address space of the child process


DEFAULT_LIMITS = ParseLimits()


def parse_file(path: Path | str, name: str | None = None, limits: ParseLimits = DEFAULT_LIMITS) -> ParsedDocument:
    """Read and parse one file; `name` is what the user sees and cites, by default the path as given.

    Raises `DocumentError` when it is missing, unreadable, too large, binary, broken, encrypted or without
    text, and `MissingExtraError` when the package for its format is not installed.
    """
    name = str(path) if name is None else name
    return parse_bytes(read_document(path, limits), name, suffix=Path(path).suffix, limits=limits)


def read_document(path: Path | str, limits: ParseLimits = DEFAULT_LIMITS) -> bytes:
    """The bytes of a regular file of at most `limits.file_bytes`; its size is looked at before it is read."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise DocumentError(f"{path}: it is not a regular file")
            if facts.st_size <= limits.file_bytes:
                data = file.read(limits.file_bytes + 1)  # it may be growing
                if len(data) <= limits.file_bytes:
                    return data
        raise DocumentError(
            f"{path}: its {facts.st_size:,} bytes are more than the limit of {limits.file_bytes:,}", hint="split it"
        )
    except FileNotFoundError:
        raise DocumentError(f"{path}: there is no such file", hint="check the path") from None
    except IsADirectoryError:
        raise DocumentError(f"{path}: it is a directory") from None
    except PermissionError:
        raise DocumentError(f"{path}: it may not be read", hint="check its permissions") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise DocumentError(f"{path}: it cannot be read ({error})") from error


def parse_bytes(
    data: bytes, name: str, *, suffix: str = "", limits: ParseLimits = DEFAULT_LIMITS
) -> ParsedDocument:
    """Parse a document that is in memory; the first bytes win over `suffix` where they are unmistakable."""
    if not data.strip():
        raise DocumentError(f"{name}: it is empty")
    format_name = detect_format(data, suffix)
    try:
        if format_name in _IN_CHILD:
            title, text, sections = _parse_in_child(format_name, data, limits)
        else:
            title, text, sections = _parse_text(format_name, data, limits)
    except DocumentError as error:
        raise DocumentError(f"{name}: {error.message}", hint=error.hint) from error
    return ParsedDocument(
        name=name,
        title=heading_text(title) or Path(name).stem,
        text=text,
        sections=sections,
        content_hash=content_hash(data),
        media_type=MEDIA_TYPES[format_name],
    )


def content_hash(data: bytes) -> str:
    """The sha256 of a document's bytes, by which `ingest` sees that nothing has changed."""
    return hashlib.sha256(data).hexdigest()


def detect_format(data: bytes, suffix: str = "") -> str:
    """One of `text`, `markdown`, `html`, `pdf`, `docx`; anything unknown is `text`.

    >>> detect_format(b"%PDF-1.7 ...", ".txt"), detect_format(b"# Tea", ".MD"), detect_format(b"<!DOCTYPE html>")
    ('pdf', 'markdown', 'html')
    """
    if data[:64].lstrip().startswith(b"%PDF-"):
        return "pdf"
    if data.startswith(b"PK\x03\x04") and (suffix.lower() == ".docx" or b"word/" in data):
        return "docx"
    if suffix.lower() in SUFFIXES:
        return SUFFIXES[suffix.lower()]
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return "html" if start.startswith((b"<!doctype html", b"<html")) else "text"


def _parse_text(format_name: str, data: bytes, limits: ParseLimits) -> tuple[str, str, tuple[Section, ...]]:
    if looks_binary(data):
        raise DocumentError("it looks binary, not like text", hint="convert it to text, HTML, PDF or DOCX")
    if data.startswith(b"{\\rtf"):
        raise DocumentError("it is RTF, which is not read", hint="save it as DOCX or text")
    text = clean(decode(data))
    if not text.strip():
        raise DocumentError("it holds no text")
    if len(text) > limits.text_characters:
        raise DocumentError(
            f"its {len(text):,} characters of text are more than the limit of {limits.text_characters:,}",
            hint="split it",
        )
    if format_name == "markdown":
        try:
            title, text, sections = parse_markdown(text)
        except Exception as error:  # whatever the Markdown parser trips over
            raise DocumentError(f"it cannot be parsed as Markdown ({error})", hint="name it .txt") from error
        if text.strip():
            return title, text, sections
        raise DocumentError("it holds no text")
    return "", text, (Section(0, len(text)),)


def _parse_in_child(format_name: str, data: bytes, limits: ParseLimits) -> tuple[str, str, tuple[Section, ...]]:
    feature, package = _IN_CHILD[format_name]
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(feature, "parse")
    command = [sys.executable, "-P", "-m", f"{__package__}.parse_worker", format_name, json.dumps(asdict(limits))]
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, timeout=limits.seconds, env=_bare_environment(), check=False
        )
    except subprocess.TimeoutExpired:
        raise DocumentError(f"parsing it took longer than {limits.seconds:g} s", hint="split it") from None
    except OSError as error:
        raise DocumentError(f"no child process to parse it in can be started ({error})") from error
    try:
        reply: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise DocumentError(f"its parser ended early ({_ending(done)})", hint="the file may be damaged") from None
    if "error" in reply:
        raise DocumentError(reply["error"], hint=reply["hint"])
    if not reply["text"]:
        hint = "scanned pages need text recognition (OCR) first" if format_name == "pdf" else ""
        raise DocumentError("it holds no text", hint=hint)
    return (
        reply["title"],
        reply["text"],
        tuple(Section(start, end, tuple(headings)) for start, end, *headings in reply["sections"]),
    )


def _bare_environment() -> dict[str, str]:
    """The way to this process's packages and nothing else: no keys, no proxies, no settings."""
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, *(entry for entry in sys.path if entry)]
    kept = {name: os.environ[name] for name in ("SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONIOENCODING": "utf-8"}


def _ending(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        return f"signal {-done.returncode}"
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else f"exit status {done.returncode}"


def _open_without_waiting(path: str, flags: int) -> int:
    """Open without blocking on a named pipe that nobody writes to."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
