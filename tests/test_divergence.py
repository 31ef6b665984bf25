"""Divergence of two models: the arithmetic against plain formulas, runs against an independent calculation."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable
from pathlib import Path
from threading import Event as Flag
from typing import Any

import numpy as np
import pytest
from gguf_files import STRING, Field, tiny_llama
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_sdk.cli import main
from edge_sdk.engines.llama_library import library
from edge_sdk.errors import ConfigError, EngineError
from quantize.gguf_models.divergence import (
    TokenFigures,
    compare_logits,
    first_scored,
    kl_divergence,
    measure_divergence,
    summarise,
)

TEXT = "the rhine flows through basel and the stars are in the sky above the river; " * 30
INFINITY = float("inf")
FIRST = np.zeros(8, np.int32)  # whatever follows

# --- the arithmetic ---------------------------------------------------------------------------------

plain = st.floats(-300, 300, width=32)
levels = st.sampled_from([0.0, 1.0, -1.0, 1e30, -1e30, -INFINITY])  # ties, what is huge, what is ruled out


@st.composite
def logit_pairs(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    width = draw(st.integers(1, 9))
    row = st.lists(draw(st.sampled_from([plain, levels])), min_size=width, max_size=width)
    usable = row.filter(lambda values: max(values) > -INFINITY)
    rows = draw(st.lists(st.tuples(usable, usable), min_size=1, max_size=4))
    a, b = (np.array([pair[side] for pair in rows], np.float32) for side in (0, 1))
    return a, b


def log_softmax(row: list[float]) -> list[float]:
    """By the definition, in double precision."""
    highest = max(row)
    total = math.log(math.fsum(math.exp(value - highest) for value in row))
    return [value - highest - total for value in row]


def plain_kl(a: list[float], b: list[float]) -> float:
    pairs = zip(log_softmax(a), log_softmax(b), strict=True)
    return math.fsum(math.exp(ours) * (ours - theirs) for ours, theirs in pairs if math.exp(ours) > 0)


@given(logit_pairs())
def test_kl_divergence_is_the_formula(pair: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    a, b = pair
    found, _, _ = kl_divergence(a, b, FIRST[: len(a)])
    assert (found >= 0).all()
    for value, ours, theirs in zip(found, a.tolist(), b.tolist(), strict=True):
        assert value == pytest.approx(plain_kl(ours, theirs), rel=1e-9, abs=1e-9)


@given(logit_pairs(), st.data())
def test_figures_of_tokens_are_the_formula(
    pair: tuple[NDArray[np.float32], NDArray[np.float32]], data: st.DataObject
) -> None:
    a, b = pair
    following = [data.draw(st.integers(0, a.shape[1] - 1)) for _ in a]
    figures = compare_logits(a, b, np.array(following, np.int32))
    for at, token in enumerate(following):
        ours, theirs = a[at].tolist(), b[at].tolist()
        assert figures.logprob_a[at] == pytest.approx(log_softmax(ours)[token], rel=1e-6, abs=1e-6)
        assert figures.logprob_b[at] == pytest.approx(log_softmax(theirs)[token], rel=1e-6, abs=1e-6)
        assert figures.agree[at] == (ours.index(max(ours)) == theirs.index(max(theirs)))  # of ties the first


@given(logit_pairs())
def test_a_distribution_does_not_diverge_from_itself_however_it_is_shifted(
    pair: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> None:
    a, _ = pair
    following = FIRST[: len(a)]
    assert kl_divergence(a, a, following)[0].tolist() == [0.0] * len(a)
    if abs(a[np.isfinite(a)]).max() < 1e3:
        moved = a.astype(np.float64) + 7.25
        assert kl_divergence(a, moved, following)[0] == pytest.approx(np.zeros(len(a)), abs=1e-9)


def test_many_rows_are_worked_on_in_blocks_without_a_seam() -> None:
    random = np.random.default_rng(5)
    a, b = random.normal(0, 3, (2, 11, 40_000)).astype(np.float32)
    following = np.arange(11, dtype=np.int32)
    for whole, column in zip(kl_divergence(a, b, following), range(3), strict=True):
        rows = [kl_divergence(a[at : at + 1], b[at : at + 1], following[at : at + 1])[column] for at in range(11)]
        assert whole == pytest.approx(np.concatenate(rows))


@pytest.mark.parametrize("bad", [[float("nan"), 0.0], [INFINITY, 0.0], [-INFINITY, -INFINITY]])
def test_logits_that_are_no_numbers_are_refused(bad: list[float]) -> None:
    fine = np.zeros((1, 2), np.float32)
    for a, b in ((np.array([bad], np.float32), fine), (fine, np.array([bad], np.float32))):
        with pytest.raises(EngineError, match="logits that are no numbers"):
            kl_divergence(a, b, FIRST[:1])


# --- the summary ------------------------------------------------------------------------------------


def figures(kld: list[float], a: list[float], b: list[float], agree: list[bool]) -> TokenFigures:
    ours, theirs = np.log(np.array([a, b])).astype(np.float32)
    return TokenFigures(np.array(kld, np.float32), ours, theirs, np.array(agree))


def test_a_summary_is_worked_out_as_by_hand() -> None:
    first = figures([0.0, 1.0], [0.5, 0.25], [0.5, 0.125], [True, False])
    second = figures([2.0, 4.0], [0.5, 0.5], [0.25, 0.5], [True, True])
    found = summarise([first, second], bytes_a=100, bytes_b=40)
    assert (found.windows, found.positions, found.bytes_a, found.bytes_b) == (2, 4, 100, 40)
    assert found.kld_mean == pytest.approx(1.75)
    assert found.kld_mean_se == pytest.approx(1.25)  # windows of 0.5 and 3.0
    assert (found.kld_median, found.kld_max) == (pytest.approx(1.5), 4.0)
    assert found.kld_p90 == pytest.approx(2 + 0.7 * 2)
    assert found.kld_mean_interval == (pytest.approx(0.5), pytest.approx(3.0))
    assert found.top1_agreement == 0.75
    assert found.ppl_a == pytest.approx(32**0.25)
    assert found.ppl_b == pytest.approx((2 * 8 * 4 * 2) ** 0.25)
    nll = np.log([2.0, 4.0, 2.0, 2.0])
    assert found.ppl_a_se == pytest.approx(32**0.25 * math.sqrt(((nll**2).mean() - nll.mean() ** 2) / 3), rel=1e-5)
    assert found.probability_change_mean == pytest.approx(-0.375 / 4)
    assert found.probability_change_rms == pytest.approx(math.sqrt((0.125**2 + 0.25**2) / 4))


def test_one_window_has_no_error_and_what_is_infinite_stays_so() -> None:
    found = summarise([figures([0.5, INFINITY], [0.5, 0.5], [0.5, 0.5], [True, True])])
    assert found.kld_mean == found.kld_max == INFINITY
    assert found.kld_mean_se is found.kld_mean_interval is found.top1_agreement_interval is None


def test_the_second_half_is_scored_unless_a_warm_up_is_given() -> None:
    assert (first_scored(512, None), first_scored(512, 64), first_scored(8, 0)) == (256, 64, 0)
    for context, warmup in ((512, 511), (512, -1), (1, None)):
        with pytest.raises(ConfigError, match="leaves nothing to score"):
            first_scored(context, warmup)


# --- whole runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models with one vocabulary and other weights."""
    folder = tmp_path_factory.mktemp("models")
    return tiny_llama(folder / "a.gguf", seed=1), tiny_llama(folder / "b.gguf", seed=2)


def independent(
    a: Path, b: Path, text: str, windows: int, context: int
) -> tuple[NDArray[np.float64], list[float], NDArray[np.bool_], list[int]]:
    """Divergences, perplexities and agreement from saved logits of llama-cpp-python's own class, in numpy."""
    from llama_cpp import Llama

    saved, nexts = [], []
    for path in (a, b):
        model = Llama(str(path), n_ctx=context, n_batch=context, logits_all=True, flash_attn=True, verbose=False)
        tokens = model.tokenize(text.encode(), add_bos=True, special=False)
        rows = []
        for start in range(0, windows * context, context):
            window = tokens[start : start + context]
            model.reset()
            model.eval(window)
            rows.append(model.scores[context // 2 : context - 1].astype(np.float64))
            nexts.append(window[context // 2 + 1 :])
        model.close()
        saved.append(np.concatenate(rows))
    following = [token for window in nexts[:windows] for token in window]
    log_a, log_b = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)) for logits in saved)
    kld = (np.exp(log_a) * (log_a - log_b)).sum(axis=1)
    at = np.arange(len(following))
    perplexities = [float(np.exp(-logs[at, following].mean())) for logs in (log_a, log_b)]
    return kld, perplexities, log_a.argmax(axis=1) == log_b.argmax(axis=1), following


def check_against_independent(a: Path, b: Path, text: str, windows: int, context: int) -> None:
    found = measure_divergence(a, b, text, windows=windows, context=context)
    kld, (ppl_a, ppl_b), agree, following = independent(a, b, text, windows, context)
    assert (found.windows, found.positions) == (windows, len(following))
    assert found.kld_mean == pytest.approx(kld.mean(), rel=5e-4)
    assert found.kld_median == pytest.approx(np.median(kld), rel=5e-4)
    assert found.kld_p99 == pytest.approx(np.percentile(kld, 99), rel=5e-4)
    assert (found.ppl_a, found.ppl_b) == (pytest.approx(ppl_a, rel=5e-4), pytest.approx(ppl_b, rel=5e-4))
    assert found.top1_agreement == pytest.approx(agree.mean(), abs=1 / len(agree))
    assert (found.bytes_a, found.bytes_b) == (a.stat().st_size, b.stat().st_size)


def test_figures_agree_with_an_independent_calculation(pair: tuple[Path, Path]) -> None:
    check_against_independent(*pair, TEXT, windows=2, context=512)


@pytest.fixture(scope="module")
def requantized(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a SmolLM2 of another type from the published file, by llama.cpp's own quantizer."""

    def make(name: str) -> Path:
        lib, out = library(), tmp_path_factory.mktemp("requantized") / f"{name}.gguf"
        settings = lib.llama_model_quantize_default_params()
        settings.ftype, settings.allow_requantize = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{name}"), True
        code = lib.llama_model_quantize(str(smollm2_path).encode(), str(out).encode(), ctypes.byref(settings))
        assert code == 0
        return out

    return make


@pytest.mark.model
@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_figures_of_a_real_model_agree_to_three_digits(
    name: str, smollm2_path: Path, requantized: Callable[[str], Path]
) -> None:
    text = "The Rhine rises in the Alps and flows through Basel, Cologne and Rotterdam to the North Sea. " * 40
    check_against_independent(smollm2_path, requantized(name), text, windows=1, context=256)


def test_a_model_does_not_diverge_from_itself(pair: tuple[Path, Path]) -> None:
    found = measure_divergence(pair[0], pair[0], TEXT, context=128, threads=1)
    assert (found.kld_mean, found.kld_max, found.top1_agreement) == (0.0, 0.0, 1.0)
    assert found.ppl_a == found.ppl_b and found.probability_change_rms == 0.0


def test_tokens_are_as_good_as_a_text_and_a_longer_warm_up_scores_less(pair: tuple[Path, Path]) -> None:
    tokens = [3 + at * 7 % 250 for at in range(256)]
    half = measure_divergence(*pair, tokens, context=128, threads=1)
    late = measure_divergence(*pair, tokens, context=128, warmup=100, threads=1)
    assert (half.positions, late.positions) == (2 * 63, 2 * 27)


def test_an_interrupted_run_goes_on_and_ends_with_the_same_figures(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out, cancel = tmp_path / "kept.jsonl", Flag()

    def stop_after_two(done: float, total: float | None, detail: str) -> None:
        if done == 2:
            cancel.set()

    part = measure_divergence(*pair, TEXT, context=128, threads=1, out=out, cancel=cancel, progress=stop_after_two)
    before = out.read_text()
    with out.open("a") as file:
        file.write('{"number": 2, "kld": [0.1')  # a crash while writing
    resumed = measure_divergence(*pair, TEXT, context=128, threads=1, out=out)
    assert part.windows == 2 and len(before.splitlines()) == 3
    assert out.read_text().startswith(before)
    assert resumed == measure_divergence(*pair, TEXT, context=128, threads=1)
    first = measure_divergence(*pair, TEXT, context=128, threads=1, out=out, windows=2)
    assert first == part


def test_cancelling_before_the_first_window_is_an_interrupt(pair: tuple[Path, Path]) -> None:
    cancel = Flag()
    cancel.set()
    with pytest.raises(KeyboardInterrupt):
        measure_divergence(*pair, TEXT, context=128, threads=1, cancel=cancel)


def test_what_was_kept_of_others_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "kept.jsonl"
    measure_divergence(*pair, TEXT, context=128, threads=1, out=out, windows=1)
    kept = out.read_text()
    a, b = pair
    for arguments, other in (
        ((b, a, TEXT), "reference"),
        ((a, a, TEXT), "candidate"),
        ((a, b, TEXT + TEXT), "text"),
    ):
        with pytest.raises(ConfigError, match=f"another {other}"):
            measure_divergence(*arguments, context=128, threads=1, out=out)
    with pytest.raises(ConfigError, match="another warmup"):
        measure_divergence(a, b, TEXT, context=128, warmup=8, threads=1, out=out)
    assert out.read_text() == kept
    out.write_text(kept.splitlines()[0] + '\n{"number": 0, "kld": "none"}\n')
    with pytest.raises(ConfigError, match="no figures of window 0"):
        measure_divergence(a, b, TEXT, context=128, threads=1, out=out)


def test_other_vocabularies_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"token 0 is '<pad>' in other\.gguf and '<\|endoftext\|>' in "):
        measure_divergence(pair[0], other_vocabulary(tmp_path), TEXT, context=128, threads=1)


def other_vocabulary(folder: Path) -> Path:
    from gguf_files import CONTROL, WORDS, byte_alphabet

    tokens = ["<pad>", *CONTROL[1:], *byte_alphabet(), *WORDS]
    return tiny_llama(folder / "other.gguf", extra={"tokenizer.ggml.tokens": Field(STRING, tokens)})


# --- the command ------------------------------------------------------------------------------------


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_the_command_ends_with_the_fixed_keys(
    pair: tuple[Path, Path], text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*map(str, pair), "--text", str(text_file), "--window", "128", "--threads", "1"]
    assert main(["eval", "divergence", *arguments]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    keys = {"kld_mean", "kld_p99", "top1_agreement", "ppl_a", "ppl_b", "bytes_a", "bytes_b"}
    assert keys <= found.keys() and "KL divergence" in printed
    assert (found["a"], found["b"], found["text"]) == ("a", "b", "text.txt")
    assert (found["context"], found["warmup"]) == (128, 64)
    assert str(text_file.parent) not in printed


def test_the_command_says_in_one_line_what_is_wrong(
    pair: tuple[Path, Path], text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = map(str, pair)
    other, window = str(other_vocabulary(tmp_path)), ["--text", str(text_file), "--window", "128"]
    for arguments, words in (
        ([a, other, *window], "vocabular"),
        ([a, b, "--text", str(tmp_path / "none.txt")], "cannot be read"),
        ([a, b, "--text", str(text_file), "--window", "4096"], "takes 8 to 512"),
        ([a, str(text_file), *window], "there is no model at"),
    ):
        assert main(["eval", "divergence", *arguments]) == 1
        said = capsys.readouterr().err.strip()
        assert words in said and "\n" not in said


def test_an_interrupted_command_ends_with_130_and_what_was_measured(
    pair: tuple[Path, Path], text_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from quantize.gguf_models import divergence

    measure = divergence.measure_divergence

    def interrupted(*arguments: Any, cancel: Flag, **options: Any) -> Any:
        def stop(done: float, total: float | None, detail: str) -> None:
            if done == 1:
                cancel.set()

        return measure(*arguments, cancel=cancel, **{**options, "progress": stop})

    monkeypatch.setattr(divergence, "measure_divergence", interrupted)
    arguments = [*map(str, pair), "--text", str(text_file), "--window", "128", "--threads", "1", "--json"]
    assert main(["eval", "divergence", *arguments]) == 130
    assert last_line(capsys)["windows"] == 1
