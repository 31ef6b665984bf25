"""The folder of kept prefixes: found again by key, bounded in bytes, shared by any number of processes.

`FOLDER/KEY/NAME.kv`; a file's time of change is the time of its last use, and the files longest unused go first.
What is damaged is deleted, and a folder that cannot be used is like an empty one: nothing here is ever an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..device import free_disk
from .engine import file_fingerprint
from .prefix_file import PART, SUFFIX, Prefix, Tokens, read_prefix, read_tokens, write_prefix

FOLDER = "prefixes"
"""The folder under EDGE_HOME."""
_HASHES = "models.json"
_ABANDONED = 3600.0  # seconds after which a part that nobody finished is deleted
_SHOWN = 32  # hexadecimal digits of a hash in a name


class PrefixFolder:
    """At most `limit` bytes of prefixes below `folder`, of all models and settings together."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._known: dict[Path, Tokens] = {}  # files never change: a file of this name has these tokens

    def path(self, key: bytes, tokens: Tokens) -> Path:
        """Where a prefix of exactly these tokens stands, or would."""
        return self._of(key) / f"{hashlib.sha256(tokens.tobytes()).hexdigest()[:_SHOWN]}{SUFFIX}"

    def prefixes(self, key: bytes) -> dict[Path, Tokens]:
        """The prefixes of a key. Only what has come since the last time is read."""
        found: dict[Path, Tokens] = {}
        with suppress(OSError):
            paths = [Path(entry.path) for entry in os.scandir(self._of(key)) if entry.name.endswith(SUFFIX)]
            for path in paths:
                tokens = self._known.get(path)
                if tokens is None:
                    tokens = self._read(path, key)
                if tokens is not None:
                    found[path] = tokens
        self._known = found
        return dict(found)

    def load(self, path: Path, key: bytes) -> Prefix | None:
        """Read a prefix, which counts as using it; None where it is gone or damaged."""
        try:
            prefix = read_prefix(path, key)
        except (ValueError, OSError, MemoryError) as error:
            self.drop(path, damaged=isinstance(error, ValueError))
            return None
        self.touch(path)
        return prefix

    def touch(self, path: Path) -> None:
        """Count a prefix as used now."""
        with suppress(OSError):
            os.utime(path)

    def drop(self, path: Path, *, damaged: bool = True) -> None:
        """Forget a prefix; one that could merely not be read now stays on the disk."""
        self._known.pop(path, None)
        if damaged:
            with suppress(OSError):
                path.unlink()

    def save(self, path: Path, key: bytes, prefix: Prefix) -> bool:
        """Write a prefix and make room; False where that cannot be done. `limit` bytes of the disk stay free."""
        size = len(prefix.state)
        try:
            if size > self.limit or free_disk(self.folder) < size + self.limit:
                return False
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_prefix(path, key, prefix)
        except OSError:
            return False
        self._evict()
        return True

    def usage(self) -> tuple[int, int]:
        """How many prefixes there are, and their bytes."""
        sizes = [size for path, size, _ in self._files() if path.suffix == SUFFIX]
        return len(sizes), sum(sizes)

    def clear(self) -> int:
        """Delete everything; the bytes freed."""
        freed = 0
        for path, size, _ in list(self._files()):
            with suppress(OSError):
                path.unlink()
                freed += size
        with suppress(OSError):
            (self.folder / _HASHES).unlink()
        self._known = {}
        self._remove_empty()
        return freed

    def model_hash(self, path: Path) -> str:
        """The SHA-256 of a model's file; remembered with the file's size and time, so that it is read once.

        Raises `EngineError` where the file cannot be read.
        """
        try:
            facts = path.stat()
        except OSError:
            return file_fingerprint(path)
        mark = [facts.st_size, facts.st_mtime_ns]
        place, known = str(path.resolve()), self._hashes()
        entry = known.get(place)
        if isinstance(entry, list) and entry[:-1] == mark and isinstance(entry[-1], str):
            return entry[-1]
        found = file_fingerprint(path)
        part = self.folder / f"{_HASHES}.{os.getpid()}{PART}"
        with suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            there = {name: row for name, row in known.items() if Path(name).exists()}
            part.write_text(json.dumps({**there, place: [*mark, found]}))
            part.replace(self.folder / _HASHES)
        return found

    # --- inside -------------------------------------------------------------------------------------

    def _of(self, key: bytes) -> Path:
        return self.folder / key.hex()[:_SHOWN]

    def _read(self, path: Path, key: bytes) -> Tokens | None:
        try:
            return read_tokens(path, key)
        except (ValueError, OSError) as error:
            self.drop(path, damaged=isinstance(error, ValueError))
            return None

    def _hashes(self) -> dict[str, object]:
        try:
            found = json.loads((self.folder / _HASHES).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _files(self) -> Iterator[tuple[Path, int, float]]:
        """Every prefix and every part, with its size and the time of its last use."""
        for path in [*self.folder.glob(f"*/*{SUFFIX}"), *self.folder.glob(f"*/*{PART}")]:
            with suppress(OSError):  # another process was faster
                facts = path.lstat()
                yield path, facts.st_size, facts.st_mtime

    def _evict(self) -> None:
        files = sorted(self._files(), key=lambda file: file[2])
        over = sum(size for _, size, _ in files) - self.limit
        for path, size, used in files:
            abandoned = path.suffix == PART and time.time() - used > _ABANDONED
            if abandoned or (over > 0 and path.suffix == SUFFIX):
                with suppress(OSError):
                    path.unlink()
                over -= size
        self._remove_empty()

    def _remove_empty(self) -> None:
        with suppress(OSError):
            for folder in [*self.folder.iterdir()]:
                with suppress(OSError):  # a folder that is not empty stays
                    folder.rmdir()
