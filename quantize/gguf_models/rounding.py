"""Weights to blocks of 4 and 5 bits so that a layer's *outputs* change least, not its weights.

Rounding to the nearest is best where inputs are independent of each other. They are not: what rounding one column
adds to an output, the columns still to be rounded can take away again (GPTQ, Frantar et al., ICLR 2023). Then, with
all codes given, the best scales of a row solve a small linear system, and with all scales given, codes are improved
one column at a time. Knows matrices; nothing of models and files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .ggml import Bytes, Floats

Codes = NDArray[np.uint8]

BLOCK = 32
DAMPING = (
    0.01  # of the mean of the diagonal: columns that were hardly seen must not be trusted to make up for others
)
SWEEPS = 2
_ROWS = 8_192  # handled at once
_FACTORS = np.linspace(0.6, 1.1, 12, dtype=np.float32)  # of the scale that just covers a block's largest weight


@dataclass(frozen=True, slots=True)
class Grid:
    """The values a block can hold: `scale * levels[code]`, and with `shifted` a minimum added.

    The levels are ggml's: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
    """

    type: str
    levels: Floats
    shifted: bool = False


def _steps(low: int, high: int) -> Floats:
    return np.arange(low, high + 1, dtype=np.float32)


_IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)

# Its levels are whole numbers, so halves decide; a table is several times faster than a search.
_IQ4_NL_CODES = np.searchsorted((_IQ4_NL[1:] + _IQ4_NL[:-1]) / 2, np.arange(-256, 227) / 2).astype(np.uint8)

GRIDS: Final[Mapping[str, Grid]] = {
    grid.type: grid
    for grid in (
        Grid("Q4_0", _steps(-8, 7)),
        Grid("Q4_1", _steps(0, 15), shifted=True),
        Grid("IQ4_NL", _IQ4_NL),
        Grid("Q5_0", _steps(-16, 15)),
        Grid("Q5_1", _steps(0, 31), shifted=True),
    )
}
"""Types that can be rounded here: blocks of 32 weights with one scale. With 8 bits there is nothing to gain."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """Codes [rows, columns], and for each block its scale and minimum [rows, blocks] in half precision."""

    grid: Grid
    codes: Codes
    scales: Floats
    minima: Floats

    def weights(self) -> Floats:
        """What the blocks stand for [rows, columns]."""
        found: Floats = self.grid.levels[self.codes] * np.repeat(self.scales, BLOCK, 1)
        return found + np.repeat(self.minima, BLOCK, 1)

    def blocks(self) -> Bytes:
        """As ggml stores them [rows, bytes]."""
        rows, columns = self.codes.shape
        codes = self.codes.reshape(rows, columns // BLOCK, BLOCK)
        parts: list[NDArray[np.uint8]] = [_half_bytes(self.scales)]
        if self.grid.shifted:
            parts.append(_half_bytes(self.minima))
        if len(self.grid.levels) > 16:
            parts.append(np.packbits(np.right_shift(codes, np.uint8(4)), axis=2, bitorder="little"))
        low, high = codes[..., : BLOCK // 2] & np.uint8(15), codes[..., BLOCK // 2 :] << np.uint8(4)
        parts.append(low | high)
        return np.ascontiguousarray(np.concatenate(parts, 2).reshape(rows, -1))


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a layer's inputs are like: the mean of x xᵀ, damped, and the upper factor of its inverse (UᵀU)."""

    products: Floats
    factor: Floats

    @staticmethod
    def of(products: Floats) -> Inputs:
        """From the mean of x xᵀ [columns, columns]."""
        damped = products.astype(np.float64)
        damped = (damped + damped.T) / 2
        mean = float(np.trace(damped)) / len(damped) or 1.0
        damped[np.diag_indices_from(damped)] += DAMPING * mean
        inverse = np.linalg.inv(damped)
        factor = np.linalg.cholesky((inverse + inverse.T) / 2).T
        return Inputs(damped.astype(np.float32), np.ascontiguousarray(factor, np.float32))


def round_rows(weights: Floats, type: str, inputs: Inputs, *, sweeps: int = SWEEPS) -> Rounded:
    """Round `weights` [rows, columns] to blocks of `type` so that (w - q) P (w - q)ᵀ is small for each row.

    P is the mean of x xᵀ over the layer's inputs x. Columns must divide into blocks.
    """
    grid = GRIDS[type]
    parts = [
        _round(np.ascontiguousarray(weights[start : start + _ROWS].T), grid, inputs, sweeps)
        for start in range(0, len(weights), _ROWS)
    ]
    return Rounded(
        grid,
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.minima for part in parts]),
    )


def output_error(difference: Floats, products: Floats) -> float:
    """Mean square of the change of a layer's outputs, summed over outputs; `difference` is w - q."""
    return float(np.einsum("rc,rc->", difference @ products, difference))


def _round(weights: Floats, grid: Grid, inputs: Inputs, sweeps: int) -> Rounded:
    """`weights` is [columns, rows]: a column's weights lie together."""
    columns, rows = weights.shape
    factor, left = inputs.factor, weights.copy()
    codes = np.empty((columns, rows), np.uint8)
    scales, minima = np.empty((2, columns // BLOCK, rows), np.float32)
    for block in range(columns // BLOCK):
        at = slice(block * BLOCK, (block + 1) * BLOCK)
        part, inner = left[at], factor[at, at]
        scale, minimum = _fit_block(part, grid, (1 / np.square(np.diag(inner))).astype(np.float32))
        errors = np.empty_like(part)
        for column in range(BLOCK):
            code = _nearest(part[column], scale, minimum, grid)
            codes[at][column] = code
            errors[column] = (part[column] - grid.levels[code] * scale - minimum) / inner[column, column]
            part[column + 1 :] -= inner[column, column + 1 :, None] * errors[column]
        left[at.stop :] -= factor[at, at.stop :].T @ errors
        scales[block], minima[block] = scale, minimum
    for _ in range(sweeps):
        scales, minima = _best_scales(weights, codes, scales, minima, grid, inputs.products)
        _improve_codes(weights, codes, scales, minima, grid, inputs.products)
    return Rounded(grid, *(np.ascontiguousarray(part.T) for part in (codes, scales, minima)))


def _nearest(weights: Floats, scale: Floats, minimum: Floats, grid: Grid) -> Codes:
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scale == 0, 0, (weights - minimum) / scale).astype(np.float32)
    if grid.type == "IQ4_NL":
        return _IQ4_NL_CODES[np.clip(np.rint(2 * steps), -256, 226).astype(np.int16) + 256]
    codes: Codes = np.clip(np.rint(steps) - grid.levels[0], 0, len(grid.levels) - 1).astype(np.uint8)
    return codes


def _fit_block(part: Floats, grid: Grid, importance: Floats) -> tuple[Floats, Floats]:
    """For each row of a block [BLOCK, rows] the scale and minimum with the least weighted square error."""
    best = np.full(part.shape[1], np.inf, np.float32)
    scale, minimum = np.zeros((2, part.shape[1]), np.float32)
    weigh = importance[:, None]

    def consider(candidate: Floats, shift: Floats) -> Codes:
        nonlocal best, scale, minimum
        candidate, shift = _half(candidate), _half(shift)
        codes = _nearest(part, candidate, shift, grid)
        error = (weigh * np.square(part - grid.levels[codes] * candidate - shift)).sum(0)
        better = error < best
        best = np.where(better, error, best)
        scale, minimum = np.where(better, candidate, scale), np.where(better, shift, minimum)
        return codes

    zero = np.zeros_like(scale)
    if grid.shifted:
        low, high = np.minimum(part.min(0), 0), part.max(0)
        for below in _FACTORS[::2]:
            for above in _FACTORS[::2]:
                consider((high * above - low * below) / (len(grid.levels) - 1), low * below)
    else:
        extreme = np.take_along_axis(part, np.abs(part).argmax(0)[None], 0)[0]
        ends = (grid.levels[0], grid.levels[-1])
        for factor in _FACTORS:
            for end in ends:
                consider(extreme * factor / end, zero)
    levels = grid.levels[_nearest(part, scale, minimum, grid)]
    if not grid.shifted:
        consider((weigh * part * levels).sum(0) / np.maximum((weigh * levels * levels).sum(0), 1e-20), zero)
    return scale, minimum


def _half_bytes(values: Floats) -> Bytes:
    return np.ascontiguousarray(values).astype("<f2")[..., None].view(np.uint8)


def _half(values: NDArray[np.floating]) -> Floats:
    found: Floats = np.clip(values, -65504, 65504).astype(np.float16).astype(np.float32)
    return found


def _best_scales(
    weights: Floats, codes: Codes, scales: Floats, minima: Floats, grid: Grid, products: Floats
) -> tuple[Floats, Floats]:
    """With codes given, each row's scales (and minima) by least squares under `products`; kept where better."""
    blocks, rows = scales.shape
    levels = grid.levels[codes].reshape(blocks, BLOCK, rows)
    basis = [levels, np.ones_like(levels)] if grid.shifted else [levels]
    size = blocks * len(basis)
    normal = np.empty((rows, size, size), np.float32)
    target = np.empty((rows, size), np.float32)
    pulled = (products @ weights).reshape(blocks, BLOCK, rows)
    for index in range(size):
        kind, block = divmod(index, blocks)
        target[:, index] = np.einsum("cr,cr->r", basis[kind][block], pulled[block])
        spread = products[:, block * BLOCK : (block + 1) * BLOCK] @ basis[kind][block]
        spread = spread.reshape(blocks, BLOCK, rows)
        for other, part in enumerate(basis):
            normal[:, index, other * blocks : (other + 1) * blocks] = np.einsum("bcr,bcr->rb", part, spread)
    diagonal = np.einsum("rii->ri", normal)
    diagonal += 1e-6 * diagonal.mean(1, keepdims=True) + 1e-12
    found = np.linalg.solve(normal, target[..., None])[..., 0].T
    new_scales = _half(found[:blocks])
    new_minima = _half(found[blocks:]) if grid.shifted else minima
    old = _errors(weights, codes, scales, minima, grid, products)
    new = _errors(weights, codes, new_scales, new_minima, grid, products)
    better = (new < old)[None]
    return np.where(better, new_scales, scales), np.where(better, new_minima, minima)


def _errors(weights: Floats, codes: Codes, scales: Floats, minima: Floats, grid: Grid, products: Floats) -> Floats:
    """For each row (w - q) P (w - q)ᵀ."""
    difference = weights - _weights(codes, scales, minima, grid)
    found: Floats = np.einsum("cr,cr->r", products @ difference, difference)
    return found


def _weights(codes: Codes, scales: Floats, minima: Floats, grid: Grid) -> Floats:
    found: Floats = grid.levels[codes] * np.repeat(scales, BLOCK, 0)
    return found + np.repeat(minima, BLOCK, 0)


def _improve_codes(
    weights: Floats, codes: Codes, scales: Floats, minima: Floats, grid: Grid, products: Floats
) -> None:
    """One column after another takes the code that is best with all the others as they are."""
    difference = weights - _weights(codes, scales, minima, grid)
    for block in range(len(scales)):
        at = slice(block * BLOCK, (block + 1) * BLOCK)
        scale, minimum = scales[block], minima[block]
        pulled = products[at] @ difference
        for column in range(BLOCK):
            index = at.start + column
            wanted = difference[index] - pulled[column] / products[index, index]
            code = _nearest(weights[index] - wanted, scale, minimum, grid)
            moved = weights[index] - grid.levels[code] * scale - minimum
            pulled += products[at, index, None] * (moved - difference[index])
            difference[index], codes[index] = moved, code
