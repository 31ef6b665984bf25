"""Adding documents: what is found, what is skipped, what fails alone, and what a cancelled run leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from document_files import make_docx, make_pdf
from numpy.typing import NDArray

from edge_sdk import ingest
from edge_sdk.documents.chunk import chunk_document, embedding_text
from edge_sdk.documents.parse import DEFAULT_LIMITS, parse_bytes
from edge_sdk.errors import EncoderMismatchError, EngineError, StoreError, StoreFullError
from edge_sdk.fakes import FakeEncoder
from edge_sdk.ingest import add, document_name
from edge_sdk.records import AddReport, Chunk, ParsedDocument
from edge_sdk.storage.store import Store


class CountingEncoder(FakeEncoder):
    """Remembers what it was given."""

    def __init__(self) -> None:
        super().__init__(32)
        self.batches: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.batches.append(list(texts))
        return super().encode(texts)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.db") as store:
        yield store


@pytest.fixture
def encoder() -> CountingEncoder:
    return CountingEncoder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a document of each format, some that are skipped and two that fail."""
    root = tmp_path / "docs"
    (root / "deep" / "er").mkdir(parents=True)
    (root / ".git").mkdir()
    for name, data in {
        "a.txt": b"Plain text.",
        "b.md": b"# Title\n\nMarkdown text.",
        "c.html": b"<h1>Page</h1><p>Text.",
        "deep/d.pdf": make_pdf(["A page."]),
        "deep/er/e.docx": make_docx(("Normal", "A paragraph.")),
        "f.txt": b"\x00\x01binary",
        "g.pdf": b"%PDF-1.4 broken",
        "h.png": b"no document",
        ".hidden.txt": b"hidden",
        ".git/i.txt": b"hidden",
    }.items():
        (root / name).write_bytes(data)
    return root


def statuses(reports: Sequence[AddReport], root: Path) -> dict[str, str]:
    return {os.path.relpath(report.name, root): report.status for report in reports}


def test_a_folder_is_searched_for_what_can_be_read(store: Store, encoder: CountingEncoder, folder: Path) -> None:
    reports = list(add(store, encoder, [folder]))
    assert statuses(reports, folder) == {
        "a.txt": "added",
        "b.md": "added",
        "c.html": "added",
        "f.txt": "failed",
        "g.pdf": "failed",
        "deep/d.pdf": "added",
        "deep/er/e.docx": "added",
    }
    errors = [report.error for report in reports if report.status == "failed"]
    assert "f.txt: it looks binary" in errors[0]
    assert "g.pdf: it is not a readable PDF" in errors[1]
    assert sorted(document.name for document in store.documents()) == sorted(
        report.name for report in reports if report.status == "added"
    )
    assert sum(report.passages for report in reports) == store.counts().passages


def test_adding_again_only_embeds_what_has_changed(store: Store, encoder: CountingEncoder, folder: Path) -> None:
    list(add(store, encoder, [folder]))
    encoder.batches.clear()
    (folder / "a.txt").write_bytes(b"Other text.")
    again = statuses(list(add(store, encoder, [folder])), folder)
    assert again.pop("a.txt") == "updated"
    assert set(again.values()) == {"unchanged", "failed"}
    assert encoder.batches == [["Other text."]]


def test_again_embeds_everything(store: Store, encoder: CountingEncoder, folder: Path) -> None:
    list(add(store, encoder, [folder / "a.txt"]))
    (report,) = add(store, encoder, [folder / "a.txt"], again=True)
    assert report.status == "updated"


def test_unchanged_files_are_not_parsed(
    store: Store, encoder: CountingEncoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(add(store, encoder, [folder / "deep"]))
    monkeypatch.setattr(ingest, "parse_bytes", None)
    assert {report.status for report in add(store, encoder, [folder / "deep"])} == {"unchanged"}


def test_passages_are_stored_with_offsets_and_headings(
    store: Store, encoder: CountingEncoder, folder: Path
) -> None:
    list(add(store, encoder, [folder / "b.md"]))
    ((id, _),) = store.search_text('"markdown"', 5)
    (passage,) = store.passages([id])
    assert (passage.heading, passage.title, passage.start) == ("Title", "Title", 0)
    assert passage.text == "# Title\n\nMarkdown text."
    assert encoder.batches == [[embedding_text(passage.heading, passage.text)]]


def test_a_name_does_not_depend_on_where_one_stands(
    store: Store, encoder: CountingEncoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "link.txt").symlink_to(folder / "a.txt")
    monkeypatch.chdir(folder)
    (first,) = add(store, encoder, ["a.txt"])
    monkeypatch.chdir(folder / "deep")
    reports = list(add(store, encoder, ["../a.txt", folder / "deep" / ".." / "a.txt", "../link.txt"]))
    assert [(report.name, report.status) for report in reports] == [(first.name, "unchanged")]
    assert first.name == document_name(folder / "a.txt") == str((folder / "a.txt").resolve())
    assert document_name("py:json") == "py:json"


def test_links_are_followed_and_loops_are_not(store: Store, encoder: CountingEncoder, folder: Path) -> None:
    (folder / "deep" / "up").symlink_to(folder)
    (folder / "deep" / "self.txt").symlink_to("self.txt")
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "o.txt").write_text("Outside.")
    (folder / "deep" / "out").symlink_to(outside)
    reports = list(add(store, encoder, [folder]))
    names = [report.name for report in reports]
    assert len(names) == len(set(names))
    assert str((outside / "o.txt").resolve()) in names
    (loop,) = [report for report in reports if report.name.endswith("self.txt")]
    assert loop.status == "failed"


def test_python_modules_are_added_under_their_names(store: Store, encoder: CountingEncoder) -> None:
    reports = list(add(store, encoder, ["py:json", "py:math"]))
    assert [report.name for report in reports][:2] == ["py:json", "py:json.decoder"]
    assert reports[-1].name == "py:math"
    assert {report.status for report in reports} == {"added"}
    assert {report.status for report in add(store, encoder, ["py:json", "py:math"])} == {"unchanged"}


def test_undocumented_parts_of_a_package_are_passed_over_but_not_a_whole_one(
    store: Store, encoder: CountingEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, source in {"documented_pkg": '"""Documented."""', "silent_pkg": "x = 1"}.items():
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        (tmp_path / package / "part.py").write_text(source)
    (tmp_path / "silent_module.py").write_text("x = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    reports = list(add(store, encoder, ["py:documented_pkg", "py:silent_pkg", "py:silent_module"]))
    assert [(report.name, report.status) for report in reports] == [
        ("py:documented_pkg.part", "added"),
        ("py:silent_module", "failed"),
        ("py:silent_pkg", "failed"),
    ]
    assert reports[-1].error == "py:silent_pkg: nothing in it is documented"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing.txt", "there is no such file; check the path"),
        ("py:no_such_module", "py:no_such_module: there is no module"),
        ("py:../etc", "is no module name"),
        ("a\0b", "is no path"),
        ("empty", "there are no documents in it; it is searched for .txt,"),
        ("https://example.org/a.html", "there is no such file"),
    ],
)
def test_a_bad_source_fails_alone(
    store: Store, encoder: CountingEncoder, folder: Path, source: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder)
    bad, good = add(store, encoder, [source, "a.txt"])
    assert (bad.status, good.status) == ("failed", "added")
    assert message in bad.error
    assert "\n" not in bad.error


def test_limits_are_those_given(store: Store, encoder: CountingEncoder, folder: Path) -> None:
    (report,) = add(store, encoder, [folder / "a.txt"], limits=replace(DEFAULT_LIMITS, file_bytes=5))
    assert "its 11 bytes are more than the limit of 5" in report.error


def test_a_failed_update_keeps_what_was_stored(store: Store, encoder: CountingEncoder, folder: Path) -> None:
    list(add(store, encoder, [folder / "a.txt"]))
    (folder / "a.txt").write_bytes(b"\0\0")
    (report,) = add(store, encoder, [folder / "a.txt"])
    assert report.status == "failed"
    assert store.search_text('"plain"', 5)


def test_progress_goes_from_none_to_all(store: Store, encoder: CountingEncoder, folder: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    list(add(store, encoder, [folder], progress=lambda *step: seen.append(step)))
    assert [done for done, _, _ in seen] == list(range(8))
    assert {total for _, total, _ in seen} == {7}
    assert seen[0][2].endswith("a.txt")
    assert seen[-1] == (7, 7, "")


def test_a_long_document_is_embedded_in_slices_that_tell_how_far_they_are(
    store: Store, encoder: CountingEncoder, tmp_path: Path
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("Some words of a sentence. " * 30_000)
    seen: list[str] = []
    (report,) = add(store, encoder, [path], progress=lambda done, total, name: seen.append(name))
    assert report.passages == sum(map(len, encoder.batches)) > 2 * ingest.SLICE
    assert max(map(len, encoder.batches)) == ingest.SLICE
    assert seen[1] == f"{path} ({ingest.SLICE} of {report.passages} passages)"


def small_documents(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:04}.txt").write_text(f"Text of document {number}.")
    return folder


def test_small_documents_are_embedded_together(store: Store, encoder: CountingEncoder, tmp_path: Path) -> None:
    folder = small_documents(tmp_path / "small", 2 * ingest.SLICE + 5)
    reports = list(add(store, encoder, [folder]))
    assert [report.status for report in reports] == ["added"] * len(reports)
    assert sum(map(len, encoder.batches)) == store.counts().passages == len(reports)
    assert len(encoder.batches) <= len(reports) / 10
    assert encoder.batches[0][:2] == ["Text of document 0.", "Text of document 1."]


def test_passages_that_share_a_slice_keep_their_own_vectors(
    store: Store, encoder: CountingEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_documents(tmp_path / "mixed", 20)
    (folder / "0003.txt").write_text("Some words of a sentence that is not the only one. " * 10_000)
    put_all, stored = store.put_all, 0

    def checked(documents: Sequence[tuple[ParsedDocument, Sequence[Chunk], NDArray[np.float32]]]) -> object:
        nonlocal stored
        for _, chunks, vectors in documents:
            texts = [embedding_text(chunk.heading, chunk.text) for chunk in chunks]
            assert np.array_equal(vectors, FakeEncoder(32).encode(texts))
            stored += len(texts)
        return put_all(documents)

    monkeypatch.setattr(store, "put_all", checked)
    list(add(store, encoder, [folder]))
    assert stored > 2 * ingest.SLICE


def test_small_documents_are_stored_together_and_before_their_reports(
    store: Store, encoder: CountingEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_all, calls = store.put_all, []
    monkeypatch.setattr(store, "put_all", lambda documents: calls.append(len(documents)) or put_all(documents))
    reports = add(store, encoder, [small_documents(tmp_path / "small", 200)])
    assert store.counts().documents == 0
    for report in reports:
        assert store.content_hash(report.name) is not None
    assert sum(calls) == 200
    assert len(calls) < 100


def test_documents_of_one_call_are_stored_all_or_not_at_all(store: Store, encoder: CountingEncoder) -> None:
    store.use_encoder(encoder.fingerprint, encoder.dimension)
    good = parse_bytes(b"A good one.", "good", suffix=".txt")
    vectors = encoder.encode(["A good one."])
    with pytest.raises(StoreError, match="unit length"):
        store.put_all([(good, chunk_document(good), vectors), (good, chunk_document(good), 3 * vectors)])
    assert store.counts().documents == 0


def test_unchanged_documents_are_reported_one_by_one(
    store: Store, encoder: CountingEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_documents(tmp_path / "small", 20)
    list(add(store, encoder, [folder]))
    read: list[Path] = []
    monkeypatch.setattr(ingest, "read_document", lambda path, limits: read.append(path) or path.read_bytes())
    next(add(store, encoder, [folder]))
    assert len(read) == 1


def test_when_the_encoder_fails_the_documents_before_are_stored(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else an idle encoder takes fewer passages, and which go together follows from how busy the machine is.
    monkeypatch.setattr(ingest, "_LEAST", ingest.SLICE)

    class Failing(FakeEncoder):
        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            if f"Text of document {ingest.SLICE}." in texts:
                raise EngineError("out of order")
            return super().encode(texts)

    with pytest.raises(EngineError, match="out of order"):
        list(add(store, Failing(32), [small_documents(tmp_path / "small", 2 * ingest.SLICE)]))
    assert store.counts().documents == ingest.SLICE


@pytest.mark.parametrize("shape", [(1, 32), (3, 32), (2, 31), (2,)])
def test_vectors_that_are_not_one_for_each_passage_are_not_stored(
    store: Store, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    class Wrong(FakeEncoder):
        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            return np.resize(np.eye(3, 32, dtype=np.float32), shape)

    (tmp_path / "a.txt").write_text("One sentence of some words. " * 60)
    with pytest.raises(EngineError, match="shape"):
        list(add(store, Wrong(32), [tmp_path / "a.txt"]))
    assert store.counts().passages == 0


def test_cancel_ends_before_the_next_document(store: Store, encoder: CountingEncoder, tmp_path: Path) -> None:
    folder = small_documents(tmp_path / "small", 4 * ingest.SLICE)
    cancel = Event()
    reports = []
    for report in add(store, encoder, [folder], cancel=cancel):
        reports.append(report)
        cancel.set()
    assert {report.status for report in reports} == {"added"}
    assert store.counts().documents == len(reports) < 4 * ingest.SLICE
    resumed = statuses(list(add(store, encoder, [folder])), folder)
    assert list(resumed.values()).count("unchanged") == len(reports)
    assert list(resumed.values()).count("added") == 4 * ingest.SLICE - len(reports)


def test_cancel_within_a_document_stores_nothing_of_it(store: Store, tmp_path: Path) -> None:
    cancel = Event()

    class Cancelling(FakeEncoder):
        def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
            cancel.set()
            return super().encode(texts)

    path = tmp_path / "long.txt"
    path.write_text("Some words of a sentence. " * 30_000)
    assert list(add(store, Cancelling(32), [path], cancel=cancel)) == []
    assert store.counts().documents == 0


def test_a_run_that_is_dropped_has_stored_what_it_reported(
    store: Store, encoder: CountingEncoder, folder: Path
) -> None:
    run = add(store, encoder, [folder])
    first = next(run)
    assert store.content_hash(first.name) is not None


def test_errors_of_the_store_are_raised(
    store: Store, encoder: CountingEncoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise StoreFullError("the disk is full")

    monkeypatch.setattr(store, "put_all", full)
    with pytest.raises(StoreFullError):
        list(add(store, encoder, [folder]))


def test_another_encoder_is_refused_at_once(store: Store, encoder: CountingEncoder, folder: Path) -> None:
    list(add(store, encoder, [folder / "a.txt"]))
    with pytest.raises(EncoderMismatchError):
        add(store, FakeEncoder(64), [folder / "b.md"])


def test_an_unreadable_folder_is_reported(
    store: Store, encoder: CountingEncoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = str(folder / "deep")
    scandir = os.scandir

    def deny(path: str) -> object:
        if str(path) == locked:
            raise PermissionError(13, "Permission denied", locked)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)  # root may read anything, so no mode would do
    reports = {report.name: report for report in add(store, encoder, [folder])}
    assert reports[locked].error == f"{locked}: it cannot be read (Permission denied)"
    assert reports[str(folder / "a.txt")].status == "added"


def test_a_link_that_leads_nowhere_is_reported_under_its_own_name(
    store: Store, encoder: CountingEncoder, tmp_path: Path
) -> None:
    (tmp_path / "docs").mkdir()
    link = tmp_path / "docs" / "dangling.txt"
    link.symlink_to(tmp_path / "gone" / "target.txt")
    (report,) = add(store, encoder, [tmp_path / "docs"])
    assert (report.name, report.status) == (str(link), "failed")
    assert str(link) in report.error
