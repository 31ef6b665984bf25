"""JSON that has one spelling only: RFC 8785 (JSON Canonicalization Scheme), over the numbers of I-JSON (RFC 7493).

What is hashed and signed is bytes, so reading takes nothing but the bytes that writing would give. Knows nothing of
what the values mean.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any, NoReturn

_LARGEST = 2**53 - 1  # beyond it, readers that take numbers for doubles would see another one


def canonical_json(value: object) -> bytes:
    """The one spelling of a value made of dicts, lists, texts, numbers, booleans and None.

    Raises `ValueError` for what has none: numbers that are not finite, integers beyond 2^53 - 1, lone surrogates,
    keys that are not text, other types.

    >>> canonical_json({"b": [1.0, 1e-7, 1e21], "a": "\\u20ac\\n"})
    b'{"a":"\\xe2\\x82\\xac\\\\n","b":[1,1e-7,1e+21]}'
    """
    try:
        return _text(value).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_canonical(data: bytes) -> Any:
    """The value whose one spelling is `data`. Raises `ValueError` for any other bytes.

    >>> parse_canonical(b'{"a":[1,2.5]}')
    {'a': [1, 2.5]}
    >>> parse_canonical(b'{"a": 1}')
    Traceback (most recent call last):
    ValueError: it is not in canonical form
    """
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_without_twins, parse_int=_integer, parse_constant=_refuse
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if canonical_json(value) != data:
        raise ValueError("it is not in canonical form")
    return value


def _text(value: object) -> str:
    if value is None or isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        if abs(value) > _LARGEST:
            raise ValueError(f"{value:.6g} is beyond the integers that every reader knows")
        return str(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, dict):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"the key {wrong[0]!r} is not text")
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return f"{{{','.join(f'{_text(name)}:{_text(value[name])}' for name in names)}}}"
    raise ValueError(f"{type(value).__name__} has no JSON form")


def _number(value: float) -> str:
    """As ECMAScript's `Number.prototype.toString` writes it: the shortest digits that read back the same.

    >>> [_number(each) for each in (-0.0, 0.000001, 9.5e-7, 123.25, 1e20)]
    ['0', '0.000001', '9.5e-7', '123.25', '100000000000000000000']
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if value == 0:
        return "0"
    sign, figures, exponent = Decimal(repr(value)).as_tuple()
    assert isinstance(exponent, int)
    point = len(figures) + exponent  # the number is 0.DIGITS times ten to this
    digits = "".join(map(str, figures)).rstrip("0")
    if len(digits) <= point <= 21:
        text = digits + "0" * (point - len(digits))
    elif 0 < point <= 21:
        text = f"{digits[:point]}.{digits[point:]}"
    elif -6 < point <= 0:
        text = f"0.{'0' * -point}{digits}"
    else:
        text = f"{digits[0]}{'.' if digits[1:] else ''}{digits[1:]}e{point - 1:+}"
    return "-" * sign + text


def _integer(text: str) -> int | float:
    """Digits as an integer, or as the double that they stand for where that is larger."""
    number = float(text)
    return int(text) if abs(number) <= _LARGEST else number


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name comes twice in one object")
    return result


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
