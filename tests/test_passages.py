"""Passages come from documents and from rows alike, cut as they are when documents are added."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_sdk.documents.chunk import LIMIT
from edge_sdk.errors import ConfigError, DocumentError
from quantize.training_data.passages import SourcePassage, distinct, read_passages

TEXT = "The lamp of the tower burns all night, and it is lit by hand. "


def test_documents_and_rows_of_a_folder_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text(f"# Tower\n\n{TEXT}", encoding="utf-8")
    rows = [{"id": 1, "title": "Bay", "text": TEXT + "Once."}, {"text": TEXT + "Twice."}, {"text": "  "}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "c.png").write_bytes(b"\x89PNG")
    found = list(read_passages([tmp_path]))
    assert found[:2] == [SourcePassage(TEXT + "Once.", "Bay"), SourcePassage(TEXT + "Twice.", "")]
    assert len(found) == 3 and TEXT.strip() in found[2].text


def test_long_rows_are_cut_and_crumbs_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": TEXT * 60}) + "\n" + json.dumps({"text": "A heading"}) + "\n")
    found = list(read_passages([path]))
    assert len(found) > 3 and all(len(passage.text) <= LIMIT for passage in found)
    assert " ".join(passage.text for passage in found) == (TEXT * 60).strip()


def test_a_row_without_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": TEXT}) + "\n" + json.dumps({"title": "Bay"}) + "\n")
    with pytest.raises(ConfigError, match=r"row 2 of .*rows\.jsonl has no text"):
        list(read_passages([path]))


def test_what_is_no_document_is_told_or_raised(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "good.txt").write_text(TEXT)
    skipped: list[str] = []
    assert [passage.text for passage in read_passages([tmp_path], skipped)] == [TEXT.strip()]
    assert len(skipped) == 1 and "empty.txt" in skipped[0]
    with pytest.raises(DocumentError):
        list(read_passages([tmp_path]))


def test_near_duplicates_are_left_out_of_what_is_asked_about() -> None:
    texts = [TEXT * 3, TEXT * 3 + "Now.", "Something else is told here.", "something else is told here"]
    assert [passage.text for passage in distinct(map(SourcePassage, texts))] == [texts[0], texts[2]]
