"""Resizing of label maps: the label whose linearly resized indicator is largest wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from autoseg.ops.crop import nonzero_box
from autoseg.ops.linear import AxisTable, axis_table, corners, unanimous

# Weights are sums of products of float64 fractions: what differs by less is a tie that rounding has broken.
_TIE = 1e-9


def resize_labels(
    labels: np.ndarray, shape: Sequence[int], *, order: int = 1, separate_axis: int | None = None, order_z: int = 0
) -> np.ndarray:
    """Resize a label map (z, y, x) of any integers to ``shape``; the dtype stays.

    Order 1: each label's indicator is resized linearly and the largest wins; ties go to the nearest neighbour's
    label if it is among the tied ones, else to the smallest of them (nnU-Net with batchgenerators >= 0.25.2).
    Order 0: the nearest voxel. With ``separate_axis`` the slices are resized first, and then that axis with
    ``order_z``. Only voxels between different labels are computed, so neither time nor memory depends on how many
    labels there are: beside the result, a few planes.

    Raises:
        ValueError: another order, or not three axes.
    """
    target = tuple(int(length) for length in shape)
    if labels.ndim != 3 or len(target) != 3:
        raise ValueError(f"labels must have three axes, not {labels.ndim} resized to {len(target)}")
    if separate_axis is None:
        return _resize(labels, target, (order,) * 3)
    kept = list(target)
    kept[separate_axis] = labels.shape[separate_axis]
    orders = [0, 0, 0]
    orders[separate_axis] = order_z
    along = kept[separate_axis] != target[separate_axis]
    if order_z == 0 and target[separate_axis] < kept[separate_axis]:
        # Nearest slices can be picked before the others are resized in vain.
        kept = [target[i] if i == separate_axis else labels.shape[i] for i in range(3)]
        return _resize(_resize(labels, kept, orders), target, (order,) * 3)
    resized = _resize(labels, kept, (order,) * 3)
    return _resize(resized, target, orders) if along else resized


def _resize(labels: np.ndarray, shape: Sequence[int], orders: Sequence[int]) -> np.ndarray:
    if labels.shape == tuple(shape):
        return labels.copy()
    depth, rows, columns = (
        axis_table(n_in, n_out, order) for n_in, n_out, order in zip(labels.shape, shape, orders, strict=True)
    )
    result = np.zeros(shape, dtype=labels.dtype)
    tables = depth, rows, columns
    # Where all corners are background, so is the voxel.
    reached = [_reached(table, span) for table, span in zip(tables, nonzero_box(labels[np.newaxis]), strict=True)]
    inside = result[tuple(reached)]
    rows, columns = (_part(table, span) for table, span in zip((rows, columns), reached[1:], strict=True))
    for z, plane in zip(range(reached[0].start, reached[0].stop), inside, strict=True):
        lower = labels[depth.low[z]]
        upper = lower if depth.low[z] == depth.high[z] else labels[depth.high[z]]
        value, same = unanimous(lower, upper, rows, columns)
        plane[...] = value
        mixed = np.divmod(np.flatnonzero(~same), plane.shape[1])
        if len(mixed[0]):
            places = [index + span.start for index, span in zip(mixed, reached[1:], strict=True)]
            plane[mixed] = _vote(labels, tables, (np.full(len(mixed[0]), z), *places))
    return result


def _reached(table: AxisTable, span: tuple[int, int]) -> slice:
    """The outputs between inputs of which at least one lies in ``span``."""
    start, stop = span
    return slice(int(np.searchsorted(table.high, start)), int(np.searchsorted(table.low, stop)))


def _part(table: AxisTable, span: slice) -> AxisTable:
    return replace(
        table,
        low=table.low[span],
        high=table.high[span],
        weight=table.weight[span],
        nearest=table.nearest[span],
        identity=table.identity and span == slice(0, len(table.low)),
    )


def _vote(labels: np.ndarray, tables: Sequence[AxisTable], points: Sequence[np.ndarray]) -> np.ndarray:
    """The label with the largest sum of corner weights at each point."""
    around = corners(tables, points)
    values = [labels[where] for where, _ in around]
    scores = [weight.copy() for _, weight in around]
    for (i, one), (j, other) in combinations(enumerate(values), 2):
        equal = one == other
        scores[i] += np.where(equal, around[j][1], 0.0)
        scores[j] += np.where(equal, around[i][1], 0.0)
    best = np.maximum.reduce(scores) - _TIE
    nearest = labels[tuple(table.nearest[index] for table, index in zip(tables, points, strict=True))]
    winner = np.full(nearest.shape, np.iinfo(labels.dtype).max, dtype=labels.dtype)
    nearest_wins = np.zeros(nearest.shape, dtype=bool)
    for value, score in zip(values, scores, strict=True):
        top = score >= best
        np.minimum(winner, value, out=winner, where=top)
        nearest_wins |= top & (value == nearest)
    return np.where(nearest_wins, nearest, winner)
