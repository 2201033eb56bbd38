"""From logits back to a label map on the image's own grid, plane by plane.

Resizing logits linearly and then deciding (argmax, or thresholds for regions) needs the logits of every class at
full resolution. Two facts avoid that. A plane of the result needs two neighbouring planes of logits only. And where
the decisions at all corners around a voxel agree, its own decision is the same, because interpolation mixes the
corners with positive weights: only voxels between different decisions have to be computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autoseg.errors import SettingError
from autoseg.ops.crop import crop
from autoseg.ops.linear import axis_table, corners, unanimous
from autoseg.ops.resample import separate_axis
from autoseg.ops.spline import bands
from autoseg.preprocessing.trace import Trace
from autoseg.schema.dataset import Labels
from autoseg.schema.plan import Resampling

# Logits interpolated at once, and voxels decided at once: much is in the cache, and one numpy call is worth it.
_WORK = 1 << 19
_VOXELS = 1 << 14
# Above this share of undecided voxels, interpolating all of them is faster than picking them one by one.
_DENSE_ABOVE = 0.4


@dataclass(frozen=True)
class _Plane:
    """One plane of logits (heads, y, x) and the decisions of its voxels (y, x)."""

    logits: np.ndarray
    decisions: np.ndarray


class Restorer:
    """Takes planes of logits in order, gives back a label map: equal to resizing with order 1, then deciding.

    Resampling, crop and transposition of ``trace`` are undone; outside the crop is background. Along a separate
    axis (nnU-Net's rule, from network spacing to image spacing) ``resampling.order_z`` holds, else
    ``order_logits``. Regions are on where their logit is above 0, later ones win.

    Memory beside the result: the planes given to ``add``, copies of at most two of them, and some megabytes, whatever
    the depth. The result is one label map, and float16 (heads, z, y, x) if ``probabilities`` are asked for.

    Raises:
        SettingError: orders of resampling that look further than two planes.
    """

    def __init__(self, trace: Trace, *, labels: Labels, resampling: Resampling, probabilities: bool = False) -> None:
        if resampling.order_logits not in (0, 1) or resampling.order_z not in (0, 1):
            raise SettingError(
                f"logits are resampled with order 0 or 1, the plan says order_logits {resampling.order_logits} and "
                f"order_z {resampling.order_z}",
                hint="set resampling.order_logits to 1 and resampling.order_z to 0 in plan.json",
            )
        self._regions = labels.has_regions
        self._shape = (labels.num_heads, *trace.resampled_shape)
        apart = separate_axis(trace.target_spacing, trace.transposed_spacing, resampling.anisotropy_threshold)
        self._orders = [resampling.order_z if axis == apart else resampling.order_logits for axis in range(3)]
        lengths = zip(trace.resampled_shape, trace.cropped_shape, self._orders, strict=True)
        self._depth, self._rows, self._columns = (axis_table(*length) for length in lengths)
        self._needed = set(self._depth.low.tolist()) | set(self._depth.high.tolist())
        self._values = _output_values(labels)
        self._result = np.full(trace.shape, 0, dtype=self._values.dtype)
        self._target = crop(self._result.transpose(trace.transpose), trace.box)
        self.probabilities: np.ndarray | None = None
        if probabilities:
            self.probabilities = np.zeros((labels.num_heads, *trace.shape), dtype=np.float16)
            if not labels.has_regions:
                self.probabilities[0] = 1
            axes = (0, *(axis + 1 for axis in trace.transpose))
            self._probable = crop(self.probabilities.transpose(axes), trace.box)
        self._planes: dict[int, _Plane] = {}
        self._received = 0
        self._next = 0

    def add(self, planes: np.ndarray) -> None:
        """Take the next planes of logits: (heads, dz, y, x) at network resolution, axes transposed as in training.

        The array may be reused by the caller afterwards.

        Raises:
            ValueError: another shape than the trace says, or more planes than there are.
        """
        heads, depth, *plane = self._shape
        if planes.ndim != 4 or planes.shape[0] != heads or list(planes.shape[2:]) != plane:
            raise ValueError(f"expected planes of shape ({heads}, dz, {plane[0]}, {plane[1]}), found {planes.shape}")
        if self._received + planes.shape[1] > depth:
            raise ValueError(f"more than {depth} planes were added")
        for index in range(planes.shape[1]):
            if self._received in self._needed:
                logits = np.ascontiguousarray(planes[:, index], dtype=np.float32)
                self._planes[self._received] = _Plane(logits, self._decide(logits))
            self._received += 1
            self._advance()
        for z, kept in self._planes.items():
            if np.may_share_memory(kept.logits, planes):
                self._planes[z] = _Plane(kept.logits.copy(), kept.decisions)

    def finish(self) -> np.ndarray:
        """The label map (z, y, x) on the image's grid, in the integers of the dataset, in the smallest type for them.

        Raises:
            ValueError: planes are missing.
        """
        if self._received != self._shape[1]:
            raise ValueError(f"only {self._received} of {self._shape[1]} planes were added")
        return self._result

    def _advance(self) -> None:
        """Write every plane of the result whose neighbours are there, forget what no later one needs."""
        while self._next < len(self._depth.high) and self._depth.high[self._next] < self._received:
            self._write(self._next)
            self._next += 1
        first = self._depth.low[self._next] if self._next < len(self._depth.low) else self._received
        self._planes = {z: plane for z, plane in self._planes.items() if z >= first}

    def _write(self, z: int) -> None:
        lower, upper = self._planes[self._depth.low[z]], self._planes[self._depth.high[z]]
        decisions, same = unanimous(lower.decisions, upper.decisions, self._rows, self._columns)
        height, width = decisions.shape
        step = max(1, _WORK // (self._shape[0] * width))
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            if self.probabilities is None and same[rows].mean() >= 1 - _DENSE_ABOVE:
                continue
            logits = self._dense(lower, upper, z, rows)
            decisions[rows] = self._decide(logits)
            same[rows] = True
            if self.probabilities is not None:
                self._probable[:, z, rows] = _probabilities(logits, self._regions)
        undecided = np.flatnonzero(~same)
        step = _WORK // self._shape[0]
        for start in range(0, len(undecided), step):
            flat = undecided[start : start + step]
            decisions.reshape(-1)[flat] = self._decide(self._sparse(lower, upper, z, flat))
        self._target[z] = self._values[decisions]

    def _dense(self, lower: _Plane, upper: _Plane, z: int, rows: slice) -> np.ndarray:
        """Logits of some rows of plane z of the result: (heads, rows, x)."""
        low, high = self._rows.low[rows], self._rows.high[rows]
        first, last = int(low[0]), int(high[-1]) + 1
        source = lower.logits[:, first:last]
        if upper is not lower:
            source = _mix(source, upper.logits[:, first:last], self._depth.weight[z : z + 1])
        if not self._rows.identity:
            source = _mix(source[:, low - first], source[:, high - first], self._rows.weight[rows, None])
        if self._columns.identity:
            return source
        flat = source.reshape(-1, source.shape[2])
        result = np.empty((len(flat), len(self._columns.low)), dtype=np.float32)
        for block in bands(flat.shape[1], result.shape[1], self._orders[2]):
            np.matmul(flat[:, block.first : block.last], block.weights.T, out=result[:, block.start : block.stop])
        return result.reshape(*source.shape[:2], -1)

    def _sparse(self, lower: _Plane, upper: _Plane, z: int, flat: np.ndarray) -> np.ndarray:
        """Logits of single voxels of plane z of the result, given by flat indices (n,): (heads, n)."""
        columns = self._shape[3]
        total = np.zeros((self._shape[0], len(flat)), dtype=np.float32)
        picked = np.empty_like(total)
        weight = self._depth.weight[z]
        sides = [(lower, 1.0)] if upper is lower else [(lower, 1.0 - weight), (upper, weight)]
        points = np.divmod(flat, len(self._columns.low))
        for (row, column), share in corners((self._rows, self._columns), points):
            index = row * columns + column
            for plane, depth_share in sides:
                logits = plane.logits.reshape(self._shape[0], -1)
                np.take(logits, index, axis=1, out=picked, mode="clip")
                picked *= (share * depth_share).astype(np.float32)
                total += picked
        return total

    def _decide(self, logits: np.ndarray) -> np.ndarray:
        """Decisions of (heads, ...): the head of the largest logit, or 1 + the last head above 0 (0 if none)."""
        heads = logits.shape[0]
        flat = logits.reshape(heads, -1)
        kind = np.uint8 if heads < 256 else np.uint16
        result = np.zeros(flat.shape[1], dtype=kind)
        decide = _last_on if self._regions else _largest
        for start in range(0, flat.shape[1], _VOXELS):
            decide(flat[:, start : start + _VOXELS], result[start : start + _VOXELS])
        return result.reshape(logits.shape[1:])


def restore_labels(logits: np.ndarray, trace: Trace, *, labels: Labels, resampling: Resampling) -> np.ndarray:
    """The label map of logits (heads, z, y, x) that are all there already; see ``Restorer``."""
    restorer = Restorer(trace, labels=labels, resampling=resampling)
    restorer.add(logits)
    return restorer.finish()


def _largest(logits: np.ndarray, result: np.ndarray) -> None:
    best = logits[0].copy()
    larger = np.empty(best.shape, dtype=bool)
    number = np.empty_like(result)
    for head in range(1, len(logits)):
        np.greater(logits[head], best, out=larger)
        np.maximum(best, logits[head], out=best)
        # Heads come in ascending order, so that the later winner is also the larger number.
        np.multiply(larger, result.dtype.type(head), out=number)
        np.maximum(result, number, out=result)


def _last_on(logits: np.ndarray, result: np.ndarray) -> None:
    for head, values in enumerate(logits, start=1):
        np.maximum(result, (values > 0) * result.dtype.type(head), out=result)


def _mix(lower: np.ndarray, upper: np.ndarray, weight: np.ndarray) -> np.ndarray:
    high = weight.astype(np.float32)
    mixed = lower * (1 - high)
    mixed += upper * high
    return mixed


def _probabilities(logits: np.ndarray, regions: bool) -> np.ndarray:
    if regions:
        return 0.5 + 0.5 * np.tanh(0.5 * logits)
    exponential = np.exp(logits - logits.max(axis=0))
    return exponential / exponential.sum(axis=0)


def _output_values(labels: Labels) -> np.ndarray:
    """The integer of the dataset for each decision, in the smallest dtype that writers take."""
    values = (0, *(labels.regions_class_order or ())) if labels.has_regions else labels.leaves
    kinds = (np.uint8, np.uint16, np.int16, np.int32)
    fits = (kind for kind in kinds if np.iinfo(kind).min <= min(values) and max(values) <= np.iinfo(kind).max)
    return np.array(values, dtype=next(fits, np.int64))
