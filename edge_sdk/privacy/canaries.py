"""Planted secrets: made-up values of every kind, plain and encoded, and the search for them in what was sent.

They are drawn from a seed, so no text that looks like a key stands in a file. It knows nothing of the gate
that they test, and looks for fragments, so that half a key that leaves counts as a leak.
"""

from __future__ import annotations

import base64
import html
import json
import string
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice, product
from random import Random
from urllib.parse import quote

from .checksums import luhn

_FRAGMENT = 8  # letters and digits of a secret in a row
_ALPHANUMERIC = string.ascii_letters + string.digits
_ZERO_WIDTH_SPACE = "\u200b"


@dataclass(frozen=True, slots=True)
class Canary:
    """A secret of `kind`; `text` is a sentence that holds it as it is or in `encoding`."""

    kind: str
    encoding: str
    secret: str
    encoded: str
    text: str


def canaries(count: int = 200, seed: int = 0) -> tuple[Canary, ...]:
    """`count` different secrets, every kind in every encoding in turn; the same ones for the same seed.

    >>> [canary.encoding for canary in canaries(3)]
    ['plain', 'plain', 'plain']
    >>> len({canary.secret for canary in canaries(200)})
    200
    """
    random = Random(seed)
    made = []
    for turn, ((encoding, encode), (kind, make, around)) in enumerate(_cycle(count)):
        secret = make(random)
        encoded = encode(secret)
        made.append(
            Canary(kind, encoding, secret, encoded, f"Note {turn}: {around.format(encoded)} is what it says.")
        )
    return tuple(made)


def leaks(sent: Iterable[bytes], planted: Iterable[Canary]) -> list[Canary]:
    """Those of which eight letters or digits in a row, as they are or encoded, are in one of the bodies.

    What several of them have in common, such as the first line of a private key, tells none of them apart.
    """
    seen: set[str] = set()
    for body in sent:
        seen |= _fragments(_strings(body))
    own = [(each, _fragments(each.secret) | _fragments(each.encoded)) for each in planted]
    holders = Counter(fragment for _, fragments in own for fragment in fragments)
    return [each for each, fragments in own if any(holders[fragment] == 1 for fragment in fragments & seen)]


# --- what is drawn ----------------------------------------------------------------------------------


def _letters(random: Random, length: int, alphabet: str = _ALPHANUMERIC) -> str:
    return "".join(random.choices(alphabet, k=length))


def _drawn(prefix: str, length: int, alphabet: str = _ALPHANUMERIC) -> Callable[[Random], str]:
    return lambda random: prefix + _letters(random, length, alphabet)


def _pem(random: Random) -> str:
    body = "\n".join(_letters(random, 64, _ALPHANUMERIC + "+/") for _ in range(4))
    return f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----"


def _token(random: Random) -> str:
    head = base64.urlsafe_b64encode(b'{"alg":"HS256"}').decode().rstrip("=")
    return f"{head}.{_letters(random, 40)}.{_letters(random, 43)}"


def _card(random: Random) -> str:
    digits = "4" + _letters(random, 14, string.digits)
    digits += next(last for last in string.digits if luhn(digits + last))
    separator = random.choice(("", " ", "-"))
    return separator.join(digits[at : at + 4] for at in range(0, 16, 4))


def _iban(random: Random) -> str:
    account = _letters(random, 18, string.digits)
    check = 98 - int(account + "131400") % 97  # D is 13, E is 14
    compact = f"DE{check:02}{account}"
    return " ".join(compact[at : at + 4] for at in range(0, 22, 4))


def _address(random: Random) -> str:
    return ":".join(["2001", "db8", *(f"{random.randrange(0x1000, 0x10000):x}" for _ in range(6))])


def _phone(random: Random) -> str:
    return f"+49 {_letters(random, 3, '123456789')} {_letters(random, 8, '123456789')}"


_KINDS: tuple[tuple[str, Callable[[Random], str], str], ...] = (
    ("private key", _pem, "{}"),
    ("AWS key", _drawn("AKIA", 16, string.ascii_uppercase + string.digits), "the id {}"),
    ("AWS secret", _drawn("", 40, _ALPHANUMERIC + "+/"), "aws_secret_access_key = {}"),
    ("Google key", _drawn("AIza", 35), "{}"),
    ("Azure key", lambda random: _letters(random, 86, _ALPHANUMERIC + "+/") + "==", "AccountKey={}"),
    ("GitHub token", _drawn("ghp_", 36), "{}"),
    ("GitLab token", _drawn("glpat-", 20), "{}"),
    ("Slack token", _drawn("xoxb-", 40), "{}"),
    ("Stripe key", _drawn("sk_live_", 24), "{}"),
    ("model key", _drawn("sk-", 40), "{}"),
    ("JSON web token", _token, "{}"),
    ("password", _drawn("", 14), "password: {}"),
    ("connection string", _drawn("", 16), "postgres://jo:{}@db.example/main"),
    ("random string", _drawn("", 48), "{}"),
    ("card", _card, "{}"),
    ("IBAN", _iban, "{}"),
    ("IPv4", lambda random: ".".join(str(random.randrange(100, 250)) for _ in range(4)), "host {}"),
    ("IPv6", _address, "host {}"),
    ("e-mail", lambda random: f"{_letters(random, 10).lower()}@{_letters(random, 8).lower()}.example", "{}"),
    ("phone", _phone, "{}"),
)


def _characters(form: str) -> Callable[[str], str]:
    return lambda text: "".join(form.format(ord(character)) for character in text)


def _full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def _other_digits(text: str) -> str:
    """Arabic-Indic digits, and Cyrillic letters for those that look alike."""
    return text.translate(str.maketrans(string.digits + "aeoAE", "٠١٢٣٤٥٦٧٨٩аеоАЕ"))


_ENCODINGS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("plain", str),
    ("base64", lambda text: base64.b64encode(text.encode()).decode()),
    ("base64 for URLs", lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")),
    ("hexadecimal", lambda text: text.encode().hex()),
    ("percent", _characters("%{:02X}")),
    ("link", lambda text: quote(text, safe="")),
    ("HTML entities", _characters("&#{};")),
    ("HTML", lambda text: html.escape(text).replace("@", "&#x40;").replace(" ", "&nbsp;")),
    ("full width", _full_width),
    ("zero width", lambda text: _ZERO_WIDTH_SPACE.join(text)),
    ("look-alikes", _other_digits),
    ("base64 twice", lambda text: base64.b64encode(base64.b64encode(text.encode())).decode()),
)


def _cycle(count: int) -> list[tuple[tuple[str, Callable[[str], str]], tuple[str, Callable[[Random], str], str]]]:
    every = list(product(_ENCODINGS, _KINDS))
    return list(islice((pair for _ in range(count // len(every) + 1) for pair in every), count))


# --- what was sent ----------------------------------------------------------------------------------


def _fragments(text: str) -> set[str]:
    compact = "".join(filter(str.isalnum, text)).casefold()
    return {compact[at : at + _FRAGMENT] for at in range(max(1, len(compact) - _FRAGMENT + 1))}


def _strings(body: bytes) -> str:
    """All text in a JSON document, its escapes resolved; the body itself where it is none."""
    try:
        content = json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
    texts, left = [], [content]
    while left:
        each = left.pop()
        if isinstance(each, str):
            texts.append(each)
        elif isinstance(each, dict):
            left += [*each.keys(), *each.values()]
        elif isinstance(each, list):
            left += each
    return "\n".join(texts)
