from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from bert_models import random_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.kernel_faces import bert

if not bert.paths():
    pytest.skip("the kernels were not compiled", allow_module_level=True)

SIZES = st.sampled_from([1, 2, 3, 5, 6, 7, 15, 16, 17, 63, 64, 65, 127, 383, 384, 385])
TEXTS = [[5, 7, 9], [1], list(range(40)), [], [3] * 17, list(range(64))]


@pytest.fixture(scope="module")
def weights() -> bert.BertWeights:
    return random_weights(hidden=64, heads=2, inner=96, layers=2, words=80, positions=70)


@pytest.mark.parametrize("path", bert.paths())
@given(rows=SIZES, inputs=SIZES, outputs=SIZES, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_integer_product_is_exact(path: str, rows: int, inputs: int, outputs: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    a = random.integers(-128, 128, (rows, inputs)).astype(np.int8)
    b = random.integers(-127, 128, (inputs, outputs)).astype(np.int8)
    assert np.array_equal(bert.product(a, b, path), a.astype(np.int32) @ b.astype(np.int32))


@pytest.mark.parametrize("path", bert.paths())
def test_the_largest_products_do_not_saturate(path: str) -> None:
    """What `vpmaddubsw`, the usual instruction for bytes, gets wrong."""
    for sign in (-127, 127):
        a, b = np.full((7, 1536), -128, np.int8), np.full((1536, 70), sign, np.int8)
        assert (bert.product(a, b, path) == -128 * sign * 1536).all()


@pytest.mark.parametrize("path", bert.paths())
def test_a_vector_has_the_same_bits_alone_and_in_company(weights: bert.BertWeights, path: str) -> None:
    kernel = bert.BertKernel(weights, path)
    workspace = kernel.workspace(300, 64)
    together = kernel.encode(TEXTS, workspace)
    assert np.array_equal(kernel.encode(TEXTS[::-1], workspace), together[::-1])
    for text, row in zip(TEXTS, together, strict=True):
        assert np.array_equal(kernel.encode([text], workspace)[0], row)


@pytest.mark.parametrize("path", bert.paths())
def test_it_computes_the_encoder(weights: bert.BertWeights, path: str) -> None:
    """Beside the same weights in floats: what is left is the rounding of activations to 8 bits."""
    kernel = bert.BertKernel(weights, path)
    vectors = kernel.encode(TEXTS, kernel.workspace(300, 64))
    for text, vector in zip(TEXTS, vectors, strict=True):
        if text:
            assert vector @ _reference(weights, text) > 0.999
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        else:
            assert not vector.any()


@pytest.mark.parametrize("path", bert.paths())
def test_the_paths_differ_by_float_rounding_only(weights: bert.BertWeights, path: str) -> None:
    """Codes are equal but where a float lies on the border of two: far below the rounding to 8 bits."""
    plain, fast = bert.BertKernel(weights, bert.PORTABLE), bert.BertKernel(weights, path)
    one, other = (kernel.encode(TEXTS, kernel.workspace(300, 64)) for kernel in (plain, fast))
    assert np.abs(one - other).max() < 5e-3


def test_a_head_of_another_size_gives_another_vector(weights: bert.BertWeights) -> None:
    """The twin of the tests above: they would notice."""
    kernel = bert.BertKernel(replace(weights, heads=1))
    vector = kernel.encode([TEXTS[2]], kernel.workspace(300, 64))[0]
    assert vector @ _reference(weights, TEXTS[2]) < 0.999


def test_several_threads_share_a_model(weights: bert.BertWeights) -> None:
    kernel = bert.BertKernel(weights)
    expected = kernel.encode(TEXTS, kernel.workspace(300, 64))
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(lambda: kernel.encode(TEXTS, kernel.workspace(300, 64))) for _ in range(16)]
        assert all(np.array_equal(run.result(), expected) for run in runs)


def test_what_does_not_fit_is_refused(weights: bert.BertWeights) -> None:
    kernel = bert.BertKernel(weights)
    workspace = kernel.workspace(16, 8)
    for texts in ([[80]], [[-1]], [[2**32]], [[1] * 71], [[1] * 200]):
        with pytest.raises(ValueError, match="do not fit"):
            kernel.encode(texts, workspace)
    assert kernel.encode([], workspace).shape == (0, 64)
    with pytest.raises(ValueError, match="no product"):
        bert.product(np.zeros((1, 9), np.int8), np.zeros((8, 1), np.int8), bert.PORTABLE)
    with pytest.raises(ValueError, match="no BERT"):
        bert.BertKernel(replace(weights, heads=4))  # heads of 16
    with pytest.raises(ValueError, match="has to be"):
        bert.BertKernel(replace(weights, word_scales=weights.word_scales[:-1]))


def _reference(weights: bert.BertWeights, text: list[int]) -> np.ndarray:
    from math import erf

    def norm(x: np.ndarray, by: bert.Norm) -> np.ndarray:
        centred = x - x.mean(axis=1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + weights.epsilon) * by.gamma + by.beta

    def linear(x: np.ndarray, by: bert.Linear) -> np.ndarray:
        return x @ (by.codes.astype(np.float64) * by.scales) + by.bias

    x = weights.words[text].astype(np.float64) * weights.word_scales[text, None] + weights.positions[: len(text)]
    x = norm(x, weights.embedded)
    for layer in weights.layers:
        size = x.shape[1] // weights.heads
        query, key, value = (
            linear(x, part).reshape(len(text), weights.heads, size).swapaxes(0, 1)
            for part in (layer.query, layer.key, layer.value)
        )
        scores = query @ key.swapaxes(1, 2) / np.sqrt(size)
        shares = np.exp(scores - scores.max(axis=2, keepdims=True))
        mixed = (shares / shares.sum(axis=2, keepdims=True)) @ value
        x = norm(linear(mixed.swapaxes(0, 1).reshape(x.shape), layer.output) + x, layer.attended)
        inner = linear(x, layer.up)
        inner = inner * 0.5 * (1 + np.vectorize(erf)(inner / np.sqrt(2)))
        x = norm(linear(inner, layer.down) + x, layer.fed)
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean)
