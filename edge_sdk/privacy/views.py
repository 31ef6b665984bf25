"""Other readings of a text: escapes resolved, look-alike characters made plain, base64 and hexadecimal decoded.

A view knows where each of its characters stands in the text it was made from, so what is found in it can be cut out
of the original. It knows nothing of what is looked for. Not undone: text that is spelled backwards, with its
letters spaced out, by a cipher, compressed, or split over several messages.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote_to_bytes


@dataclass(frozen=True, slots=True)
class View:
    """A reading of a text. Character i of `text` comes from `original[starts[i]:ends[i]]`."""

    text: str
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def original(self, start: int, end: int) -> tuple[int, int]:
        """The span of the original that `text[start:end]` (not empty) was read from."""
        return self.starts[start], self.ends[end - 1]

    def after(self, earlier: View) -> View:
        """This reading, made from the text of an earlier one, as a reading of that one's original."""
        starts = tuple(earlier.starts[at] for at in self.starts)
        return View(self.text, starts, tuple(earlier.ends[at - 1] for at in self.ends))


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a run of base64 or hexadecimal at `start:end` of the original may say, one text for each alignment."""

    start: int
    end: int
    texts: tuple[str, ...]


# --- characters -------------------------------------------------------------------------------------

# Letters of other scripts that look like Latin ones (Unicode TR 39 confusables, those that a keyboard has).
_LOOKS_LIKE = {
    other: latin
    for others, latins in (
        ("АВЕЅІЈКМНОРСТУХаеѕіјорсухһԁԛԝ", "ABESIJKMHOPCTYXaesijopcyxhdqw"),  # Cyrillic
        ("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧοανρικ", "ABEZHIKMNOPTYXoavpik"),  # Greek
        ("‚·∙•․。", ",....."),
    )
    for other, latin in zip(others, latins, strict=True)
}
_LOOKS_LIKE |= dict.fromkeys("‐‑‒–—―−﹣－", "-") | dict.fromkeys("“”„«»", '"') | dict.fromkeys("‘’", "'")


@lru_cache(maxsize=4096)
def _plain(character: str) -> str:
    """The plain characters that one looks like; "" for one that is not seen.

    >>> [_plain(c) for c in "４а٣é\\u200b\\u00a0"]
    ['4', 'a', '3', 'e', '', ' ']
    """
    if character in _LOOKS_LIKE:
        return _LOOKS_LIKE[character]
    plain = []
    for part in unicodedata.normalize("NFKD", character):
        digit = unicodedata.decimal(part, None)
        category = unicodedata.category(part)
        if digit is not None:
            plain.append(str(digit))
        elif category == "Zs":
            plain.append(" ")
        elif category not in ("Cf", "Mn", "Me"):  # invisible, or drawn over the letter before
            plain.append(_LOOKS_LIKE.get(part, part))
    return "".join(plain)


def plain_characters(text: str) -> View | None:
    """Full-width and other forms, digits of every script, look-alikes and invisible characters made plain ASCII.

    None where nothing changes.

    >>> plain_characters("4１\\u200b1 ï").text, plain_characters("plain")
    ('411 i', None)
    """
    if text.isascii():
        return None
    parts = [_plain(character) if character > "\x7f" else character for character in text]
    plain = "".join(parts)
    if plain == text:
        return None
    places = tuple(at for at, part in enumerate(parts) for _ in part)
    return View(plain, places, tuple(at + 1 for at in places))


_NUMBER_LIKE = re.compile(r"(?<![^\W_])(?=[OoQIl|SBZЗзб]{0,30}[0-9])[0-9OoQIl|SBZЗзб]{3,}(?![^\W_])")
_DIGITS = str.maketrans("OoQIl|SBZЗзб", "000111582336")


def plain_digits(text: str) -> View | None:
    """Letters in numbers that look like digits made digits; None where there are none.

    >>> plain_digits("Order 4l11-1O11 of OIL").text
    'Order 4111-1011 of OIL'
    """
    plain = _NUMBER_LIKE.sub(lambda match: match[0].translate(_DIGITS), text)
    return None if plain == text else View(plain, tuple(range(len(text))), tuple(range(1, len(text) + 1)))


# --- escapes ----------------------------------------------------------------------------------------

_ESCAPE = re.compile(
    r"(?P<percent>(?:%[0-9A-Fa-f]{2})+)"
    r"|(?P<entity>&(?:\#[0-9]{1,7}|\#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});?)"
    r"|\\(?:u\{(?P<brace>[0-9A-Fa-f]{1,6})\}|u(?P<u>[0-9A-Fa-f]{4})|U(?P<long>[0-9A-Fa-f]{8})|x(?P<x>[0-9A-Fa-f]{2})"
    r"|(?P<octal>[0-3][0-7]{2})|(?P<slash>[/\"']))"
)


def resolved_escapes(text: str) -> View | None:
    """Percent-encoding, HTML entities and backslash escapes resolved, once; None where there are none.

    >>> view = resolved_escapes("jo%40x.de &#52;&#50;")
    >>> view.text, view.original(2, 3)
    ('jo@x.de 42', (2, 5))
    """
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    at = 0

    def add(piece: str, begin: int, stop: int, each: int) -> None:
        """Each character comes from `each` characters of the original, or, with 0, from all of the span."""
        pieces.append(piece)
        if each:
            starts.extend(range(begin, stop, each))
            ends.extend(range(begin + each, stop + 1, each))
        else:
            starts.extend([begin] * len(piece))
            ends.extend([stop] * len(piece))

    for match in _ESCAPE.finditer(text):
        meaning = _meaning(match)
        if meaning == match[0]:
            continue
        add(text[at : match.start()], at, match.start(), 1)
        one_to_one = match.lastgroup == "percent" and 3 * len(meaning) == len(match[0])
        add(meaning, match.start(), match.end(), 3 if one_to_one else 0)
        at = match.end()
    if not pieces:
        return None
    add(text[at:], at, len(text), 1)
    return View("".join(pieces), tuple(starts), tuple(ends))


def _meaning(match: re.Match[str]) -> str:
    if match["percent"]:
        return unquote_to_bytes(match[0]).decode("utf-8", "replace")
    if match["entity"]:
        return html.unescape(match[0])
    if match["slash"]:
        return match["slash"]
    if match["octal"]:
        return chr(int(match["octal"], 8))
    number = int(match["brace"] or match["u"] or match["long"] or match["x"], 16)
    return chr(number) if number < 0x110000 else match[0]


# --- base64 and hexadecimal -------------------------------------------------------------------------

_LETTERS = "[A-Za-z0-9+/_-]"
_BASE64 = re.compile(  # lines of one block, or one run
    rf"(?<!{_LETTERS})(?:(?:{_LETTERS}{{40,}}+\r?\n[ \t]{{0,8}})++{_LETTERS}*+|{_LETTERS}{{10,}}+)={{0,2}}"
)
_HEX = re.compile(
    r"(?<![0-9A-Fa-f])(?:0[xX])?(?:[0-9A-Fa-f]{14,}+|[0-9A-Fa-f]{2}(?:[ :-][0-9A-Fa-f]{2}){6,})(?![0-9A-Fa-f])"
)
_BASE32 = re.compile(r"(?<![A-Za-z0-9])[A-Z2-7]{14,}+={0,6}(?![A-Za-z0-9])")
_PRINTED = re.compile(rb"[\t\n\r -~]{6,}")
_URL_SAFE = str.maketrans("-_", "+/")


def decoded_runs(text: str) -> Iterator[Decoded]:
    """Every run that reads as something printed when it is taken for base64 (any alphabet), base32 or hexadecimal.

    Letters before the run may belong to it by chance, so every alignment is tried.

    >>> [run.texts for run in decoded_runs("x=am9obkBleGFtcGxlLm9yZw")]
    [('john@example.org',)]
    """
    for pattern, alignments in ((_BASE64, _from_base64), (_HEX, _from_hex), (_BASE32, _from_base32)):
        for match in pattern.finditer(text):
            texts = tuple(filter(None, map(_printed, alignments(match[0]))))
            if texts:
                yield Decoded(*match.span(), texts)


def _from_base64(run: str) -> Iterator[bytes]:
    letters = re.sub(r"[\s=]", "", run.translate(_URL_SAFE))
    for skipped in range(4):
        part = letters[skipped:]
        part = part[: len(part) - (len(part) % 4 == 1)]  # one letter is six bits, no byte
        yield base64.b64decode(part + "=" * (-len(part) % 4))


def _from_hex(run: str) -> Iterator[bytes]:
    digits = re.sub(r"[^0-9A-Fa-f]", "", run[2:] if run[:2] in ("0x", "0X") else run)
    for part in (digits, digits[1:]):
        yield bytes.fromhex(part[: len(part) // 2 * 2])


def _from_base32(run: str) -> Iterator[bytes]:
    letters = run.rstrip("=")
    for skipped in range(8):
        part = letters[skipped:]
        part = part[: len(part) - {1: 1, 3: 1, 6: 1}.get(len(part) % 8, 0)]
        try:
            yield base64.b32decode(part + "=" * (-len(part) % 8))
        except binascii.Error:
            continue


def _printed(data: bytes) -> str:
    """The text in decoded bytes; "" where they are only bytes. UTF-16 is read by leaving out the zeros."""
    if b"\0" in data:
        data = data.replace(b"\0", b"")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if text and (text.isprintable() or sum(map(str.isprintable, text)) > 0.9 * len(text)):
        return text
    return "\n".join(part.decode("ascii") for part in _PRINTED.findall(data))


_READINGS: tuple[Callable[[str], View | None], ...] = (
    *(resolved_escapes,) * 3,  # a link in a link is escaped twice
    plain_characters,
    plain_digits,
)


def readings(text: str) -> Iterator[View]:
    """Every step from the text as written to the plainest one, each made from the step before.

    >>> [view.text for view in readings("%2541")]
    ['%41', 'A']
    """
    last: View | None = None
    for read in _READINGS:
        view = read(last.text if last else text)
        if view is not None:
            last = view.after(last) if last else view
            yield last
