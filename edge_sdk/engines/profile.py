"""What was measured to be best for a model on this device: written by `edge tune`, read when the model is loaded.

A profile belongs to a model file and a processor: on another processor, or beside another file, it is not used.
Knows nothing of how it was found.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..device import cpu_name
from ..errors import ConfigError

FORMAT = "edge-profile-1"


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a model is loaded and its context set up. None leaves the choice to llama.cpp, but for `repack`."""

    batch: int = 512
    """Tokens of a prompt that are evaluated together."""
    flash_attention: bool | None = None
    cache_type: str = "F16"
    """Of keys and values: F16 or Q8_0."""
    repack: bool | None = None
    """Whether weights are copied for the kernels of single tokens; None decides by the file, see `repacking`."""

    def as_wished(self, *, cache_type: str | None, repack: bool | None) -> Tuning:
        """The same with what a user has chosen, which is not None.

        >>> Tuning(flash_attention=False).as_wished(cache_type="q8_0", repack=None)
        Tuning(batch=512, flash_attention=None, cache_type='Q8_0', repack=None)
        """
        found = self if repack is None else replace(self, repack=repack)
        if cache_type is None:
            return found
        flash = None if cache_type == "q8_0" else self.flash_attention  # without it values stay as they are
        return replace(found, cache_type=cache_type.upper(), flash_attention=flash)


DEFAULT = Tuning()


@dataclass(frozen=True, slots=True)
class Profile:
    """Settings, and the file to load in place of the model's own where that is not empty."""

    model: str
    bytes: int
    file: str = ""
    sha256: str = ""
    threads: int | None = None
    tuning: Tuning = field(default_factory=Tuning)
    device: str = ""
    figures: Mapping[str, object] = field(default_factory=dict)

    def save(self, home: Path) -> Path:
        """Write it below `home`, whole or not at all."""
        path = profile_path(home, self.model, self.bytes)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", "utf-8")
        partial.replace(path)
        return path


def profile_path(home: Path, model: str, size: int) -> Path:
    """Where the profile of a model file of `size` bytes stands."""
    return home / "profiles" / f"{model}-{size}.json"


def find_profile(home: Path, path: Path) -> Profile | None:
    """The profile of a model file on this processor, if there is one and its file is still whole.

    Raises `ConfigError` for a file that cannot be read as a profile: a setting that silently does nothing is worse.
    """
    try:
        size = path.stat().st_size
        content = profile_path(home, path.stem, size).read_text("utf-8")
    except OSError:
        return None
    where = profile_path(home, path.stem, size)
    try:
        found = json.loads(content)
        if found.pop("format") != FORMAT:
            raise ValueError("it has another format")
        tuning = Tuning(**found.pop("tuning"))
        profile = Profile(**found, tuning=tuning)
        usable = tuning.cache_type in ("F16", "Q8_0") and tuning.repack in (None, True, False)
        if not isinstance(tuning.batch, int) or tuning.batch < 1 or not usable:
            raise ValueError("its settings cannot be used")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{where} is no profile: {error}", hint="delete it and run `edge tune` again") from error
    if profile.device != cpu_name() or (profile.file and not Path(profile.file).is_file()):
        return None
    return profile
