"""The measurement of ingest runs on a small model; its figures are not looked at here."""

from __future__ import annotations

from pathlib import Path

import pytest
from bert_models import random_weights, write_bert

from edge_sdk.bench.ingest import bench_ingest
from edge_sdk.errors import ConfigError, EngineError


def test_all_contenders_are_measured(tmp_path: Path) -> None:
    weights = random_weights(hidden=64, heads=2, inner=96, layers=1, words=259, positions=256)
    write_bert(tmp_path, weights, "int8")
    passages = [f"Passage {number} says a few words." for number in range(12)]
    steps: list[str] = []
    report = bench_ingest(
        tmp_path,
        passages,
        batches=(1, 4),
        repeats=1,
        threads=1,
        progress=lambda done, total, name: steps.append(name),
    )
    assert set(report["encoders"]) == {"edge", "onnxruntime_1", "onnxruntime_4"} > {report["best_other"]}
    assert all(figures["passages_per_second"] > 0 < figures["peak_mb"] for figures in report["encoders"].values())
    assert set(report["end_to_end"]) == {"files_of_one", "files_of_several"}
    assert all(figures["share"] > 0 for figures in report["end_to_end"].values())
    assert steps == ["edge", "onnxruntime_1", "onnxruntime_4", "files_of_one", "files_of_several", ""]


def test_what_cannot_be_measured_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"measuring edge failed: .*tokenizer\.json"):
        bench_ingest(tmp_path, ["A passage."], repeats=1, threads=1)
    with pytest.raises(ConfigError, match="no passage"):
        bench_ingest(tmp_path, [], repeats=1)
