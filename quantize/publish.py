"""Writes bundles whole or not at all, and signs them: what was written is opened as a device will open it first.

Knows nothing of what is in a bundle.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from edge_sdk.bundle.archive import BLOCK, Member, member_of, open_archive, write_archive
from edge_sdk.bundle.cache import Progress, Verification, verify_bundle
from edge_sdk.bundle.manifest import MANIFEST, SIGNATURE
from edge_sdk.bundle.signature import sign
from edge_sdk.device import free_disk
from edge_sdk.errors import BundleError
from edge_sdk.hub.partial import OUT, disk_full, sync_folder


def sign_bundle(path: Path, private_key: Path, *, progress: Progress | None = None) -> Verification:
    """Sign a bundle in place, after every byte of it was checked; an older signature is replaced.

    Raises `BundleError`, `SignatureError`, `DiskFullError` and `MissingExtraError`; the bundle is then as it was.
    """
    try:
        if path.is_dir():
            return _sign_folder(path, private_key, progress)
        with open_archive(path) as archive:
            signature = sign(archive.manifest_bytes, private_key)
            members: list[tuple[Member, Iterable[bytes]]] = [
                (member_of(MANIFEST, archive.manifest_bytes), [archive.manifest_bytes]),
                (member_of(SIGNATURE, signature), [signature]),
            ]
            by_name = {member.name: member for member in archive.members}
            members += [(by_name[entry.path], archive.blocks(entry)) for entry in archive.manifest.files]
            return publish(members, path, archive.manifest.total_bytes, progress)
    except OSError as error:
        raise BundleError(f"{error.filename or path} cannot be used: {error.strerror or error}") from error


def publish(
    content: Iterable[tuple[Member, Iterable[bytes]]], out: Path, size: int, progress: Progress | None
) -> Verification:
    """Write to a temporary name, open that as a device does, and only then put it in its place."""
    free = free_disk(out.parent)
    if free < 2 * size + BLOCK:  # the archive, and its files while they are checked
        raise disk_full(
            f"{out.name} needs {2 * size / 1e6:,.0f} MB while it is made, {free / 1e6:,.0f} MB are free",
            instead=OUT,
        )
    with _temporary(out) as (file, part):
        write_archive(file, content)
        file.flush()
        os.fsync(file.fileno())
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as home:
            found = verify_bundle(part, Path(home), progress=progress)
        part.replace(out)
    sync_folder(out.parent)
    return found


def _sign_folder(path: Path, private_key: Path, progress: Progress | None) -> Verification:
    with tempfile.TemporaryDirectory() as home:
        verify_bundle(path, Path(home), progress=progress)
        content = sign((path / MANIFEST).read_bytes(), private_key)
        beside = path.with_name(f"{path.name}.{SIGNATURE}")  # the folder itself must hold no other file
        with _temporary(beside) as (file, part):
            file.write(content)
            file.flush()
            part.replace(path / SIGNATURE)
        return verify_bundle(path, Path(home), progress=progress)


@contextmanager
def _temporary(out: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside `out`, gone afterwards unless it was renamed. It has the permissions of any new file."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file, part
    finally:
        with suppress(OSError):
            part.unlink()


def blocks_of(path: Path) -> Iterator[bytes]:
    """The content of a file."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block
