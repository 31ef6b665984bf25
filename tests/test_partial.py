"""A partial file is kept, resumed, checked and only then renamed."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import DiskFullError, DownloadError, ModelDamagedError, ModelError
from edge_sdk.hub.partial import OUT, PartialFile, hash_file, storage_errors

DATA = b"0123456789"
DIGEST = hashlib.sha256(DATA).hexdigest()


def partial(folder: Path) -> PartialFile:
    return PartialFile(folder, "file", len(DATA), DIGEST)


def test_a_whole_file_is_renamed_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    with partial(tmp_path) as part:
        part.restart("source", "tag")
        part.write(DATA[:4])
        part.write(DATA[4:])
        assert part.is_right()
        part.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == DATA
    assert hash_file(tmp_path / "file") == DIGEST


def test_an_unfinished_file_is_resumed_by_its_source_only(tmp_path: Path) -> None:
    with partial(tmp_path) as part:
        part.restart("source", "tag")
        part.write(DATA[:4])
    with partial(tmp_path) as part:
        part.resume("source")
        assert (part.size, part.etag) == (4, "tag")
        part.write(DATA[4:])
        assert part.is_right()
    with partial(tmp_path) as part:
        part.resume("another")
        assert (part.size, part.bytes_on_disk(), part.etag) == (0, 10, "")
    with partial(tmp_path) as part:  # which did not begin: what the first left is still there
        part.resume("source")
        assert part.is_right()
        part.restart("another")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_or_short_file_is_never_renamed(tmp_path: Path) -> None:
    with partial(tmp_path) as part:
        part.write(DATA[:9])
        with pytest.raises(ModelDamagedError, match="has 9 bytes, expected 10"):
            part.commit()
        part.write(b"X")
        with pytest.raises(ModelDamagedError, match=f"expected {DIGEST}"):
            part.commit()
        with pytest.raises(DownloadError, match="more than the 10 bytes"):
            part.write(b"X")
    assert not (tmp_path / "file").exists()


def test_a_left_over_that_is_longer_than_the_file_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(DATA + b"more")
    with partial(tmp_path) as part:
        part.resume()
        assert part.size == 0


@pytest.mark.parametrize("mark", ["", "[]", "{", '{"source": 5}', "\x00"])
def test_a_broken_mark_means_that_the_origin_is_unknown(tmp_path: Path, mark: str) -> None:
    (tmp_path / "file.part").write_bytes(DATA[:4])
    (tmp_path / "file.part.json").write_text(mark)
    with partial(tmp_path) as part:
        part.resume("source")
        assert part.size == 0


@given(st.lists(st.binary(max_size=4), max_size=8), st.integers(0, 8))
def test_however_it_is_written_and_resumed_only_the_right_bytes_are_right(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[bytes], stop: int
) -> None:
    folder, data = tmp_path_factory.mktemp("partial"), b"".join(blocks)
    wanted = hashlib.sha256(data).hexdigest()
    with PartialFile(folder, "file", len(data), wanted) as part:
        part.restart("source")
        for block in blocks[:stop]:
            part.write(block)
    with PartialFile(folder, "file", len(data), wanted) as part:
        part.resume("source")
        assert part.size == len(b"".join(blocks[:stop]))
        for block in blocks[stop:]:
            part.write(block)
        part.commit()
    assert (folder / "file").read_bytes() == data


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, DiskFullError), (errno.EFBIG, DiskFullError), (errno.EDQUOT, DiskFullError),
     (errno.EACCES, ModelError), (errno.EROFS, ModelError)],
)  # fmt: skip
def test_storage_errors_become_one_line_with_a_next_step(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught, storage_errors(Path("/somewhere")):
        raise OSError(number, "because")
    assert "/somewhere" in str(caught.value)
    assert "because" in str(caught.value)
    assert "EDGE_HOME" in str(caught.value)
    with pytest.raises(kind) as caught, storage_errors(Path("/somewhere"), instead=OUT):
        raise OSError(number, "because")
    assert "EDGE_HOME" not in str(caught.value)
    assert "write to a folder" in str(caught.value)
