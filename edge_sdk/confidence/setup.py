"""What a calibration depends on: the same model file, prompt, sampler and retrieval, or it does not hold.

Knows nothing of calibrations themselves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from .signals import FORMULAS, SIGNALS

SIGNALS_HASH = hashlib.sha256(f"{FORMULAS} {SIGNALS!r}".encode()).hexdigest()[:16]
"""Of the signals' definitions: other signals are other inputs of the fitted model."""
UNCALIBRATED = "there is no calibration; `edge calibrate` makes one"


@dataclass(frozen=True)
class Setup:
    """Everything that a probability was fitted for, by name: hashes of files and texts, and settings.

    >>> Setup({"model": "a", "style": "brief"}).differences(Setup({"model": "a", "style": "full"}))
    ['style']
    """

    parts: Mapping[str, str]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all parts, hexadecimal."""
        return hashlib.sha256(json.dumps(dict(self.parts), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Setup) -> list[str]:
        """The names of the parts that are not the same, sorted."""
        names = self.parts.keys() | other.parts.keys()
        return sorted(name for name in names if self.parts.get(name) != other.parts.get(name))


def short_hash(text: str) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
