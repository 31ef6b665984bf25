"""A folder of results, each named by a hash of all that decides it, so that nothing is made twice.

`STAGE-HASH/` holds a result and, in `stage.json`, what its files are; `STAGE-HASH.part/` one that is being made, or
was when its process ended. One process at a time works in a folder. Knows nothing of what the results are.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_sdk.errors import ConfigError, DiskFullError
from edge_sdk.hub.partial import sync_folder

RECORD = "stage.json"
SCRATCH = "scratch"
"""Within a result that is being made: journals and checkpoints. Gone from one that is done."""
_DIGITS = 16  # of the hash, in a folder's name


@dataclass(frozen=True)
class Result:
    """What a stage has made: files below `folder`, and what it has to say about them.

    `digest` is of the files' names and contents alone: a stage that reads them is made again only if they differ.
    """

    folder: Path
    digest: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    cost: float = 0.0


class Work:
    """The results below `folder`. Not for several threads at once.

    Nothing is written before `hold`, which lets one process at a time in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checked: dict[str, Result] = {}

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Work here, alone. Raises `ConfigError` at once while another process does, and for files that cannot be
        read or written; `DiskFullError`.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _lock(self.folder / ".lock"):
                yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(
                    f"no space is left for {error.filename or self.folder}", hint="free some: what is done is kept"
                ) from error
            raise ConfigError(
                f"{error.filename or self.folder} cannot be used: {error.strerror or error}", hint="check `work`"
            ) from error

    def find(self, stage: str, key: str) -> Result | None:
        """The result of a stage, if it is there and every file has the content that it had; each is read once."""
        name = _name(stage, key)
        if name not in self._checked and (found := _read(self.folder / name, key)) is not None:
            self._checked[name] = found
        return self._checked.get(name)

    def begun(self, stage: str, key: str) -> bool:
        """Whether an earlier run has left something to go on from."""
        return (self.folder / f"{_name(stage, key)}.part" / SCRATCH).is_dir()

    def begin(self, stage: str, key: str) -> Path:
        """The folder to make a result in; what an earlier run has left in its `scratch` is there again."""
        part = self.folder / f"{_name(stage, key)}.part"
        part.mkdir(exist_ok=True)
        for path in part.iterdir():  # results that were being written
            if path.name != SCRATCH:
                _remove(path)
        (part / SCRATCH).mkdir(exist_ok=True)
        return part

    def finish(self, stage: str, key: str, figures: Mapping[str, Any], seconds: float, cost: float) -> Result:
        """What is in the folder of `begin` becomes the result, from one moment to the next."""
        part, final = (self.folder / f"{_name(stage, key)}{suffix}" for suffix in (".part", ""))
        shutil.rmtree(part / SCRATCH)
        record = {"stage": stage, "key": key, "figures": figures, "seconds": seconds, "cost": cost}
        record["files"] = file_digests(part)
        with (part / RECORD).open("w", encoding="utf-8") as file:
            file.write(json.dumps(record, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        _remove(final)  # of which a file was found damaged
        part.rename(final)
        sync_folder(self.folder)
        found = self.find(stage, key)
        assert found is not None, f"{final} was written a moment ago"
        return found

    def last_seconds(self, stage: str) -> float | None:
        """How long the latest result of a stage has taken, whatever it was made from."""
        records = sorted(self.folder.glob(f"{stage}-*/{RECORD}"), key=lambda path: path.stat().st_mtime)
        for path in reversed(records):
            try:
                record = json.loads(path.read_bytes())
                if record["stage"] == stage:
                    return float(record["seconds"])
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
        return None


def stage_key(stage: str, version: int, settings: object, inputs: Mapping[str, str]) -> str:
    """The sha256 of what decides a result: the stage's code, its part of the recipe, the digests of what it reads.

    >>> stage_key("data", 1, {"limit": 3}, {"passages": "ab"})[:8]
    'beb72ba7'
    """
    values = {"stage": stage, "version": version, "settings": settings, "inputs": dict(inputs)}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def input_digest(path: Path) -> str:
    """The sha256 of a file, or of the names and contents in a folder. Raises `ConfigError`."""
    try:
        if path.is_dir():
            return _digest(file_digests(path))
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{error.filename or path} cannot be read: {error.strerror}") from error


def file_digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder, by its name there; hidden files and the record are none."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != RECORD and not any(part.startswith(".") for part in name.split("/")):
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _read(folder: Path, key: str) -> Result | None:
    """A result, or None where it is not there, not whole, or of another key that begins alike."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
        if record["key"] != key or record["files"] != file_digests(folder):
            return None
        return Result(
            folder, _digest(record["files"]), record["figures"], float(record["seconds"]), float(record["cost"])
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _digest(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()


def _name(stage: str, key: str) -> str:
    return f"{stage}-{key[:_DIGITS]}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: two at once cost time; renames keep the results whole
        yield
        return
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process is at work in {path.parent}", hint="wait for it, or name another work folder"
            ) from None
        yield
