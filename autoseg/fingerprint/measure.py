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
from autoseg.ops.components import count_components
from autoseg.ops.crop import nonzero_box
from autoseg.schema.dataset import DatasetSpec, Label, Labels
from autoseg.schema.fingerprint import CaseFingerprint, ClassCount, Fingerprint, Intensities

SKETCH = 4096


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
    foreground = label > 0
    if labels.ignore_index is not None:
        foreground &= label != labels.ignore_index
    values = [np.sort(channel[foreground]) for channel in image.data]
    figures = CaseFingerprint(
        id=id,
        shape=tuple(int(length) for length in image.data.shape[1:]),
        cropped_shape=tuple(stop - start for start, stop in box),
        spacing=tuple(float(step) for step in image.geometry.spacing),
        classes=tuple(_count(item, label, labels) for item in labels.foreground),
        intensities=tuple(_exact(channel) for channel in values),
    )
    return CaseStats(figures=figures, sketches=tuple(_sketch(channel) for channel in values))


def _count(item: Label, label: np.ndarray, labels: Labels) -> ClassCount:
    indices = labels.internal(item)
    mask = label == indices[0] if len(indices) == 1 else np.isin(label, indices)
    voxels = int(np.count_nonzero(mask))
    return ClassCount(name=item.name, voxels=voxels, components=count_components(mask) if voxels else 0)


def _exact(values: np.ndarray) -> Intensities:
    """Statistics of sorted values; percentiles interpolate linearly, as ``numpy.percentile``."""
    if not len(values):
        nan = math.nan
        return Intensities(
            count=0, mean=nan, std=nan, minimum=nan, maximum=nan, median=nan, percentile_00_5=nan, percentile_99_5=nan
        )
    low, middle, high = _quantiles(values, (0.005, 0.5, 0.995))
    return Intensities(
        count=len(values),
        mean=float(values.mean(dtype=np.float64)),
        std=float(values.std(dtype=np.float64)),
        minimum=float(values[0]),
        maximum=float(values[-1]),
        median=middle,
        percentile_00_5=low,
        percentile_99_5=high,
    )


def _quantiles(ordered: np.ndarray, fractions: Sequence[float]) -> list[float]:
    positions = np.asarray(fractions) * (len(ordered) - 1)
    return [float(value) for value in np.interp(positions, np.arange(len(ordered)), ordered)]


def _sketch(ordered: np.ndarray) -> np.ndarray:
    if len(ordered) <= SKETCH:
        return ordered.astype(np.float32)
    chosen = np.rint(np.linspace(0, len(ordered) - 1, SKETCH)).astype(np.int64)
    return ordered[chosen].astype(np.float32)


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
        return _exact(np.empty(0))
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
    """Quantiles of the union in which each sketch has total weight 1, spread over its values."""
    values = np.concatenate(sketches).astype(np.float64)
    weights = np.concatenate([np.full(len(sketch), 1.0 / len(sketch)) for sketch in sketches])
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    # The middle of each value's weight, so that one sketch alone gives its own quantiles.
    middles = np.cumsum(weights) - weights / 2
    first, last = middles[0], middles[-1]
    wanted = first + np.asarray(fractions) * (last - first)
    return [float(value) for value in np.interp(wanted, middles, values)]


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
    description = [list(spec.channels), repr(spec.labels), entries]
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()
