"""Spline resizing of one axis as a matrix.

Resizing with ``scipy.ndimage.zoom(..., mode="nearest", grid_mode=True)`` is linear and separable, so that per axis
one small matrix (length out x length in) says everything about it. Its weights fall off quickly beside a diagonal
(by 0.27 per voxel for cubic splines), which ``bands`` makes use of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# scipy continues the edge value over this many voxels before it filters; equal results need equal padding.
_PAD = 12
# Weights below this change a result by less than float32 can hold.
_NEGLIGIBLE = 1e-9
_ROWS_PER_BAND = 32
# Roots of the sampled B-splines inside the unit circle, by order.
_POLES = {
    2: (math.sqrt(8) - 3,),
    3: (math.sqrt(3) - 2,),
    4: (
        math.sqrt(664 - math.sqrt(438976)) + math.sqrt(304) - 19,
        math.sqrt(664 + math.sqrt(438976)) - math.sqrt(304) - 19,
    ),
    5: (
        math.sqrt(67.5 - math.sqrt(4436.25)) + math.sqrt(26.25) - 6.5,
        math.sqrt(67.5 + math.sqrt(4436.25)) - math.sqrt(26.25) - 6.5,
    ),
}


@dataclass(frozen=True)
class Band:
    """Output rows ``[start, stop)`` need only the inputs ``[first, last)``: ``weights`` is float32 (rows, inputs)."""

    start: int
    stop: int
    first: int
    last: int
    weights: np.ndarray


def coordinates(n_in: int, n_out: int) -> np.ndarray:
    """Where the centres of ``n_out`` voxels lie among ``n_in`` voxels of the same extent, in input voxels."""
    return (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5


@lru_cache(maxsize=8)
def resize_matrix(n_in: int, n_out: int, order: int) -> np.ndarray:
    """The float64 matrix (n_out, n_in) that resizes an axis with splines of ``order`` 0 to 5; read-only.

    Equal to the response of ``scipy.ndimage.zoom(mode="nearest", grid_mode=True)`` to unit vectors: edge values
    are continued, coefficients come from the recursive spline filter, and B-splines are evaluated at the voxel
    centres (Unser, "Splines: a perfect fit for signal and image processing", 1999).

    Raises:
        ValueError: a length below 1 or an order outside 0 to 5.
    """
    if n_in < 1 or n_out < 1 or not 0 <= order <= 5:
        raise ValueError(f"cannot resize an axis from {n_in} to {n_out} voxels with order {order}")
    centres = coordinates(n_in, n_out)
    padded = n_in + 2 * _PAD
    weights = np.zeros((n_out, padded))
    rows = np.arange(n_out)
    if order == 0:
        weights[rows, np.floor(centres + 0.5).astype(np.intp) + _PAD] = 1.0
    else:
        coefficients = np.eye(padded) if order == 1 else _spline_filter(padded, order)
        first = np.ceil(centres - (order + 1) / 2)
        for tap in range(order + 1):
            share = _b_spline(centres - (first + tap), order)
            weights += share[:, None] * coefficients[(first + tap).astype(np.intp) + _PAD]
    matrix = weights[:, _PAD:-_PAD].copy()
    matrix[:, 0] += weights[:, :_PAD].sum(axis=1)
    matrix[:, -1] += weights[:, -_PAD:].sum(axis=1)
    matrix.flags.writeable = False
    return matrix


@lru_cache(maxsize=64)
def bands(n_in: int, n_out: int, order: int) -> tuple[Band, ...]:
    """The non-negligible part of ``resize_matrix`` in blocks of rows, float32, for block-wise multiplication."""
    matrix = resize_matrix(n_in, n_out, order)
    result = []
    for start in range(0, n_out, _ROWS_PER_BAND):
        stop = min(start + _ROWS_PER_BAND, n_out)
        used = np.flatnonzero((np.abs(matrix[start:stop]) > _NEGLIGIBLE).any(axis=0))
        first, last = int(used[0]), int(used[-1]) + 1
        weights = matrix[start:stop, first:last].astype(np.float32)
        result.append(Band(start, stop, first, last, weights))
    return tuple(result)


def _spline_filter(length: int, order: int) -> np.ndarray:
    """The float64 matrix from samples to B-spline coefficients, values mirrored at the outer edge of the end samples.

    One causal and one anti-causal recursion per pole (Unser et al., "B-spline signal processing", part II, 1993).
    """
    result = np.eye(length)
    for pole in _POLES[order]:
        result *= (1.0 - pole) * (1.0 - 1.0 / pole)
        steps = np.arange(length)
        echo = pole**steps + pole ** (2 * length - 1 - steps)
        result[0] += pole / (1.0 - pole ** (2 * length)) * (echo @ result)
        for row in range(1, length):
            result[row] += pole * result[row - 1]
        result[-1] *= pole / (pole - 1.0)
        for row in range(length - 2, -1, -1):
            result[row] = pole * (result[row + 1] - result[row])
    return result


def _b_spline(distance: np.ndarray, order: int) -> np.ndarray:
    """The centred B-spline of a degree >= 1, by truncated powers (only near its support: they cancel badly far out)."""
    reach = (order + 1) / 2
    near = np.abs(distance) < reach
    x = distance[near] + reach
    total = np.zeros_like(x)
    for k in range(order + 2):
        total += (-1) ** k * math.comb(order + 1, k) * np.maximum(x - k, 0.0) ** order
    result = np.zeros_like(distance)
    result[near] = total / math.factorial(order)
    return result
