"""Fields that belong to the network's grid (probabilities, logits) on the image's grid, plane by plane."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from autoseg.ops.linear import AxisTable, axis_table
from autoseg.ops.resample import separate_axis
from autoseg.preprocessing.trace import Trace
from autoseg.schema.plan import Resampling


def restored_planes(pieces: Iterable[np.ndarray], trace: Trace, *, resampling: Resampling) -> Iterator[np.ndarray]:
    """Resize a field as ``Restorer`` resizes logits, and hand it out across the first axis of the network.

    Two planes of the image's size are in memory, whatever the depth.

    Args:
        pieces: (n, dz, y, x) at network resolution, which cover the z axis in order; drawn as they are needed.

    Yields:
        (n, rows, columns) float32, one for each plane of the crop of ``trace``, in transposed axes.
    """
    apart = separate_axis(trace.target_spacing, trace.transposed_spacing, resampling.anisotropy_threshold)
    orders = [resampling.order_z if axis == apart else resampling.order_logits for axis in range(3)]
    lengths = zip(trace.resampled_shape, trace.cropped_shape, orders, strict=True)
    depth, rows, columns = (axis_table(*length) for length in lengths)
    needed = set(depth.low.tolist()) | set(depth.high.tolist())
    kept: dict[int, np.ndarray] = {}
    received = done = 0
    for piece in pieces:
        for index in range(piece.shape[1]):
            if received in needed:
                kept[received] = _resized(_resized(piece[:, index], rows, 1), columns, 2)
            received += 1
            while done < len(depth.high) and depth.high[done] < received:
                lower, upper = kept[depth.low[done]], kept[depth.high[done]]
                yield lower.copy() if upper is lower else _mixed(lower, upper, depth.weight[done])
                done += 1
            first = depth.low[done] if done < len(depth.low) else received
            kept = {z: plane for z, plane in kept.items() if z >= first}


def _resized(plane: np.ndarray, axis_of: AxisTable, axis: int) -> np.ndarray:
    """A copy (n, y, x) float32 with one axis resized."""
    if axis_of.identity:
        return plane.astype(np.float32)
    weight = axis_of.weight[:, None] if axis == 1 else axis_of.weight
    return _mixed(plane.take(axis_of.low, axis), plane.take(axis_of.high, axis), weight)


def _mixed(lower: np.ndarray, upper: np.ndarray, weight: np.ndarray | float) -> np.ndarray:
    high = np.float32(weight)
    result: np.ndarray = lower * (1 - high) + upper * high
    return result.astype(np.float32, copy=False)
