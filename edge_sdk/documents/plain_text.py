"""Bytes to clean text: which encoding, whether it is text at all, which characters are dropped.

Knows nothing of files or document formats.
"""

from __future__ import annotations

import codecs
import re

MAX_HEADING = 200
"""Characters of a heading that passages carry as context; its full text stays in the document."""

_BOMS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL_BYTES = bytes(range(9)) + bytes(range(14, 27)) + bytes(range(28, 32)) + b"\x7f"
_CONTROL_SHARE = 0.02  # of a file's bytes; text has next to none, machine code and images 10 % and more

_NEWLINES = re.compile("\r\n?|[\v\f\x85\u2028\u2029]")
_INVISIBLE = re.compile(
    "\x1b\\[[0-9;]*[A-Za-z]|["  # a terminal's colours, and then single characters:
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"  # controls
    "\xad"  # soft hyphen: it would keep a word from being found
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"  # zero width, direction, invisible operators
    "\ufe00-\ufe0e\ufff9-\ufffb\ufffe\uffff"  # text variation selectors, interlinear marks, non-characters
    "\ud800-\udfff"  # lone surrogates: SQLite cannot store them
    "\U000e0000-\U000e0fff"  # tags and further variation selectors: text that only a model reads
    "]+"
)
# Joiners shape Persian, Indic scripts and emoji; beside ASCII or in a row they only hide something.
_IDLE_JOINERS = re.compile("[\u200c\u200d]{2,}|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])")


def looks_binary(data: bytes) -> bool:
    """Whether `data` is no text: a NUL byte without a UTF-16 or UTF-32 mark, or many control bytes.

    >>> looks_binary(b"caf\\xe9"), looks_binary("é".encode("utf-16")), looks_binary(b"\\x7fELF\\0\\0")
    (False, False, True)
    """
    if _mark(data) in ("utf-16", "utf-32"):
        return False
    return b"\0" in data or len(data) - len(data.translate(None, _CONTROL_BYTES)) > _CONTROL_SHARE * len(data)


def decode(data: bytes) -> str:
    """Decode `data` without ever failing.

    A byte order mark decides; else UTF-8. Where that is invalid: UTF-8 with U+FFFD for the broken bytes if
    at least as many characters beyond ASCII are sound as broken; else Windows-1252, with U+FFFD for the five
    bytes that it leaves unused.

    >>> decode(b"caf\\xe9 au lait"), decode("naïve café".encode()[:-1]), decode("né".encode("utf-16"))
    ('café au lait', 'naïve caf�', 'né')
    """
    encoding = _mark(data)
    if encoding:
        return data.decode(encoding, "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
        broken = text.count("\ufffd")
        sound = len(text) - len(text.encode("ascii", "ignore")) - broken
        if sound >= broken:
            return text
        return data.decode("cp1252", "replace")


def clean(text: str) -> str:
    """Unify line ends to `\\n` and drop what nobody sees: controls, zero-width characters, Unicode tags.

    >>> clean("one\\r\\ntwo\\u200b\\U000e0041 three\\x00")
    'one\\ntwo three'
    """
    return _IDLE_JOINERS.sub("", _INVISIBLE.sub("", _NEWLINES.sub("\n", text)))


def heading_text(text: str) -> str:
    """A heading as context for passages: clean, one line, at most `MAX_HEADING` characters."""
    return " ".join(clean(text).split())[:MAX_HEADING].rstrip()


def _mark(data: bytes) -> str | None:
    return next((encoding for mark, encoding in _BOMS if data.startswith(mark)), None)
