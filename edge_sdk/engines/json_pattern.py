"""The regular expressions that a JSON schema may demand of a string. Knows nothing of grammars."""

from __future__ import annotations

import re

from ..errors import GrammarError

_PLAIN = r"[^\\\"^$.\[\](){}|*+?\x00-\x1f\x7f-]"
_PATTERN = re.compile(
    rf"\^(?:{_PLAIN}|-|\\[.\-/+*?()\[\]{{}}|^$]|\((?!\?)|[)|*+?]|\{{\d{{1,3}}(?:,\d{{0,3}})?\}}"
    rf"|\[(?:[a-z]-[a-z]|[A-Z]-[A-Z]|[0-9]-[0-9]|{_PLAIN}|\\[\-\[\]]|[.$(){{}}|*+?])+-?\])*\$"
)
_CLASS_OR_ESCAPE = re.compile(r"\[(?:\\.|[^\]\\])*\]|\\(.)")
_REPEATED_TWICE = re.compile(r"[*+?}][*+?{]")  # lazily, or without giving back: a grammar knows neither


def check_pattern(pattern: object, place: str) -> None:
    """It is put into the grammar nearly as it stands, so it must not match what JSON escapes."""
    if (
        not isinstance(pattern, str)
        or not _PATTERN.fullmatch(pattern)
        or _REPEATED_TWICE.search(_CLASS_OR_ESCAPE.sub("x", pattern))
    ):
        raise GrammarError(
            f"'pattern' of the JSON schema at {place} cannot be enforced",
            hint="it must begin with ^, end with $, and use only plain characters, [a-z], ( ), |, *, +, ? and {}",
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise GrammarError(f"'pattern' of the JSON schema at {place} is no regular expression: {error}") from error


def convertible(pattern: str) -> str:
    r"""The same pattern as the converter understands it.

    It loses the quotes around all but one of several alternatives, does not know all escapes, and repeats with an
    escaped character what stands before it.

    >>> convertible(r"^a\+*|b$")
    '^(a[+]*|b)$'
    """
    inner = _CLASS_OR_ESCAPE.sub(lambda found: _class_of(found[1]) if found[1] else found[0], pattern[1:-1])
    return f"^({inner})$"


def _class_of(character: str) -> str:
    if character == "^":
        return r"[\x5E]"
    return f"[\\{character}]" if character in "[]-" else f"[{character}]"
