"""Finds the shared library that `setup.py` builds from the C files in this folder. It may be absent."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _library() -> ctypes.CDLL | None:
    for path in sorted(Path(__file__).parent.glob("_edge_kernels.*")):
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # built for another system
            continue
    return None


def load(name: str) -> Any | None:
    """A function of the library; None where the library is absent, does not load, or is older than `name`."""
    library = _library()
    return None if library is None else getattr(library, name, None)
