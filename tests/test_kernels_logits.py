"""The logits kernel against its plain reference and numpy, and the flag that native code polls."""

from __future__ import annotations

import ctypes
import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from kernels import flag, library, logits
from kernels.logits import measure

ROOT = Path(__file__).parents[1]
KERNELS = {
    name: kernel
    for name in ("edge_logits", "edge_logits_portable", "edge_logits_reference")
    if (kernel := logits.compiled(name)) is not None
}
needs_c = pytest.mark.skipif(not KERNELS, reason="the C kernels are not built; `make install` does where it can")
ROWS = arrays.arrays(
    np.float32,
    st.integers(1, 3_000),
    elements=st.floats(-1e4, 1e4, width=32) | st.just(-np.inf),
    fill=st.floats(-100, 100, width=32),
).filter(lambda row: bool((row > -np.inf).any()))


def figures(kernel: logits.Kernel, row: NDArray[np.float32]) -> tuple[int, float, float, float, float]:
    row = np.ascontiguousarray(row, np.float32)
    result = logits.Figures()
    assert kernel(row.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), row.size, result) == 0
    return result.best, result.max, result.second, result.logsumexp, result.entropy


@needs_c
@given(ROWS)
def test_every_kernel_agrees_with_numpy(row: NDArray[np.float32]) -> None:
    expected = figures(logits.with_numpy, row)
    for name, kernel in KERNELS.items():
        found = figures(kernel, row)
        assert found[:3] == expected[:3], name
        assert found[3] == pytest.approx(expected[3], rel=1e-6, abs=1e-5), name
        assert found[4] == pytest.approx(expected[4], abs=1e-5), name


@given(ROWS)
def test_figures_are_those_of_the_softmax(row: NDArray[np.float32]) -> None:
    wide = row.astype(np.float64)
    weights = np.exp(wide - wide.max())
    probabilities = weights / weights.sum()
    chosen = int(np.random.default_rng(row.size).integers(row.size))
    found = measure(row, chosen)
    ordered = np.sort(wide)[::-1]
    assert found.best == int(row.argmax())
    assert found.chosen == chosen
    with np.errstate(divide="ignore"):
        assert found.logprob == pytest.approx(wide[chosen] - wide.max() - np.log(weights.sum()), rel=1e-6, abs=1e-5)
    some = probabilities[probabilities > 0]
    assert found.entropy == pytest.approx(float(-(some * np.log(some)).sum()), abs=1e-4)
    assert found.margin == (np.inf if row.size == 1 else pytest.approx(ordered[0] - ordered[1], rel=1e-6))
    assert found.logprob <= 0 <= found.entropy


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 1023, 1024, 1025, 1039, 49_152, 151_936])
def test_rows_of_all_lengths_are_read_to_the_end(size: int) -> None:
    row = np.linspace(-5, 5, size, dtype=np.float32)
    assert measure(row).best == size - 1
    assert measure(row[::-1].copy()).best == 0
    assert measure(np.zeros(size, np.float32)).entropy == pytest.approx(np.log(size), abs=1e-5)


def test_the_best_of_equals_is_the_first_and_the_margin_is_zero() -> None:
    row = np.array([0, 3, 1, 3], np.float32)
    assert (measure(row).best, measure(row).margin) == (1, 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 700, 2_999])
def test_logits_that_are_no_numbers_are_an_error(value: float, place: int) -> None:
    row = np.zeros(3_000, np.float32)
    row[place] = value
    with pytest.raises(ValueError, match="NaN"):
        measure(row)
    for kernel in (logits.with_numpy, *KERNELS.values()):
        assert kernel(row.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), row.size, logits.Figures()) == 2


def test_rows_without_any_probability_are_an_error() -> None:
    with pytest.raises(ValueError, match="above -inf"):
        measure(np.full(40, -np.inf, np.float32))
    with pytest.raises(ValueError, match="empty"):
        measure(np.empty(0, np.float32))
    with pytest.raises(ValueError, match="token 3"):
        measure(np.zeros(3, np.float32), chosen=3)


def test_a_token_without_probability_has_logprob_minus_infinity() -> None:
    assert measure(np.array([0, -np.inf], np.float32), chosen=1).logprob == -np.inf


def test_numpy_takes_over_where_nothing_was_compiled() -> None:
    program = (
        "import numpy as np, kernels.library as library; library.load = lambda name: None\n"
        "from kernels import flag, logits\n"
        "print(logits.backend(), logits.measure(np.array([1, 2], np.float32)).best)\n"
        "it = flag.Flag(); before = it.is_set(); it.set(); print(before, it.is_set())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["numpy", "1", "False", "True"]


def test_kernels_are_found_beside_another_package_of_that_name(tmp_path: Path) -> None:
    """transformers imports a distribution named `kernels`; in a checkout it would hide ours."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("theirs = True\n")
    program = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "from edge_sdk.kernel_faces import logits\n"
        "import kernels; print(kernels.theirs, logits.measure.__module__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "kernels.logits"]


@needs_c
def test_a_flag_is_polled_in_c_where_there_is_c() -> None:
    assert library.load("edge_flag_is_set") is not None
    it = flag.Flag()
    asked = [it.is_set()]
    it.set()
    asked.append(bool(it.callback(it.address)))
    it.set(False)
    assert [*asked, it.is_set()] == [False, True, False]


def test_a_library_without_a_function_gives_none() -> None:
    assert library.load("edge_no_such_function") is None


@pytest.mark.parametrize("module", [logits, flag])
def test_examples_in_the_docs_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
