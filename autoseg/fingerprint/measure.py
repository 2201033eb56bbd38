"""Shapes, spacings, label counts and foreground intensities: exact per case, pooled with bounded memory.

The figures of a case are exact. To pool them, each case hands on a sketch: at most ``SKETCH`` order statistics of its
foreground, evenly spaced. Every case with foreground weighs the same, as in nnU-Net, which draws equally many voxels
from each; but nothing is drawn here, and the ignore label is not foreground.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.io.companions import companions
from autoseg.io.volume import Volume
from autoseg.ops.components import count_class_components, count_components
from autoseg.ops.crop import crop, nonzero_box
from autoseg.schema.dataset import DatasetSpec, Labels
from autoseg.schema.fingerprint import CaseFingerprint, ClassCount, Fingerprint, Intensities

SKETCH = 4096
_PIECE = 1 << 20
_MERGED = 1 << 16


@dataclass(frozen=True, kw_only=True)
class CaseStats:
    """A case's figures and one sorted float32 sketch per channel (empty where the case has no foreground)."""

    figures: CaseFingerprint
    sketches: tuple[np.ndarray, ...]

    @property
    def id(self) -> str:
        return self.figures.id


def case_stats(id: str, image: Volume, label: np.ndarray, labels: Labels) -> CaseStats:  # noqa: A002
    """Measure one case.

    Args:
        image: data (c, z, y, x).
        label: (z, y, x) internal indices (see ``Labels``).
    """
    box = nonzero_box(image.data)
    values = [_ordered(channel, label, labels.ignore_index) for channel in image.data]
    figures = CaseFingerprint(
        id=id,
        shape=tuple(int(length) for length in image.data.shape[1:]),
        cropped_shape=tuple(stop - start for start, stop in box),
        spacing=tuple(float(step) for step in image.geometry.spacing),
        classes=_classes(label, labels),
        intensities=tuple(_exact(channel) for channel in values),
    )
    return CaseStats(figures=figures, sketches=tuple(_sketch(channel) for channel in values))


def _classes(label: np.ndarray, labels: Labels) -> tuple[ClassCount, ...]:
    """Voxels and components of every foreground label, looked for where there is any."""
    part = crop(label, nonzero_box(label[np.newaxis]))
    plain = [labels.internal(item)[0] for item in labels.foreground if len(item.values) == 1]
    found = count_class_components(part, max(plain, default=0))
    return tuple(
        ClassCount(name=item.name, voxels=voxels, components=components)
        for item in labels.foreground
        for voxels, components in [_of_class(part, labels.internal(item), found)]
    )


def _of_class(label: np.ndarray, indices: Sequence[int], found: Sequence[tuple[int, int]]) -> tuple[int, int]:
    if len(indices) == 1:
        return found[indices[0]]
    mask = np.isin(label, indices)
    voxels = int(np.count_nonzero(mask))
    return voxels, count_components(mask) if voxels else 0


@dataclass(frozen=True, kw_only=True)
class _Ordered:
    """Values in ascending order, each once with its count (``ends`` are their running sum), or all of them."""

    values: np.ndarray
    ends: np.ndarray | None = None

    def __len__(self) -> int:
        if self.ends is None:
            return len(self.values)
        return int(self.ends[-1]) if len(self.ends) else 0

    def at(self, ranks: np.ndarray) -> np.ndarray:
        """The order statistics of these ranks, from 0."""
        return self.values[ranks if self.ends is None else np.searchsorted(self.ends, ranks, side="right")]

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation."""
        if self.ends is None:
            mean = float(self.values.mean(dtype=np.float64))
            # In pieces: a float64 copy would be larger than all that is kept.
            pieces = np.array_split(self.values, -(-len(self.values) // _PIECE))
            return mean, math.sqrt(sum(float(np.square(piece - mean).sum()) for piece in pieces) / len(self.values))
        counts = np.diff(self.ends, prepend=0)
        mean = float(counts @ self.values.astype(np.float64)) / len(self)
        return mean, math.sqrt(float(counts @ np.square(self.values - mean)) / len(self))


def _ordered(channel: np.ndarray, label: np.ndarray, ignored: int | None) -> _Ordered:
    """The foreground of a channel, plane by plane; integers of up to 16 bits are counted, others sorted."""
    parts = (plane[_is_foreground(marked, ignored)] for plane, marked in zip(channel, label, strict=True))
    if channel.dtype.kind not in "iu" or channel.dtype.itemsize > 2:
        values = np.concatenate(list(parts))
        values.sort()
        return _Ordered(values=values)
    lowest = int(np.iinfo(channel.dtype).min)
    counts = np.zeros(1 << (8 * channel.dtype.itemsize), dtype=np.int64)
    for values in parts:
        if len(values):
            low = int(values.min())
            found = np.bincount(values.astype(np.intp) - low)
            counts[low - lowest : low - lowest + len(found)] += found
    present = np.flatnonzero(counts)
    return _Ordered(values=present + lowest, ends=np.cumsum(counts[present]))


def _is_foreground(label: np.ndarray, ignored: int | None) -> np.ndarray:
    return label > 0 if ignored is None else (label > 0) & (label != ignored)


def _exact(ordered: _Ordered) -> Intensities:
    """Statistics of all values; percentiles interpolate linearly, as ``numpy.percentile``."""
    count = len(ordered)
    if not count:
        nan = math.nan
        return Intensities(
            count=0, mean=nan, std=nan, minimum=nan, maximum=nan, median=nan, percentile_00_5=nan, percentile_99_5=nan
        )
    positions = np.array([0.005, 0.5, 0.995]) * (count - 1)
    below = np.floor(positions).astype(np.int64)
    lower, upper = (ordered.at(np.minimum(rank, count - 1)).astype(np.float64) for rank in (below, below + 1))
    low, middle, high = lower + (positions - below) * (upper - lower)
    mean, std = ordered.moments()
    return Intensities(
        count=count,
        mean=mean,
        std=std,
        minimum=float(ordered.values[0]),
        maximum=float(ordered.values[-1]),
        median=float(middle),
        percentile_00_5=float(low),
        percentile_99_5=float(high),
    )


def _sketch(ordered: _Ordered) -> np.ndarray:
    count = len(ordered)
    ranks = np.arange(count) if count <= SKETCH else np.rint(np.linspace(0, count - 1, SKETCH)).astype(np.int64)
    return ordered.at(ranks).astype(np.float32)


def merge(stats: Sequence[CaseStats], *, dataset: str, content_hash: str) -> Fingerprint:
    """All cases as one fingerprint, with pooled intensities per channel."""
    channels = len(stats[0].sketches) if stats else 0
    return Fingerprint(
        dataset=dataset,
        content_hash=content_hash,
        cases=tuple(item.figures for item in stats),
        intensities=tuple(_pooled(stats, channel) for channel in range(channels)),
    )


def _pooled(stats: Sequence[CaseStats], channel: int) -> Intensities:
    """Mean and standard deviation from the exact moments of the cases, percentiles from their weighted sketches."""
    known = [item for item in stats if item.figures.intensities[channel].count]
    if not known:
        return _exact(_Ordered(values=np.empty(0)))
    figures = [item.figures.intensities[channel] for item in known]
    means = np.array([item.mean for item in figures])
    squares = np.array([item.std**2 + item.mean**2 for item in figures])
    mean = float(means.mean())
    sketches = [item.sketches[channel] for item in known]
    low, middle, high = _weighted_quantiles(sketches, (0.005, 0.5, 0.995))
    return Intensities(
        count=sum(item.count for item in figures),
        mean=mean,
        std=math.sqrt(max(float(squares.mean()) - mean**2, 0.0)),
        minimum=min(item.minimum for item in figures),
        maximum=max(item.maximum for item in figures),
        median=middle,
        percentile_00_5=low,
        percentile_99_5=high,
    )


def _weighted_quantiles(sketches: Sequence[np.ndarray], fractions: Sequence[float]) -> list[float]:
    """Quantiles of the union in which each sketch has total weight 1, spread over its values.

    The only memory that grows with the cases is a number of 8 bytes per value, sorted in place: its upper half orders
    as the float32 value does, the lower half is the sketch that it comes from.
    """
    keys = np.empty(sum(len(sketch) for sketch in sketches), dtype=np.uint64)
    start = 0
    for number, sketch in enumerate(sketches):
        keys[start : start + len(sketch)] = (_ascending(sketch).astype(np.uint64) << np.uint64(32)) | np.uint64(number)
        start += len(sketch)
    keys.sort()
    shares = np.array([1.0 / len(sketch) for sketch in sketches])
    owner = np.uint64(2**32 - 1)
    # A value stands at the middle of its weight, so that one sketch alone gives its own quantiles.
    first = shares[int(keys[0] & owner)] / 2
    last = len(sketches) - shares[int(keys[-1] & owner)] / 2
    wanted = first + np.asarray(fractions) * (last - first)
    found = np.full(len(wanted), math.nan)
    weight, edge = 0.0, None
    for piece in np.array_split(keys, -(-len(keys) // _MERGED)):
        weights = shares[(piece & owner).astype(np.intp)]
        middles = weight + np.cumsum(weights) - weights / 2
        values = _from_ascending((piece >> np.uint64(32)).astype(np.uint32)).astype(np.float64)
        weight += float(weights.sum())
        if edge is not None:
            middles, values = np.append(edge[0], middles), np.append(edge[1], values)
        here = np.isnan(found) & (wanted <= middles[-1])
        found[here] = np.interp(wanted[here], middles, values)
        edge = middles[-1], values[-1]
    found[np.isnan(found)] = values[-1]
    return found.tolist()


def _ascending(values: np.ndarray) -> np.ndarray:
    """float32 as uint32 of the same order: IEEE 754 sorts as integers, but for the sign."""
    bits = values.astype(np.float32, copy=False).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(2**31))


def _from_ascending(keys: np.ndarray) -> np.ndarray:
    return np.where(keys >> 31, keys & np.uint32(2**31 - 1), ~keys).view(np.float32)


def content_hash(spec: DatasetSpec) -> str:
    """Changes when files come, go, grow or are written again, or when channels or labels are described otherwise.

    Files that hold a part of an image (the voxels of .mhd, the spacing of a TIFF) count. Folders do not, so that a
    dataset may be moved.
    """
    files = [Path(name) for case in spec.cases for name in (*case.images, case.label) if name is not None]
    entries = []
    for path in (part for file in files for part in (file, *companions(file))):
        known = path.stat() if path.exists() else None
        entries.append([path.name, known.st_size if known else -1, known.st_mtime_ns if known else -1])
    description: list[object] = [list(spec.channels), repr(spec.labels), entries]
    partial = [[case.id, list(case.annotated)] for case in spec.cases if case.annotated is not None]
    if partial:
        description.append(partial)
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()
