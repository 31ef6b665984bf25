"""The archive: an ordinary zip with one form only, and read by comparing with that form."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle_files import content_ranges, make_bundle, manifest_bytes, put_together, take_apart, zipped
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.bundle.archive import (
    Archive,
    Member,
    directory,
    local_header,
    member_of,
    open_archive,
    write_archive,
)
from edge_sdk.errors import BundleError

GIGABYTE = 1 << 30


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


def opened(content: bytes, folder: Path) -> Archive:
    path = folder / "x.edge"
    path.write_bytes(content)
    with open_archive(path) as archive:
        return archive


def test_an_archive_is_what_zipfile_writes(bundle: Path) -> None:
    values, files = take_apart(bundle)
    assert put_together(values, files) == bundle.read_bytes()


def test_every_file_comes_back(bundle: Path) -> None:
    _, files = take_apart(bundle)
    with open_archive(bundle) as archive:
        assert archive.bytes == bundle.stat().st_size
        assert archive.signature is None
        assert [member.name for member in archive.members] == ["bundle.json", *files]
        for entry in archive.manifest.files:
            assert b"".join(archive.blocks(entry)) == files[entry.path]


def test_a_flip_in_a_file_is_found_at_its_end(bundle: Path, tmp_path: Path) -> None:
    content = bytearray(bundle.read_bytes())
    content[content_ranges(bundle)["decoder/tiny-f32.gguf"][-1]] ^= 1
    path = tmp_path / "x.edge"
    path.write_bytes(content)
    with open_archive(path) as archive:
        (entry,) = archive.manifest.of("decoder")
        blocks = archive.blocks(entry)
        assert next(blocks)
        with pytest.raises(BundleError, match=r"decoder/tiny-f32\.gguf has sha256"):
            list(blocks)


def test_a_header_with_another_crc_is_found_though_the_hash_is_right(bundle: Path, tmp_path: Path) -> None:
    with open_archive(bundle) as archive:
        members = [
            Member(each.name, each.bytes, each.crc ^ (each.name == "decoder/tiny-f32.gguf"))
            for each in archive.members
        ]
        content = b"".join(local_header(each) + b"".join(archive.raw_blocks(each.name)) for each in members)
    path = tmp_path / "x.edge"
    path.write_bytes(content + directory(members))
    with open_archive(path) as archive, pytest.raises(BundleError, match="another CRC-32"):
        list(archive.blocks(archive.manifest.of("decoder")[0]))


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"PK\5\6" + bytes(18), bytes(100), zipped([]), zipped([("a", b"b")])]
)
def test_what_is_no_bundle_is_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BundleError, match=r"x\.edge is not a sound bundle") as caught:
        opened(content, tmp_path)
    assert "\n" not in str(caught.value)


def test_nothing_stands_before_after_or_between(bundle: Path, tmp_path: Path) -> None:
    sound = bundle.read_bytes()
    end = sound.rindex(b"PK\5\6")
    for changed in (sound + b"\0", sound + sound, b"\0" + sound, sound[:end] + b"\0" + sound[end:], sound[:-1]):
        with pytest.raises(BundleError, match=r"x\.edge is not a sound bundle"):
            opened(changed, tmp_path)


def test_a_missing_one_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for name, words in (("none", "there is no bundle"), ("", "neither a file nor a folder"), ("pipe", "neither")):
        with pytest.raises(BundleError, match=words), open_archive(tmp_path / name):
            pass


def test_a_manifest_as_large_as_a_model_is_not_read(bundle: Path, tmp_path: Path) -> None:
    values, _ = take_apart(bundle)
    with pytest.raises(BundleError, match=r"not bundle\.json"):
        opened(zipped([("bundle.json", manifest_bytes(values) + bytes(1 << 21))]), tmp_path)


def test_a_file_that_changes_while_it_is_written_is_an_error() -> None:
    member = member_of("a", b"before")
    for now in (b"after.", b"befor", b"before and after"):
        with pytest.raises(BundleError, match="a changed while it was written"):
            write_archive(io.BytesIO(), [(member, [now])])


class Sparse(io.RawIOBase):
    """A file of zeros in which a few places are written: gigabytes that take no room."""

    def __init__(self, parts: dict[int, bytes], size: int) -> None:
        self.parts, self.size, self.at = parts, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (self.size if whence == 2 else self.at if whence == 1 else 0)
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, count: int = -1) -> bytes:
        end = self.size if count < 0 else min(self.size, self.at + count)
        found = bytearray(max(0, end - self.at))
        for start, part in self.parts.items():
            low, high = max(start, self.at), min(start + len(part), end)
            if low < high:
                found[low - self.at : high - self.at] = part[low - start : high - start]
        self.at = max(self.at, end)
        return bytes(found)


@pytest.mark.parametrize(
    "sizes",
    [
        [5, 3 * GIGABYTE, 7],
        [5, 4 * GIGABYTE - 2, 7, 9],
        [5, 4 * GIGABYTE - 1, 7],
        [5, 4 * GIGABYTE, 7],
        [5, 3 * GIGABYTE, 2 * GIGABYTE, 7, 5 * GIGABYTE, 1],
    ],
)
def test_models_beyond_four_gigabytes_are_zip64_as_zipfile_reads_it(sizes: list[int]) -> None:
    members = [Member(f"decoder/{at}", size, at) for at, size in enumerate(sizes)]
    parts, starts, at = {}, [], 0
    for member in members:
        header = local_header(member)
        parts[at] = header
        starts.append(at)
        at += len(header) + member.bytes
    parts[at] = directory(members)
    with zipfile.ZipFile(Sparse(parts, at + len(parts[at]))) as archive:  # type: ignore[arg-type]
        found = archive.infolist()
        for info in found[:: len(found) - 1]:
            archive.open(info).close()  # it compares the local header's name
    assert [(info.filename, info.file_size, info.CRC, info.header_offset) for info in found] == [
        (member.name, member.bytes, member.crc, start) for member, start in zip(members, starts, strict=True)
    ]


def test_a_header_for_large_files_is_read_back() -> None:
    """`_member` takes the size of a large file from its zip64 field, and holds it against the archive's size."""
    large = Member("bundle.json", 5 * GIGABYTE, 1)
    with pytest.raises(BundleError, match=r"inside 'bundle\.json'"):
        Archive(Path("x.edge"), io.BytesIO(local_header(large) + bytes(100)))
    header = bytearray(local_header(large))
    struct.pack_into("<Q", header, len(header) - 8, 4 * GIGABYTE)
    with pytest.raises(BundleError, match="is not as bundles have it"):
        Archive(Path("x.edge"), io.BytesIO(bytes(header) + bytes(100)))


@given(st.binary(max_size=200), st.integers(0, 1 << 17), st.booleans())
@settings(max_examples=60)
def test_bytes_put_anywhere_are_refused(whole: Iterator[bytes], noise: bytes, at: int, over: bool) -> None:
    content = next(whole)
    at %= len(content) + 1
    changed = content[:at] + noise + content[at + len(noise) * over :]
    if changed != content:
        with pytest.raises(BundleError):
            archive = Archive(Path("x.edge"), io.BytesIO(changed))
            for entry in archive.manifest.files:
                list(archive.blocks(entry))


@pytest.fixture(scope="module")
def whole(bundle: Path) -> Iterator[bytes]:
    """The same bytes as often as they are asked for."""
    content = bundle.read_bytes()
    return iter(lambda: content, None)
