"""Opening a bundle: unpacked once and whole, checked before use, mended when damaged, policy kept."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest
from bundle_files import make_bundle, put_together, restate, take_apart

from edge_sdk.bundle import cache
from edge_sdk.bundle.cache import Bundle, inspect_bundle, open_bundle, verify_bundle
from edge_sdk.bundle.manifest import Manifest
from edge_sdk.bundle.signature import make_keys
from edge_sdk.errors import BundleError, DiskFullError, SignatureError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def folder(bundle: Path, tmp_path: Path) -> Path:
    """The bundle as a folder, as `unzip` makes it."""
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(tmp_path / "folder")
    return tmp_path / "folder"


@pytest.fixture
def structure_checks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose structure was checked."""
    seen: list[Path] = []
    real = cache.check_structure

    def check(manifest: object, folder: Path) -> dict[str, str]:
        seen.append(folder)
        return real(manifest, folder)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "check_structure", check)
    return seen


def contents(bundle: Bundle) -> dict[str, bytes]:
    return {entry.path: (bundle.folder / entry.path).read_bytes() for entry in bundle.manifest.files}


def test_an_archive_is_unpacked_once_under_its_id(bundle: Path, home: Path, structure_checks: list[Path]) -> None:
    first = open_bundle(bundle, home)
    assert first.folder == home / "bundles" / first.manifest.id
    assert contents(first) == take_apart(bundle)[1]
    assert len(structure_checks) == 1
    times = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    assert open_bundle(bundle, home) == first
    assert len(structure_checks) == 1
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == times
    assert first.paths("decoder") == (first.folder / "decoder" / "tiny-f32.gguf",)
    assert first.directory("encoder") == first.folder / "encoder"
    assert first.directory("reader") is None


def test_a_folder_is_used_where_it_is(folder: Path, home: Path, structure_checks: list[Path]) -> None:
    assert open_bundle(folder, home).folder == folder
    assert open_bundle(folder, home).signed.state == "unsigned"
    assert structure_checks == [folder]
    assert [each.name for each in (home / "bundles").iterdir()] == ["checked"]


def test_inspecting_reads_no_content_and_writes_nothing(bundle: Path, folder: Path, home: Path) -> None:
    for path, form in ((bundle, "archive"), (folder, "folder")):
        found = inspect_bundle(path, home)
        assert (found.form, found.manifest.name, found.signed.state) == (form, "demo", "unsigned")
    assert not home.exists()


def test_verifying_says_what_was_found_and_leaves_nothing(bundle: Path, folder: Path, home: Path) -> None:
    for path in (bundle, folder):
        found = verify_bundle(path, home)
        assert found.checked.keys() == {entry.path for entry in found.inspection.manifest.files}
        assert found.checked["decoder/tiny-f32.gguf"] == "GGUF of 11 tensors, llama"
    assert [path for path in home.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("damage", ["changed", "shorter", "gone", "more", "link", "manifest"])
def test_a_damaged_cache_is_unpacked_again(bundle: Path, home: Path, tmp_path: Path, damage: str) -> None:
    unpacked = open_bundle(bundle, home)
    path = unpacked.folder / "decoder" / "tiny-f32.gguf"
    content = bytearray(path.read_bytes())
    match damage:
        case "changed":
            content[-100] ^= 1
            path.write_bytes(content)
        case "shorter":
            path.write_bytes(content[:-1])
        case "gone":
            path.unlink()
        case "more":
            (unpacked.folder / "encoder" / "static.npz").write_bytes(b"x")
        case "link":
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
        case "manifest":
            (unpacked.folder / "bundle.json").write_bytes(b"{}")
    again = open_bundle(bundle, home)
    assert contents(again) == take_apart(bundle)[1]
    assert sorted(each.name for each in again.folder.iterdir()) == sorted(
        {entry.path.split("/")[0] for entry in again.manifest.files} | {"bundle.json"}
    )


def test_another_sound_bundle_in_its_place_is_not_taken_for_it(bundle: Path, home: Path, tmp_path: Path) -> None:
    values, files = take_apart(bundle)
    (tmp_path / "other.edge").write_bytes(put_together({**values, "version": "6.6.6"}, files))
    here, other = open_bundle(bundle, home), open_bundle(tmp_path / "other.edge", home)
    shutil.rmtree(here.folder)
    other.folder.rename(here.folder)
    assert Manifest.from_bytes((open_bundle(bundle, home).folder / "bundle.json").read_bytes()) == here.manifest


@pytest.mark.parametrize(
    "damage", ["changed", "shorter", "gone", "more", "link", "linked folder", "manifest", "none"]
)
def test_a_damaged_folder_is_refused(folder: Path, home: Path, tmp_path: Path, damage: str) -> None:
    open_bundle(folder, home)
    path = folder / "encoder" / "model.onnx"
    content = bytearray(path.read_bytes())
    match damage:
        case "changed":
            content[-100] ^= 1
            path.write_bytes(content)
        case "shorter":
            path.write_bytes(content[:-1])
        case "gone":
            path.unlink()
        case "more":
            (folder / "encoder" / "static.npz").write_bytes(b"x")
        case "link":
            path.rename(tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
        case "linked folder":
            path.parent.rename(tmp_path / "elsewhere")
            path.parent.symlink_to(tmp_path / "elsewhere")
        case "manifest":
            (folder / "bundle.json").write_bytes(b"{}")
        case "none":
            (folder / "bundle.json").unlink()
    for action in (open_bundle, verify_bundle):
        with pytest.raises(BundleError) as caught:
            action(folder, home)
        assert "\n" not in str(caught.value)


def test_verifying_sees_what_size_and_time_hide(folder: Path, home: Path) -> None:
    open_bundle(folder, home)
    path = folder / "decoder" / "tiny-f32.gguf"
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(BundleError, match=r"decoder/tiny-f32\.gguf has sha256"):
        verify_bundle(folder, home)


def test_what_was_checked_by_an_older_version_is_checked_again(
    folder: Path, home: Path, structure_checks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_bundle(folder, home)
    monkeypatch.setattr(cache, "CHECKS", cache.CHECKS + 1)
    open_bundle(folder, home)
    open_bundle(folder, home)
    assert len(structure_checks) == 2


def test_a_record_that_is_damaged_or_of_another_folder_counts_for_nothing(
    folder: Path, home: Path, structure_checks: list[Path]
) -> None:
    open_bundle(folder, home)
    (record,) = (home / "bundles" / "checked").iterdir()
    record.write_text("[1, 2")
    open_bundle(folder, home)
    shutil.copytree(folder, folder.with_name("copy"))
    open_bundle(folder.with_name("copy"), home)
    assert len(structure_checks) == 3


def test_an_interrupted_unpacking_leaves_nothing_under_the_final_name(
    bundle: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(manifest: object, folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "check_structure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_bundle(bundle, home)
    assert [each.name for each in (home / "bundles").iterdir() if each.is_dir()] == []
    monkeypatch.undo()
    (home / "bundles" / f"{inspect_bundle(bundle, home).manifest.id}.part" / "decoder").mkdir(
        parents=True
    )  # killed
    assert contents(open_bundle(bundle, home)) == take_apart(bundle)[1]


def test_too_little_disk_is_said_before_anything_is_written(
    bundle: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "free_disk", lambda path: 1_000)
    for action in (open_bundle, verify_bundle):
        with pytest.raises(DiskFullError, match="MB are free"):
            action(bundle, home)
    assert [path for path in home.rglob("*") if path.is_file() and path.stat().st_size] == []


def test_a_home_that_cannot_be_written_is_one_line(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="set EDGE_HOME") as caught:
        open_bundle(bundle, tmp_path / "file" / "home")
    assert "\n" not in str(caught.value)


def test_where_a_signature_is_required_only_a_trusted_one_will_do(tmp_path: Path, home: Path, bundle: Path) -> None:
    pytest.importorskip("cryptography")
    public, _ = make_keys(tmp_path / "key")
    (tmp_path / "signed").mkdir()
    signed = make_bundle(tmp_path / "signed", tmp_path / "key")
    for action in (open_bundle, inspect_bundle, verify_bundle):
        action(signed, home)
        action(signed, home, require_signature=True, keys=[public])
        for path in (signed, bundle):
            with pytest.raises(SignatureError, match="required"):
                action(path, home, require_signature=True)
        with pytest.raises(SignatureError, match="required"):
            action(bundle, home, require_signature=True, keys=[public])
    values, files = take_apart(signed)
    assert (
        open_bundle(signed, home).manifest.id == open_bundle(bundle, home).manifest.id
    )  # it is not part of the id
    stripped = tmp_path / "stripped.edge"
    stripped.write_bytes(
        put_together(values, {name: each for name, each in files.items() if "signature" not in name})
    )
    assert stripped.read_bytes() == bundle.read_bytes()


def test_one_that_fits_its_own_manifest_but_not_the_signature_is_refused(tmp_path: Path, home: Path) -> None:
    pytest.importorskip("cryptography")
    make_keys(tmp_path / "key")
    signed = make_bundle(tmp_path, tmp_path / "key")
    values, files = take_apart(signed)
    files["licences/LICENSE.txt"] = b"Everything is forbidden.\n"
    signed.write_bytes(put_together(restate(values, files), files))
    for action in (open_bundle, inspect_bundle, verify_bundle):
        with pytest.raises(SignatureError, match="changed after it was signed"):
            action(signed, home)
