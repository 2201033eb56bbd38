"""Gaussian blur, as sums of shifted copies: with 3 to 7 taps and what is added in the cache, nothing is faster."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Voxels that are summed at once: they and their sum fit the cache of a core.
_CPU_VOXELS = 2**18
# Voxels side by side that are at least read together.
_LINE = 64


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
    size = volume.shape[axis]
    kernel = _half_kernel(sigma)
    source, result = (part.view(math.prod(volume.shape[:axis]), size, -1) for part in (volume, out))
    most = _CPU_VOXELS if volume.device.type == "cpu" else volume.numel()
    width = max(_LINE, most // size)
    height = max(1, most // (size * min(width, source.shape[2])))
    for lines, sums in zip(source.split(width, 2), result.split(width, 2), strict=True):
        for few, total in zip(lines.split(height), sums.split(height), strict=True):
            _add_taps(few, kernel, out=total)


def _half_kernel(sigma: float) -> list[float]:
    """The weight of the middle and those of the taps at 1, 2, ... voxels to either side."""
    reach = round((6 * sigma - 0.5) / 2)
    weights = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    return (weights / (2 * weights.sum() - weights[0])).tolist()  # type: ignore[no-any-return]


def _add_taps(lines: Tensor, kernel: list[float], *, out: Tensor) -> None:
    """Write lines (n, size, m), blurred along their middle axis, into ``out``."""
    size = lines.shape[1]
    torch.mul(lines, kernel[0], out=out)
    for far, weight in enumerate(kernel[1:], start=1):
        if far >= size:
            # Reflected more than once: the axis is shorter than the kernel.
            for step in (-far, far):
                out.add_(lines.index_select(1, _reflected(size, step, lines.device)), alpha=weight)
            continue
        out[:, far:].add_(lines[:, :-far], alpha=weight)
        out[:, :-far].add_(lines[:, far:], alpha=weight)
        out[:, :far].add_(lines[:, 1 : far + 1].flip(1), alpha=weight)
        out[:, -far:].add_(lines[:, -far - 1 : -1].flip(1), alpha=weight)


def _reflected(size: int, step: int, device: torch.device) -> Tensor:
    """The voxel ``step`` voxels further from each of ``size``, where lines are reflected about their end voxels."""
    period = max(1, 2 * (size - 1))
    index = (torch.arange(size, device=device) + step) % period
    return torch.minimum(index, period - index)
