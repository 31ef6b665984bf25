"""A reference whose results are kept once: what comparing with it gives, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path
from threading import Event as Flag

import numpy as np
import pytest
from gguf_files import STRING, Field, byte_alphabet, tiny_llama
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_sdk.errors import ConfigError, DiskFullError, EngineError
from quantize.gguf_models import reference as module
from quantize.gguf_models.divergence import kl_divergence, measure_divergence, summarise
from quantize.gguf_models.reference import Reference

TEXT = "the rhine flows through basel and the stars are in the sky above the river; " * 40


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return tiny_llama(folder / "a.gguf", seed=1), tiny_llama(folder / "b.gguf", seed=2)


def reference(path: Path, **options: object) -> Reference:
    return Reference.of(path, TEXT, **{"positions": 300, "context": 128, "threads": 1, **options})  # type: ignore[arg-type]


def test_comparing_with_it_gives_what_the_full_comparison_gives(pair: tuple[Path, Path]) -> None:
    with reference(pair[0]) as kept:
        found = kept.compare(pair[1])
        tokens = kept.windows.reshape(-1).tolist()
        itself = kept.compare(pair[0])
    full = measure_divergence(*pair, tokens, context=128, threads=1)
    assert found.kld_mean == pytest.approx(full.kld_mean, rel=1e-5)
    assert (found.positions, found.windows, found.bytes_b) == (full.positions, full.windows, full.bytes_b)
    assert (found.top1_agreement, found.ppl_b) == (full.top1_agreement, full.ppl_b)
    assert found.ppl_a == pytest.approx(full.ppl_a, rel=1e-6)
    assert itself.kld_mean < 1e-6 and itself.top1_agreement == 1.0


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 20), st.floats(0.001, 1))
def test_half_precision_hardly_moves_a_divergence(seed: int, spread: float, noise: float) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, spread, (4, 2000)).astype(np.float32) + np.float32(100)
    other = logits + random.normal(0, noise, logits.shape).astype(np.float32)
    following = np.zeros(4, np.int32)
    exact = kl_divergence(logits, other, following)[0]
    kept: NDArray[np.float64] = kl_divergence(module._halved(logits), other, following)[0]
    assert (abs(kept - exact) < 5e-3 * np.sqrt(exact) + 1e-6).all()  # of one position; over many it averages out


def test_what_is_far_below_weighs_nothing() -> None:
    assert module._halved(np.array([[1e6, 0.0, -np.inf]], np.float32)).tolist() == [[0.0, -np.inf, -np.inf]]


def test_windows_are_spread_over_the_text_and_warm_up_makes_each_worth_more(pair: tuple[Path, Path]) -> None:
    with (
        reference(pair[0]) as half,
        reference(pair[0], warmup=16) as most,
        reference(pair[0], positions=9**9) as all_,
    ):
        assert (len(half.windows), half.positions) == (5, 5 * 63)
        assert (len(most.windows), most.positions) == (3, 3 * 111)
        assert np.array_equal(half.windows[0], all_.windows[0])
        assert np.array_equal(half.windows[4], all_.windows[4 * len(all_.windows) // 5])


def test_candidates_can_be_compared_window_by_window(pair: tuple[Path, Path]) -> None:
    with reference(pair[0]) as kept:
        windows = kept.measure_windows(pair[1])
        assert [len(window.kld) for window in windows] == [63] * 5
        assert summarise(windows).kld_mean == kept.compare(pair[1]).kld_mean


def test_nothing_is_left_behind(pair: tuple[Path, Path], tmp_path: Path) -> None:
    kept = reference(pair[0], folder=tmp_path)
    kept.close()
    kept.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EngineError, match="is deleted"):
        kept.compare(pair[1])


def test_cancelling_is_an_interrupt(pair: tuple[Path, Path], tmp_path: Path) -> None:
    cancel = Flag()

    def stop(done: float, total: float | None, detail: str) -> None:
        if done == 1:
            cancel.set()

    with pytest.raises(KeyboardInterrupt):
        reference(pair[0], cancel=cancel, progress=stop, folder=tmp_path)
    with reference(pair[0]) as kept, pytest.raises(KeyboardInterrupt):
        kept.compare(pair[1], cancel=cancel)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_done_is_said_before_it_is_begun(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = ["<pad>", "<|im_start|>", "<|im_end|>", *byte_alphabet(), *"th the Ġthe in er an Ġa and".split()]
    other = tiny_llama(tmp_path / "other.gguf", extra={"tokenizer.ggml.tokens": Field(STRING, tokens)})
    with reference(pair[0]) as kept, pytest.raises(ConfigError, match="token 0 is '<pad>'"):
        kept.compare(other)
    with pytest.raises(ConfigError, match="0 positions"):
        reference(pair[0], positions=0)
    with pytest.raises(DiskFullError, match="cannot be reserved in"):
        reference(pair[0], folder=tmp_path / "none")
    monkeypatch.setattr(module, "free_disk", lambda folder: 1000)
    with pytest.raises(DiskFullError, match="results take 0 MiB"):
        reference(pair[0])
