"""Distances between the surfaces of two masks, exact on the voxel grid.

The definition is MONAI's (also that of MedPy): the surface of a mask is the set of its voxels that touch the outside
across a face, a distance is measured between voxel centres, and every surface voxel weighs the same. DeepMind's
surface-distance weighs by the area of a triangulated surface instead; on blobs the two differ by a fraction of a voxel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoseg.evaluation.nearest import Voxels, distances_to_nearest, neighbourhood


def surface(mask: np.ndarray, ignored: np.ndarray | None = None) -> np.ndarray:
    """The voxels of a mask that touch the outside across a face; the border of the array counts as outside.

    Axes of length 1 have no faces, so that the surface of a mask in a picture (1, y, x) is its contour. An ``ignored``
    voxel is neither inside nor outside: a mask that is cut off by it has no surface there.

    Args:
        mask: bool, any number of axes.
        ignored: bool of the same shape, disjoint from ``mask``.
    """
    framed = _framed_surface(mask, ignored, [1] * mask.ndim)
    return framed[(slice(1, -1),) * mask.ndim]


def _framed_surface(mask: np.ndarray, ignored: np.ndarray | None, margins: Sequence[int]) -> np.ndarray:
    """``surface`` inside a frame of background ``margins`` wide, at least 1 along axes that are longer than that."""
    framed = _framed(mask, margins)
    inside = framed.reshape(-1)
    filled = inside if ignored is None else inside | _framed(ignored, margins).reshape(-1)
    found = np.zeros_like(framed)
    axes = [axis for axis in range(mask.ndim) if mask.shape[axis] > 1] or list(range(mask.ndim))
    steps = [found.strides[axis] for axis in axes]
    # Within a frame a neighbour is always as many bytes away, so that all voxels are one row.
    start, stop = max(steps), found.size - max(steps)
    enclosed = np.ones(stop - start, dtype=bool)
    for step in (*steps, *(-step for step in steps)):
        enclosed &= filled[start + step : stop + step]
    # Of two bools the greater is the one that is true alone.
    np.greater(inside[start:stop], enclosed, out=found.reshape(-1)[start:stop])
    return found


def _framed(mask: np.ndarray, margins: Sequence[int]) -> np.ndarray:
    framed = np.zeros([length + 2 * margin for length, margin in zip(mask.shape, margins, strict=True)], dtype=bool)
    inner = [slice(margin, margin + length) for length, margin in zip(mask.shape, margins, strict=True)]
    framed[tuple(inner)] = mask
    return framed


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], *, ignored: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from each surface voxel of one mask to the nearest of the other.

    Args:
        reference: bool (z, y, x).
        prediction: bool of the same shape.
        spacing: mm per axis.
        ignored: bool of the same shape, disjoint from both masks, see ``surface``.

    Returns:
        Reference to prediction (one per surface voxel of the reference) and prediction to reference. Infinite where
        the other mask has no surface.
    """
    near = neighbourhood(tuple(spacing), reference.shape)
    first, second = (Voxels.of(_framed_surface(mask, ignored, near.margins)) for mask in (reference, prediction))
    return distances_to_nearest(first, second, near), distances_to_nearest(second, first, near)


def hd95(forward: np.ndarray, backward: np.ndarray) -> float:
    """The larger of the 95th percentiles (linear interpolation) of the two directed sets of distances, in mm.

    The definition of MONAI and DeepMind. MedPy takes one percentile of both sets together, which is never larger.
    NaN if a set is empty or infinite.
    """
    if not _defined(forward, backward):
        return float("nan")
    return max(_percentile95(forward), _percentile95(backward))


def _percentile95(values: np.ndarray) -> float:
    """``np.percentile(values, 95)``, which takes five times as long for some thousand values."""
    position = 0.95 * (len(values) - 1)
    index = int(position)
    above = min(index + 1, len(values) - 1)
    ordered = np.partition(values, (index, above))
    low, high, share = float(ordered[index]), float(ordered[above]), position - index
    # From the nearer of the two, as numpy does it.
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)


def assd(forward: np.ndarray, backward: np.ndarray) -> float:
    """Average symmetric surface distance in mm: the mean over all surface voxels of both masks; NaN as in ``hd95``."""
    if not _defined(forward, backward):
        return float("nan")
    return float((forward.sum() + backward.sum()) / (forward.size + backward.size))


def surface_dice(forward: np.ndarray, backward: np.ndarray, tolerance_mm: float) -> float:
    """Share of both surfaces that lies within ``tolerance_mm`` of the other one.

    Nikolov et al. 2018, arXiv:1809.04430, with surface voxels in place of surface area. 0 if only one mask has a
    surface, NaN if none has.
    """
    total = forward.size + backward.size
    if total == 0:
        return float("nan")
    # Spacings such as 0.1 are not exact in binary: a distance of just the tolerance must count as within it.
    limit = tolerance_mm + 1e-6
    return float((np.count_nonzero(forward <= limit) + np.count_nonzero(backward <= limit)) / total)


def _defined(forward: np.ndarray, backward: np.ndarray) -> bool:
    return forward.size > 0 and backward.size > 0
