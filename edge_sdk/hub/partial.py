"""A file that is on its way: written to `NAME.part`, hashed while it grows, checked, then renamed into place.

Under its final name a file is always complete and right. Knows nothing of where the bytes come from.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from ..errors import DiskFullError, DownloadError, ModelDamagedError, ModelError

_BLOCK = 1 << 20
_NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


class PartialFile:
    """The `.part` of one file, open for writing as a context manager; what is written stays for a later try.

    A `.part.json` beside it holds the source it came from and that source's entity tag. `size` is what has been
    taken so far (0 until `resume` or `write`), `expected` what the whole file has.
    """

    def __init__(self, folder: Path, name: str, expected: int, sha256: str) -> None:
        self.folder, self.name, self.expected, self.sha256 = folder, name, expected, sha256
        self.size = 0
        self.etag = ""
        self._path = folder / f"{name}.part"
        self._mark = folder / f"{name}.part.json"
        self._digest = hashlib.sha256()

    def __enter__(self) -> PartialFile:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._file = os.fdopen(os.open(self._path, flags, 0o644), "r+b", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        with suppress(OSError):  # gone after `commit`
            if self._path.stat().st_size == 0:
                self._path.unlink()
                self._mark.unlink(missing_ok=True)

    def bytes_on_disk(self) -> int:
        """Bytes that an earlier try left, or that this one wrote."""
        return os.fstat(self._file.fileno()).st_size

    def resume(self, source: str | None = None) -> None:
        """Take up what an earlier try left, if it came from `source`; None: from any.

        What another source left is not taken up but stays until `restart`, as this one may yet fail.
        """
        origin, etag = self._read_mark()
        self._rewind()
        if source not in (None, origin):
            self.etag = ""
        elif self.bytes_on_disk() > self.expected:
            self.restart()
        else:
            self.etag = etag
            while block := self._file.read(_BLOCK):
                self._count(block)

    def restart(self, source: str = "", etag: str = "") -> None:
        """Begin again with nothing, from `source`."""
        self._rewind()
        self._file.truncate()
        self.etag = etag
        self._mark.unlink(missing_ok=True)
        if source:
            self._mark.write_text(json.dumps({"source": source, "etag": etag}))

    def write(self, block: bytes) -> None:
        """Append, after `resume` or `restart`. Raises `DownloadError` beyond the size that the file must have."""
        if self.size + len(block) > self.expected:
            raise DownloadError(f"more than the {self.expected} bytes of {self.name} came")
        view = memoryview(block)
        while view:  # unbuffered, so a full disk may take a part of a block and fail at the next
            view = view[self._file.write(view) :]
        self._count(block)

    def check(self) -> None:
        """Raise `ModelDamagedError` unless size and hash are the expected ones."""
        if self.size != self.expected:
            raise ModelDamagedError(f"{self.name} has {self.size} bytes, expected {self.expected}")
        if (digest := self._digest.hexdigest()) != self.sha256:
            raise ModelDamagedError(f"{self.name} has sha256 {digest}, expected {self.sha256}")

    def is_right(self) -> bool:
        """Whether size and hash are the expected ones."""
        return self.size == self.expected and self._digest.hexdigest() == self.sha256

    def commit(self) -> None:
        """Check, then put the file under its final name, durably."""
        self.check()
        os.fsync(self._file.fileno())
        self._path.replace(self.folder / self.name)
        self._mark.unlink(missing_ok=True)
        sync_folder(self.folder)

    def _read_mark(self) -> tuple[str, str]:
        try:
            mark = json.loads(self._mark.read_bytes())
            return str(mark["source"]), str(mark["etag"])
        except (OSError, ValueError, KeyError, TypeError):
            return "", ""

    def _rewind(self) -> None:
        self._file.seek(0)
        self.size, self._digest = 0, hashlib.sha256()

    def _count(self, block: bytes) -> None:
        self.size += len(block)
        self._digest.update(block)


def hash_file(path: Path) -> str:
    """The sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable, where the system allows it."""
    with suppress(OSError):  # Windows cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


_HOME = "set EDGE_HOME to"
OUT = "write to"
"""How a hint goes on, before the better folder, where the user has named the one that is written to."""


@contextmanager
def storage_errors(folder: Path, *, instead: str = _HOME) -> Iterator[None]:
    """Turn an `OSError` of writing below `folder` into `DiskFullError` or `ModelError`."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise disk_full(f"no space left for {folder}: {error.strerror}", instead=instead) from error
        raise ModelError(
            f"{error.filename or folder} cannot be used: {error.strerror or error}",
            hint=f"{instead} a folder that can be written",
        ) from error


def disk_full(message: str, *, instead: str = _HOME) -> DiskFullError:
    """The error, with what to do about it."""
    return DiskFullError(message, hint=f"free some space or {instead} a folder on another disk")
