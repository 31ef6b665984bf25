"""A bundle as a folder: `bundle.json` beside its files, as it was built or as an archive was unpacked.

Exactly the files of the manifest are there, as regular files in real folders: one more could change what a model
loader picks. The folder is trusted not to change between the check and the load. Knows nothing of what files mean.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from ..errors import BundleError
from .archive import BLOCK, read_manifest
from .manifest import MANIFEST, MAX_FILES, MAX_MANIFEST, SIGNATURE, BundleFile
from .signature import MAX_SIGNATURE


class Folder:
    """An open folder that holds just what its manifest lists; the content of a file is checked when it is read."""

    def __init__(self, path: Path) -> None:
        """Raises `BundleError`."""
        self.path = path
        try:
            found = dict(self._files())
            self.manifest_bytes = self._small(found, MANIFEST, MAX_MANIFEST)
            self.manifest = read_manifest(path, self.manifest_bytes)
            signed = SIGNATURE in found
            self.signature = self._small(found, SIGNATURE, MAX_SIGNATURE) if signed else None
        except OSError as error:
            raise BundleError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
        self.bytes = sum(status.st_size for status in found.values())
        wanted = {entry.path for entry in self.manifest.files} | {MANIFEST} | ({SIGNATURE} if signed else set())
        if extra := sorted(found.keys() - wanted):
            self._fail(f"{extra[0]!r} is not in the manifest")
        for entry in self.manifest.files:
            if entry.path not in found:
                self._fail(f"{entry.path} is missing")
            if (size := found[entry.path].st_size) != entry.bytes:
                self._fail(f"{entry.path} has {size} bytes, the manifest has {entry.bytes}")
        self.times = {entry.path: found[entry.path].st_mtime_ns for entry in self.manifest.files}

    def blocks(self, entry: BundleFile) -> Iterator[bytes]:
        """The content of a file. Raises `BundleError` after the last block unless its hash is right."""
        digest = hashlib.sha256()
        try:
            with (self.path / entry.path).open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
                    yield block
        except OSError as error:
            raise BundleError(f"{self.path / entry.path} cannot be read: {error.strerror or error}") from error
        if digest.hexdigest() != entry.sha256:
            self._fail(f"{entry.path} has sha256 {digest.hexdigest()}, the manifest has {entry.sha256}")

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Path below the folder, with slashes, and status of every file; links and devices are refused."""
        waiting, left = [self.path], 4 * MAX_FILES
        while waiting:
            with os.scandir(waiting.pop()) as scan:
                entries = list(scan)
            for entry in entries:
                status, name = entry.stat(follow_symlinks=False), Path(entry.path).relative_to(self.path).as_posix()
                left -= 1
                if left < 0:
                    self._fail("it holds too many files")
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(Path(entry.path))
                elif stat.S_ISREG(status.st_mode):
                    yield name, status
                else:
                    self._fail(f"{name!r} is not a regular file")

    def _small(self, found: dict[str, os.stat_result], name: str, most: int) -> bytes:
        if name not in found:
            self._fail(f"it holds no {name}")
        if found[name].st_size > most:
            self._fail(f"{name} has {found[name].st_size} bytes, more than {most}")
        return (self.path / name).read_bytes()

    def _fail(self, message: str) -> NoReturn:
        raise BundleError(f"{self.path} is not a sound bundle: {message}", hint="get the bundle again")
