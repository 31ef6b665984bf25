"""Opens a bundle: signature, sizes, hashes and structure are checked, and only then is there a folder to load from.

A folder is used where it is. An archive is unpacked once, to `$EDGE_HOME/bundles/ID`, whole or not at all; what was
checked is remembered with size and time of each file, so that opening it again reads no weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..device import free_disk
from ..errors import BundleError
from ..hub.partial import disk_full, storage_errors, sync_folder
from .archive import Archive, open_archive
from .checks import CHECKS, check_structure
from .folder import Folder
from .manifest import MANIFEST, BundleFile, Manifest
from .signature import Signed, check_signature, require_trusted, trusted_keys

BUNDLES = "bundles"
"""The folder under EDGE_HOME."""
Progress = Callable[[float, float | None, str], None]
_SPARE = 1 << 24  # bytes that stay free after unpacking


@dataclass(frozen=True, slots=True)
class Bundle:
    """An open bundle: every file in `folder` is what the manifest says."""

    manifest: Manifest
    folder: Path
    signed: Signed

    def paths(self, role: str) -> tuple[Path, ...]:
        """The files of a role."""
        return tuple(self.folder / entry.path for entry in self.manifest.of(role))

    def directory(self, role: str) -> Path | None:
        """The folder with the files of a role; None where it has none."""
        found = self.paths(role)
        return found[0].parent if found else None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a bundle says, and who has signed that. The content of its files was not read."""

    manifest: Manifest
    signed: Signed
    form: str  # archive or folder
    bytes: int


@dataclass(frozen=True, slots=True)
class Verification:
    """Proof that every byte was read and is right: `checked` says for each path what was found in it."""

    inspection: Inspection
    checked: dict[str, str]


def open_bundle(path: Path, home: Path, *, require_signature: bool = False, keys: Sequence[Path] = ()) -> Bundle:
    """Open an archive or a folder. `keys` are public keys to trust beside those in `$EDGE_HOME/trusted_keys`.

    Raises `BundleError`, `SignatureError` (for a wrong signature always, for none or an unknown key where one is
    required), `DiskFullError`, and for a signed bundle `MissingExtraError` without the package that checks it.
    """
    with _open(path) as source:
        signed = _check_signed(source, home, require_signature, keys)
        folder = _checked(source, home) if isinstance(source, Folder) else _unpacked(source, home)
        return Bundle(source.manifest, folder, signed)


def inspect_bundle(
    path: Path, home: Path, *, require_signature: bool = False, keys: Sequence[Path] = ()
) -> Inspection:
    """What a bundle says; nothing is unpacked. Raises as `open_bundle` does."""
    with _open(path) as source:
        signed = _check_signed(source, home, require_signature, keys)
        form = "folder" if isinstance(source, Folder) else "archive"
        return Inspection(source.manifest, signed, form, source.bytes)


def verify_bundle(
    path: Path,
    home: Path,
    *,
    require_signature: bool = False,
    keys: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Verification:
    """Read every byte and check all of it, whatever was seen before; an archive leaves nothing behind.

    Raises as `open_bundle` does.
    """
    inspection = inspect_bundle(path, home, require_signature=require_signature, keys=keys)
    with _open(path) as source:
        if source.manifest.id != inspection.manifest.id:
            raise BundleError(f"{path} changed while it was read", hint="try again")
        if isinstance(source, Folder):
            _read(source, progress)
            return Verification(inspection, check_structure(source.manifest, source.path))
        root = home / BUNDLES
        with storage_errors(home):
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".verify-", dir=root) as folder:
                _check_room(source, root)
                _fill(source, Path(folder), progress)
                return Verification(inspection, check_structure(source.manifest, Path(folder)))


# --- sources ----------------------------------------------------------------------------------------


@contextmanager
def _open(path: Path) -> Iterator[Archive | Folder]:
    if path.is_dir():
        yield Folder(path)
        return
    with open_archive(path) as archive:
        yield archive


def _check_signed(source: Archive | Folder, home: Path, required: bool, keys: Sequence[Path]) -> Signed:
    trusted = trusted_keys(home, keys) if source.signature is not None else {}
    signed = check_signature(source.manifest_bytes, source.signature, trusted)
    if required:
        require_trusted(signed)
    return signed


def _each(source: Archive | Folder, progress: Progress | None) -> Iterator[tuple[BundleFile, Iterator[bytes]]]:
    done, total = 0, source.manifest.total_bytes
    for entry in source.manifest.files:
        if progress is not None:
            progress(done, total, entry.path)
        yield entry, source.blocks(entry)
        done += entry.bytes


def _read(source: Folder, progress: Progress | None) -> None:
    """Read all files, which checks them."""
    for _, blocks in _each(source, progress):
        for _ in blocks:
            pass


# --- the cache --------------------------------------------------------------------------------------


def _unpacked(archive: Archive, home: Path) -> Path:
    """The folder with the archive's files, unpacked before or now."""
    root, id = home / BUNDLES, archive.manifest.id
    folder, part = root / id, root / f"{id}.part"
    if _is_right(folder, archive, home):
        return folder
    with storage_errors(home):
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f"{id}.lock"):
            if _is_right(folder, archive, home):  # another process was faster
                return folder
            for old in (folder, part):
                shutil.rmtree(old, ignore_errors=True)
            _check_room(archive, root)
            part.mkdir()
            try:
                _fill(archive, part, None)
                check_structure(archive.manifest, part)
                _sync(part)
                part.replace(folder)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            sync_folder(root)
            _remember(Folder(folder), home)
    return folder


def _is_right(folder: Path, archive: Archive, home: Path) -> bool:
    if not folder.is_dir() or folder.is_symlink():
        return False
    try:
        unpacked = Folder(folder)
        if unpacked.manifest_bytes != archive.manifest_bytes:
            return False
        _checked(unpacked, home)
    except BundleError:  # damaged since: it is unpacked again
        return False
    return True


def _checked(source: Folder, home: Path) -> Path:
    """The folder, after its content was checked, unless that was seen before."""
    if _memory(source, home) != _facts(source):
        _read(source, None)
        check_structure(source.manifest, source.path)
        _remember(source, home)
    return source.path


def _fill(archive: Archive, folder: Path, progress: Progress | None) -> None:
    """Write all files, checking them on the way."""
    for entry, blocks in _each(archive, progress):
        path = folder / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, blocks)
    _write(folder / MANIFEST, [archive.manifest_bytes])


def _write(path: Path, blocks: Iterable[bytes]) -> None:
    with path.open("xb") as file:
        for block in blocks:
            file.write(block)


def _sync(folder: Path) -> None:
    """Make what is in a folder durable, before the rename that says that it is complete."""
    for root, _, names in os.walk(folder):
        for name in names:
            with (Path(root) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))


def _check_room(archive: Archive, root: Path) -> None:
    free, wanted = free_disk(root), archive.manifest.total_bytes + _SPARE
    if free < wanted:
        raise disk_full(
            f"{archive.path.name} needs {wanted / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free at {root}"
        )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time unpacks a bundle."""
    try:
        import fcntl
    except ImportError:  # Windows: two at once cost time; the rename keeps the folder whole
        yield
        return
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- what was checked before ------------------------------------------------------------------------


def _facts(source: Folder) -> dict[str, object]:
    sizes = {entry.path: [entry.bytes, source.times[entry.path]] for entry in source.manifest.files}
    return {"id": source.manifest.id, "checks": CHECKS, "files": sizes}


def _memory(source: Folder, home: Path) -> object:
    try:
        return json.loads(_memory_file(source, home).read_bytes())
    except (OSError, ValueError):
        return None


def _remember(source: Folder, home: Path) -> None:
    path = _memory_file(source, home)
    with suppress(OSError):  # a read-only home: then it is checked again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(json.dumps(_facts(source)))
        part.replace(path)


def _memory_file(source: Folder, home: Path) -> Path:
    place = hashlib.sha256(str(source.path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    return home / BUNDLES / "checked" / f"{place[:32]}.json"
