from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_sdk.bench import search as bench
from edge_sdk.errors import ConfigError, MissingExtraError


def test_every_contender_finds_the_same_rows_and_says_what_it_took() -> None:
    pytest.importorskip("faiss")
    pytest.importorskip("apsw")
    pytest.importorskip("usearch")
    steps: list[str] = []
    result = bench.bench_search(
        [300, 200], 64, queries=3, progress=lambda done, total, detail: steps.append(detail)
    )
    assert steps == ["200 rows", "300 rows", ""]
    assert [figures["rows"] for figures in (*result["growth"], result)] == [200, 300]
    assert set(result["milliseconds"]) == {"edge_int8", "edge_two_stage", "numpy_f32", *bench.PEERS}
    for name, recall in result["recall_at_10"].items():
        assert recall >= (0.3 if name == "faiss_binary" else 0.9), name
    assert result["ratios"].keys() >= {"edge_int8_to_read_limit", "faiss_sq8_to_edge_int8"}
    assert all(milliseconds > 0 for milliseconds in result["milliseconds"].values())


def test_made_up_rows_are_unit_vectors_in_clusters() -> None:
    points, asked = bench.clustered_rows(4096, 96, 20)
    for matrix in (points, asked):
        assert np.allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-5)
    same, other = (points[:-8:8] * points[1:-7:8]).sum(axis=1), (points[:-2048] * points[2048:]).sum(axis=1)
    assert same.mean() > other.mean() + 0.3
    assert 0.3 < np.median((asked @ points.T).max(axis=1)) < 0.8
    again, _ = bench.clustered_rows(4096, 96, 20)
    assert np.array_equal(points, again)


def test_rows_may_come_from_a_file(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((30, 16)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    points, asked = bench._read(tmp_path / "rows.npy", 20, 5)
    assert (points.shape, asked.shape) == ((20, 16), (5, 16))
    assert np.allclose(np.linalg.norm(asked, axis=1), 1, atol=1e-5)


def test_a_file_that_is_not_such_an_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.zeros((3, 4), np.float32))
    np.save(tmp_path / "wide.npy", np.zeros((25, 4097), np.float32))
    (tmp_path / "text.npy").write_text("not an array")
    for name, message in (
        ("short.npy", "not 20 [+] 5 rows"),
        ("wide.npy", "rows of 4097"),
        ("text.npy", "not a .npy array"),
        ("no.npy", "No such"),
    ):
        with pytest.raises(ConfigError, match=f"^[^ ]*{name} .*{message}"):
            bench.bench_search([20], queries=5, vectors=tmp_path / name)


def test_what_goes_wrong_in_the_measuring_process_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="measuring 100 rows failed"):
        bench._measure_apart(100, 16, 3, tmp_path / "no.npy")


def test_without_any_peer_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="bench"):
        bench.bench_search([100])
