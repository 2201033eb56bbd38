"""Gaussian blur, as products with small banded matrices.

With 3 to 7 taps that takes less than half the time of adding shifted copies: a voxel is fetched once per axis.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Voxels along an axis per product: with fewer, calls cost most of the time, and with more, products with zero.
_CPU_ROWS = 32


def blur(rows: Tensor, sigma: NDArray[np.float64]) -> Tensor:
    """Gaussian blur of each row (n, *patch) with its sigmas (n, axes) in voxels, reflected at the borders; in place.

    The kernel has the odd number of taps nearest to 6 sigma + 0.5.
    """
    spare = torch.empty_like(rows[0])
    for row, along in zip(rows, sigma.tolist(), strict=True):
        source, other = row, spare
        for axis, one in enumerate(along):
            _blur_along(source, axis, one, out=other)
            source, other = other, source
        if source is not row:
            row.copy_(source)
    return rows


def _blur_along(volume: Tensor, axis: int, sigma: float, *, out: Tensor) -> None:
    before, size = int(np.prod(volume.shape[:axis])), volume.shape[axis]
    source, result = volume.view(before, size, -1), out.view(before, size, -1)
    rows = _CPU_ROWS if volume.device.type == "cpu" else size
    matrix, starts = _banded(size, sigma, rows)
    pieces = torch.from_numpy(matrix).to(volume).split(rows)
    for piece, start, made in zip(pieces, starts, result.split(rows, 1), strict=True):
        fetched = source.narrow(1, start, piece.shape[1])
        if source.shape[2] == 1:
            torch.mm(fetched[..., 0], piece.t(), out=made[..., 0])
        else:
            torch.bmm(piece.expand(before, -1, -1), fetched, out=made)


def _banded(size: int, sigma: float, rows: int) -> tuple[NDArray[np.float64], list[int]]:
    """The matrix of the blur without the columns that a few rows do not need: (size, width), and the first column
    that is left, of every ``rows`` rows."""
    reach = round((6 * sigma - 0.5) / 2)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    place = np.arange(size)[:, None]
    period = max(1, 2 * (size - 1))
    index = (place + np.arange(-reach, reach + 1)) % period
    index = np.minimum(index, period - index)
    firsts = np.arange(0, size, rows)
    width = min(size, rows + 2 * reach)
    starts = np.clip(firsts - reach, 0, size - width)
    column = index - np.repeat(starts, rows)[:size, None]
    weights = np.broadcast_to(kernel / kernel.sum(), index.shape)
    entries = np.bincount((place * width + column).ravel(), weights.ravel(), size * width).astype(np.float64)
    return entries.reshape(size, width), [int(start) for start in starts]
