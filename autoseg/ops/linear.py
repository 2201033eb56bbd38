"""Linear and nearest interpolation of one axis as a table of two neighbours, for work that visits few voxels.

Interpolating linearly mixes the two to eight corners around a point with weights that sum to one. Where a decision
(an argmax, a label) is the same at all corners, it is the same at the point, so only the points between different
decisions have to be computed. ``resize_labels`` and ``preprocessing.restore`` live on this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.ops.spline import coordinates


@dataclass(frozen=True)
class AxisTable:
    """Output i is ``(1 - weight[i]) * input[low[i]] + weight[i] * input[high[i]]``; ``low == high`` where weight is 0.

    ``nearest`` is the input voxel whose centre is closest (ties to the higher one, as scipy has it).
    """

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray
    nearest: np.ndarray
    identity: bool

    @property
    def two_sided(self) -> bool:
        """Whether any output lies between two inputs."""
        return bool((self.low != self.high).any())


def axis_table(n_in: int, n_out: int, order: int) -> AxisTable:
    """The table that resizes ``n_in`` voxels to ``n_out`` with order 0 (nearest) or 1 (linear), edges continued.

    Raises:
        ValueError: another order.
    """
    if order not in (0, 1):
        raise ValueError(f"neighbour tables exist for order 0 and 1, not {order}")
    centres = coordinates(n_in, n_out)
    nearest = np.clip(np.floor(centres + 0.5), 0, n_in - 1).astype(np.intp)
    if order == 0:
        return AxisTable(nearest, nearest, np.zeros(n_out), nearest, n_in == n_out)
    centres = np.clip(centres, 0, n_in - 1)
    low = np.floor(centres).astype(np.intp)
    weight = centres - low
    high = np.where(weight > 0, np.minimum(low + 1, n_in - 1), low)
    return AxisTable(low, high, weight, nearest, n_in == n_out)


def unanimous(
    lower: np.ndarray, upper: np.ndarray, rows: AxisTable, columns: AxisTable
) -> tuple[np.ndarray, np.ndarray]:
    """Expand two planes of decisions to one output plane between them.

    ``lower`` and ``upper`` are (y, x) arrays of integers (the same object where the plane lies in an input plane).
    Returns the decision at the lowest corner and whether all corners around the point agree with it, both (Y, X).
    """
    top = lower[rows.low]
    same = np.ones(top.shape, dtype=bool)
    if rows.two_sided:
        same &= lower[rows.high] == top
    if upper is not lower:
        same &= upper[rows.low] == top
        if rows.two_sided:
            same &= upper[rows.high] == top
    if columns.identity:
        return top, same
    value = np.take(top, columns.low, axis=1)
    agreed = np.take(same, columns.low, axis=1)
    if columns.two_sided:
        agreed &= np.take(same, columns.high, axis=1)
        agreed &= np.take(top, columns.high, axis=1) == value
    return value, agreed


def corners(
    tables: Sequence[AxisTable], points: Sequence[np.ndarray]
) -> list[tuple[tuple[np.ndarray, ...], np.ndarray]]:
    """The corners around points that are given by one array of output indices per axis.

    Returns (input indices per axis, weights) per corner, two per axis that is two-sided: the weights of a point sum
    to one.
    """
    found: list[tuple[tuple[np.ndarray, ...], np.ndarray]] = [((), np.ones(len(points[0])))]
    for table, index in zip(tables, points, strict=True):
        weight = table.weight[index]
        sides = [(table.low[index], 1.0 - weight)]
        if table.two_sided:
            sides.append((table.high[index], weight))
        found = [((*where, side), so_far * share) for where, so_far in found for side, share in sides]
    return found
