"""A bundle as one file, NAME.edge: an uncompressed zip (APPNOTE 6.3.9) whose every byte follows from its content.

It is read by one rule: it must be, byte for byte, what `write_archive` writes for the manifest at its beginning. So
there is nothing to interpret, and no second reading: no compression, encryption, links, comments, gaps, overlaps,
names twice or sizes that disagree. Knows nothing of what the files mean.
"""

from __future__ import annotations

import hashlib
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

from ..errors import BundleError
from .manifest import MANIFEST, MAX_MANIFEST, SIGNATURE, BundleFile, Manifest
from .signature import MAX_SIGNATURE

BLOCK: Final = 1 << 20
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_LIMIT = 0xFFFFFFFF  # from here on a number stands in a zip64 field instead
_DATE = 1 << 5 | 1  # 1 January 1980, the earliest there is
_MODE = (stat.S_IFREG | 0o644) << 16
_UNIX = 3 << 8
_HINT = "get the bundle again"


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside the archive: what its header says."""

    name: str
    bytes: int
    crc: int


class Archive:
    """An open archive whose headers are all right; the content of its files is checked when it is read."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Use `open_archive`; this checks everything but the content of the files."""
        self.path, self._file = path, file
        self.bytes = file.seek(0, 2)
        self._at: dict[str, tuple[int, Member]] = {}
        self.manifest_bytes = self._small(0, MANIFEST, MAX_MANIFEST)
        self.manifest = read_manifest(path, self.manifest_bytes)
        at = self._end_of(MANIFEST)
        self.signature: bytes | None = None
        if self._read(at + _LOCAL.size, len(SIGNATURE)) == SIGNATURE.encode():
            self.signature = self._small(at, SIGNATURE, MAX_SIGNATURE)
            at = self._end_of(SIGNATURE)
        for entry in self.manifest.files:
            member = self._member(at)
            if (member.name, member.bytes) != (entry.path, entry.bytes):
                self._fail(
                    f"byte {at} holds {member.name!r} of {member.bytes} bytes, "
                    f"the manifest has {entry.path!r} of {entry.bytes}"
                )
            at = self._end_of(entry.path)
        end = directory(self.members)
        if self.bytes != at + len(end) or self._read(at, len(end)) != end:
            self._fail(f"from byte {at} on it is not the directory of its files")

    @property
    def members(self) -> list[Member]:
        """All files in their order, `bundle.json` first."""
        return [member for _, member in self._at.values()]

    def blocks(self, entry: BundleFile) -> Iterator[bytes]:
        """The content of a file. Raises `BundleError` after the last block unless size and hashes are right."""
        digest, crc = hashlib.sha256(), 0
        for block in self.raw_blocks(entry.path):
            digest.update(block)
            crc = zlib.crc32(block, crc)
            yield block
        if digest.hexdigest() != entry.sha256:
            self._fail(f"{entry.path} has sha256 {digest.hexdigest()}, the manifest has {entry.sha256}")
        if crc != self._at[entry.path][1].crc:
            self._fail(f"{entry.path} has another CRC-32 than its header says")

    def raw_blocks(self, name: str) -> Iterator[bytes]:
        """The content of a file, unchecked."""
        at, member = self._at[name]
        at += len(local_header(member))
        for offset in range(0, member.bytes, BLOCK):
            yield self._read(at + offset, min(BLOCK, member.bytes - offset))

    def _small(self, at: int, name: str, most: int) -> bytes:
        """The content of one of the two files that the manifest does not list."""
        member = self._member(at)
        if member.name != name or member.bytes > most:
            self._fail(f"byte {at} holds {member.name!r} of {member.bytes} bytes, not {name}")
        content = b"".join(self.raw_blocks(name))
        if zlib.crc32(content) != member.crc:
            self._fail(f"{name} has another CRC-32 than its header says")
        return content

    def _member(self, at: int) -> Member:
        """The file whose header is at a byte; its content lies within the archive."""
        raw = self._read(at, _LOCAL.size)
        signature, _, flags, method, _, _, crc, _, size, length, _ = _LOCAL.unpack(raw)
        if signature != b"PK\3\4":
            self._fail(f"byte {at} begins no file")
        if flags & 1 or method:
            self._fail(f"the file at byte {at} is {'encrypted' if flags & 1 else 'compressed'}")
        name = self._read(at + _LOCAL.size, length)
        if not name.isascii() or not name.decode("latin-1").isprintable():
            self._fail(f"the file at byte {at} has the name {name[:60]!r}")
        if size == _LIMIT:
            size = struct.unpack("<4xQ8x", self._read(at + _LOCAL.size + length, 20))[0]
        member = Member(name.decode(), size, crc)
        if member.name in self._at:
            self._fail(f"{member.name!r} comes twice")
        header = local_header(member)
        if self._read(at, len(header)) != header:
            self._fail(f"the header of {member.name!r} at byte {at} is not as bundles have it")
        if at + len(header) + size > self.bytes:
            self._fail(f"it ends at byte {self.bytes}, inside {member.name!r}")
        self._at[member.name] = at, member
        return member

    def _end_of(self, name: str) -> int:
        at, member = self._at[name]
        return at + len(local_header(member)) + member.bytes

    def _read(self, at: int, count: int) -> bytes:
        try:
            self._file.seek(at)
            content = self._file.read(count)
        except OSError as error:
            raise BundleError(f"{self.path} cannot be read: {error.strerror or error}") from error
        if len(content) != count:
            self._fail(f"it ends at byte {at + len(content)}, {at + count} are needed")
        return content

    def _fail(self, message: str) -> NoReturn:
        raise BundleError(f"{self.path.name} is not a sound bundle: {message}", hint=_HINT)


def read_manifest(path: Path, data: bytes) -> Manifest:
    """The manifest of the bundle at `path`. Raises `BundleError` naming both."""
    try:
        return Manifest.from_bytes(data)
    except BundleError as error:
        raise BundleError(f"{path.name}: {error.message}", hint=error.hint or _HINT) from error


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an archive and check its headers and its manifest: some milliseconds, whatever the files weigh.

    Raises `BundleError`.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BundleError(f"{path} is neither a file nor a folder", hint=_HINT)
        file = path.open("rb")
    except FileNotFoundError:
        raise BundleError(f"there is no bundle {path}", hint="name a .edge file or the folder of one") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    with file:
        yield Archive(path, file)


def write_archive(file: BinaryIO, content: Iterable[tuple[Member, Iterable[bytes]]]) -> int:
    """Write an archive and return its bytes; `bundle.json` must come first, then `signature.json` if there is one.

    Raises `BundleError` where the content is not what its member says, as when a file changes meanwhile.
    """
    members: list[Member] = []
    for member, blocks in content:
        file.write(local_header(member))
        size = crc = 0
        for block in blocks:
            file.write(block)
            size, crc = size + len(block), zlib.crc32(block, crc)
        if (size, crc) != (member.bytes, member.crc):
            raise BundleError(f"{member.name} changed while it was written", hint="try again")
        members.append(member)
    file.write(directory(members))
    return file.tell()


def member_of(name: str, content: bytes) -> Member:
    """The member for content in memory."""
    return Member(name, len(content), zlib.crc32(content))


def local_header(member: Member) -> bytes:
    """What stands before a file."""
    large = member.bytes >= _LIMIT
    extra = struct.pack("<2H2Q", 1, 16, member.bytes, member.bytes) if large else b""
    size = _LIMIT if large else member.bytes
    name = member.name.encode()
    fixed = (_version(large), 0, 0, 0, _DATE, member.crc, size, size, len(name), len(extra))
    return _LOCAL.pack(b"PK\3\4", *fixed) + name + extra


def directory(members: Sequence[Member]) -> bytes:
    """What follows the last file: the central directory and its end, zip64 where a number needs it."""
    parts, start = [], 0
    for member in members:
        parts.append(_central_header(member, start))
        start += len(local_header(member)) + member.bytes
    entries = b"".join(parts)
    size, count = len(entries), len(members)
    large = start >= _LIMIT
    tail = b""
    if large:
        numbers = (_UNIX | _version(True), _version(True), 0, 0, count, count, size, start)
        tail += _END64.pack(b"PK\6\6", _END64.size - 12, *numbers)
        tail += _LOCATOR.pack(b"PK\6\7", 0, start + size, 1)
    tail += _END.pack(b"PK\5\6", 0, 0, count, count, size, _LIMIT if large else start, 0)
    return entries + tail


def _central_header(member: Member, start: int) -> bytes:
    numbers = [member.bytes] * 2 * (member.bytes >= _LIMIT) + [start] * (start >= _LIMIT)
    extra = struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""
    version, size, name = _version(bool(numbers)), min(member.bytes, _LIMIT), member.name.encode()
    fixed = (_UNIX | version, version, 0, 0, 0, _DATE, member.crc, size, size, len(name), len(extra), 0, 0, 0)
    return _CENTRAL.pack(b"PK\1\2", *fixed, _MODE, min(start, _LIMIT)) + name + extra


def _version(large: bool) -> int:
    return 45 if large else 20
