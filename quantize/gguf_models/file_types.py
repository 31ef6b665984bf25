"""The file types that llama.cpp's quantizer takes, by the names that its users know.

A file type is a rule that gives each tensor a type; most tensors get its base type. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache

from edge_sdk.engines.llama_library import library
from edge_sdk.errors import ConfigError
from edge_sdk.model_files.gguf_header import TENSOR_TYPES

_BASES = {
    "IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S", "IQ3_XS": "IQ3_S", "IQ3_M": "IQ3_S", "MXFP4_MOE": "MXFP4",
    **{f"{base}_{size}": base for base in ("Q2_K", "Q3_K", "Q4_K", "Q5_K") for size in "SML"},
}  # fmt: skip
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_REFUSED = ("NVFP4",)  # llama.cpp has a number for it, but its quantizer does not take it
_PREFIXES = ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_")
_NUMBERS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
_BITS = {name: 8 * size / block for name, block, size in TENSOR_TYPES.values()}


@dataclass(frozen=True, slots=True)
class FileType:
    """A file type, its number, and the type of most of its tensors with the bits that a weight takes there."""

    name: str
    number: int
    base: str
    bits_per_weight: float


@cache
def file_types() -> Mapping[str, FileType]:
    """Every type that the installed library takes, from few bits to many."""
    found = []
    for constant, number in vars(library()).items():
        prefix = next((each for each in _PREFIXES if constant.startswith(each)), None)
        name = constant.removeprefix(prefix or "")
        base = _BASES.get(name, name)
        if prefix and base in _BITS and name not in _REFUSED:
            found.append(FileType(name, int(number), base, _BITS[base]))
    return {each.name: each for each in sorted(found, key=lambda each: (each.bits_per_weight, each.name))}


def file_type(name: str) -> FileType:
    """The file type of a name, in any case. Raises `ConfigError` with the names that come close."""
    types, wanted = file_types(), _ALIASES.get(name.upper(), name.upper())
    if wanted not in types:
        close = get_close_matches(wanted, types, 3, 0.4)
        raise ConfigError(
            f"there is no quantization type {name!r}",
            hint=f"did you mean {' or '.join(close)}?" if close else "see `edge quantize --list-types`",
        )
    return types[wanted]


def tensor_number(name: str) -> int:
    """ggml's number of a type that a tensor can be made. Raises `ConfigError` for any other.

    >>> tensor_number("q6_K")
    14
    """
    if name.upper() not in {each.base for each in file_types().values()}:
        makeable = sorted({each.base for each in file_types().values()})
        raise ConfigError(f"no tensor can be made {name!r}", hint=f"take one of {', '.join(makeable)}")
    return _NUMBERS[name.upper()]
