"""Distances between the surfaces of two masks, exact on the voxel grid.

The definition is MONAI's (also that of MedPy): the surface of a mask is the set of its voxels that touch the outside
across a face, a distance is measured between voxel centres, and every surface voxel weighs the same. DeepMind's
surface-distance weighs by the area of a triangulated surface instead; on blobs the two differ by a fraction of a voxel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

# Measured with scipy 1.17 (one core): a distance transform costs 0.15 to 0.35 us per voxel, a tree 2 to 13 us per query
# point, so the tree wins while there are this many voxels per point. It also wants far less memory (80 bytes a voxel).
_VOXELS_PER_QUERY = 16
_LARGEST_TRANSFORM = 30_000_000


def surface(mask: np.ndarray, ignored: np.ndarray | None = None) -> np.ndarray:
    """The voxels of a mask that touch the outside across a face; the border of the array counts as outside.

    Axes of length 1 have no faces, so that the surface of a mask in a picture (1, y, x) is its contour. An ``ignored``
    voxel is neither inside nor outside: a mask that is cut off by it has no surface there.

    Args:
        mask: bool, any number of axes.
        ignored: bool of the same shape, disjoint from ``mask``.
    """
    axes = [axis for axis in range(mask.ndim) if mask.shape[axis] > 1] or list(range(mask.ndim))
    filled = mask if ignored is None else mask | ignored
    touching = np.zeros_like(mask)
    for axis in axes:
        outside = ~np.moveaxis(filled, axis, 0)
        near = np.moveaxis(touching, axis, 0)
        near[1:] |= outside[:-1]
        near[:-1] |= outside[1:]
        near[0] = near[-1] = True
    return mask & touching


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
    first, second = surface(reference, ignored), surface(prediction, ignored)
    return _directed(first, second, spacing), _directed(second, first, spacing)


def _directed(source: np.ndarray, target: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    if not target.any():
        return np.full(np.count_nonzero(source), np.inf)
    # A good prediction shares most of its surface with the reference: those distances are 0 without a search.
    apart = source & ~target
    queries = np.count_nonzero(apart)
    distances = np.zeros(np.count_nonzero(source))
    if queries:
        by_tree = queries * _VOXELS_PER_QUERY < source.size or source.size > _LARGEST_TRANSFORM
        found = (_by_tree if by_tree else _by_transform)(apart, target, spacing)
        distances[apart[source]] = found
    return distances


def _by_tree(source: np.ndarray, target: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    # An unbalanced tree is built faster and answers as fast, because voxels are spread evenly.
    tree = cKDTree(np.argwhere(target) * np.asarray(spacing), balanced_tree=False, compact_nodes=False)
    return tree.query(np.argwhere(source) * np.asarray(spacing))[0]


def _by_transform(source: np.ndarray, target: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    return distance_transform_edt(~target, sampling=spacing)[source]


def hd95(forward: np.ndarray, backward: np.ndarray) -> float:
    """The larger of the 95th percentiles (linear interpolation) of the two directed sets of distances, in mm.

    The definition of MONAI and DeepMind. MedPy takes one percentile of both sets together, which is never larger.
    NaN if a set is empty or infinite.
    """
    if not _defined(forward, backward):
        return float("nan")
    return float(max(np.percentile(forward, 95), np.percentile(backward, 95)))


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
