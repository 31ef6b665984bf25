"""`bench_engine` on the tiny model: the document that comes out, and failures in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf_files import tiny_llama

pytest.importorskip("llama_cpp")

from edge_sdk.bench import engine as bench
from edge_sdk.bench.engine import CONTENDERS, MEASURES, bench_engine
from edge_sdk.errors import EngineError, MissingExtraError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("bench") / "tiny.gguf")


def test_the_document_holds_every_figure_of_every_contender(tiny: Path) -> None:
    steps: list[tuple[float, float | None, str]] = []
    result = bench_engine(
        {"tiny": tiny},
        prompt_tokens=40,
        decode_tokens=8,
        repeats=2,
        threads=1,
        progress=lambda done, total, detail: steps.append((done, total, detail)),
    )
    assert json.loads(json.dumps(result)) == result
    assert list(result["models"]["tiny"]) == list(CONTENDERS)
    for figures in result["models"]["tiny"].values():
        for measure in MEASURES:
            least, most = figures["spread"][measure]
            assert 0 < least <= figures[measure] <= most
    assert result["ratios"]["tiny"]["decode_tokens_per_second_edge_to_bare"] > 0
    assert result["settings"] == {
        "prompt_tokens": 40,
        "decode_tokens": 8,
        "repeats": 2,
        "threads": 1,
        "context": 256,
    }
    assert result["machine"]["kernels"] in ("c", "numpy")
    assert steps[-1][:2] == (9, 9)
    assert [done for done, _, _ in steps] == list(range(10))


def test_contenders_see_the_same_tokens(tiny: Path) -> None:
    text = "river stone winter"
    counts = set()
    for contender in CONTENDERS:
        worker = bench.Worker(contender, tiny, 1, 256)
        counts.add(worker.count(text))
        worker.stop()
    assert len(counts) == 1


def test_a_worker_that_fails_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"measuring bare failed|measuring edge failed"):
        bench_engine({"none": tmp_path / "none.gguf"}, prompt_tokens=16, decode_tokens=4, repeats=1, threads=1)


def test_prompts_come_close_to_the_wanted_length_and_differ() -> None:
    prompts = {bench.made_prompt(lambda text: len(text.split()) * 2, 101, seed) for seed in range(5)}
    assert len(prompts) == 5
    assert {len(prompt.split()) for prompt in prompts} == {50}


def test_without_llama_cpp_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"edge-sdk\[gguf\]"):
        bench_engine({"tiny": tiny})
