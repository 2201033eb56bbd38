"""Distances from the voxels of one set to the nearest of another, exact on the voxel grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# A neighbourhood that is searched before anything else, in voxels of the finest axis.
_REACH = 9
# Neighbours of each voxel looked up together, doubled from one time to the next: most are found in the first few.
_FIRST_LOOKUP = 8
# Neighbours looked up at once, so that they stay in the cache.
_LOOKUPS = 1 << 17

# Up to so many pairs all their distances are taken, 3 ns each: a tree saves 3 ms at most, and takes 0.1 s to import.
_PAIRS = 1 << 21
_PAIRS_AT_ONCE = 1 << 14
# Measured with scipy 1.17 (one core): a distance transform costs 0.15 to 0.35 us per voxel, a tree 2 to 13 us per query
# point, so the tree wins while there are this many voxels per point. It also wants far less memory (80 bytes a voxel).
_VOXELS_PER_QUERY = 16
_LARGEST_TRANSFORM = 30_000_000


@dataclass(frozen=True)
class Voxels:
    """A bool mask inside a frame of background, and the flat indices of what is true in it, ascending."""

    mask: np.ndarray
    indices: np.ndarray

    @staticmethod
    def of(mask: np.ndarray) -> Voxels:
        return Voxels(mask, np.flatnonzero(mask))

    def places(self, which: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
        """Positions (axes, n) in mm of flat indices."""
        return np.stack(np.unravel_index(which, self.mask.shape)) * np.asarray(spacing)[:, None]


@dataclass(frozen=True)
class Neighbourhood:
    """Offsets in voxels (n, axes) around a voxel and their lengths in mm (n,), ascending.

    Offsets that are left out are longer, or lead out of the array. ``margins`` are the largest offsets along each axis,
    which a frame must be wide for no neighbour to lie outside the array.
    """

    spacing: tuple[float, ...]
    margins: tuple[int, ...]
    offsets: np.ndarray
    lengths: np.ndarray


def neighbourhood(spacing: tuple[float, ...], shape: Sequence[int]) -> Neighbourhood:
    finest = min((step for step, length in zip(spacing, shape, strict=True) if length > 1), default=spacing[0])
    farthest = finest * (_REACH + 1)
    # At least one wherever a voxel has faces: along axes that are longer than a voxel, or all if none is.
    margins = (
        max(min(length - 1, int(farthest / step)), 1 if length > 1 or max(shape) == 1 else 0)
        for length, step in zip(shape, spacing, strict=True)
    )
    return _complete(spacing, farthest, tuple(margins))


@lru_cache(maxsize=64)
def _complete(spacing: tuple[float, ...], farthest: float, margins: tuple[int, ...]) -> Neighbourhood:
    offsets = np.stack(np.meshgrid(*(np.arange(-few, few + 1) for few in margins), indexing="ij"), axis=-1)
    offsets = offsets.reshape(-1, len(margins))
    lengths = np.sqrt(((offsets * np.asarray(spacing)) ** 2).sum(axis=1))
    order = np.argsort(lengths, kind="stable")
    # A little less, so that rounding lets in all or none of the offsets that are mirror images of each other.
    low, high = np.searchsorted(lengths[order], (0.0, farthest * (1 - 1e-6)), side="right")
    return Neighbourhood(spacing, margins, offsets[order[low:high]], lengths[order[low:high]])


def distances_to_nearest(source: Voxels, target: Voxels, near: Neighbourhood) -> np.ndarray:
    """For each voxel of ``source``, in C order, the distance in mm to the nearest of ``target``; infinite without any.

    Both lie in arrays of one shape, inside a frame as wide as ``near.margins``.
    """
    points = source.indices
    if not len(points) or not len(target.indices):
        return np.full(len(points), np.inf)
    # A good prediction shares most of its surface with the reference: those distances are 0 without a search.
    distances = np.zeros(len(points))
    left = np.flatnonzero(~target.mask.reshape(-1)[points])
    jumps = near.offsets @ np.array(target.mask.strides)
    start, count = 0, _FIRST_LOOKUP
    while len(left) and start < len(jumps):
        some = slice(start, start + count)
        left = _look_around(points, left, target.mask, jumps[some], near.lengths[some], distances)
        start, count = some.stop, 2 * count
    if len(left):
        distances[left] = _far(points[left], target, near.spacing)
    return distances


def _look_around(
    points: np.ndarray,
    which: np.ndarray,
    target: np.ndarray,
    jumps: np.ndarray,
    lengths: np.ndarray,
    distances: np.ndarray,
) -> np.ndarray:
    """Write the distance of each point (flat index) in ``which`` that has a voxel of ``target`` at one of the jumps.

    Surfaces that are almost the same are a few voxels apart: this is then some ten times faster than a tree.

    Args:
        points: flat indices of all points.
        which: those that are searched for.
        target: bool, the voxels to find.
        jumps: (n,) to add to a flat index.
        lengths: (n,) mm of each jump, ascending.
        distances: one for each of ``points``; those that are found are written.

    Returns:
        What of ``which`` is left.
    """
    flat = target.reshape(-1)
    left = []
    step = max(1, _LOOKUPS // len(jumps))
    for start in range(0, len(which), step):
        some = which[start : start + step]
        hits = flat.take(points[some] + jumps[:, None])
        found, first = hits.any(axis=0), hits.argmax(axis=0)
        distances[some[found]] = lengths[first[found]]
        left.append(some[~found])
    return np.concatenate(left)


def _far(points: np.ndarray, target: Voxels, spacing: Sequence[float]) -> np.ndarray:
    """Distances from points (flat indices) to the nearest voxel of ``target``, by what is fastest for so many."""
    if len(points) * len(target.indices) <= _PAIRS:
        return _by_pairs(points, target, spacing)
    size = target.mask.size
    by_transform = len(points) * _VOXELS_PER_QUERY > size and size <= _LARGEST_TRANSFORM
    return (_by_transform if by_transform else _by_tree)(points, target, spacing)


def _by_pairs(points: np.ndarray, target: Voxels, spacing: Sequence[float]) -> np.ndarray:
    """As ``_far``."""
    places, queries = (target.places(which, spacing) for which in (target.indices, points))
    distances = np.empty(len(points))
    step = max(1, _PAIRS_AT_ONCE // places.shape[1])
    for start in range(0, len(points), step):
        some = slice(start, start + step)
        squares = np.zeros((len(distances[some]), places.shape[1]))
        for query, place in zip(queries[:, some], places, strict=True):
            offsets = query[:, None] - place
            offsets *= offsets
            squares += offsets
        distances[some] = np.sqrt(squares.min(axis=1))
    return distances


def _by_tree(points: np.ndarray, target: Voxels, spacing: Sequence[float]) -> np.ndarray:
    """As ``_far``."""
    # Imported where it is needed, which most folders of predictions never do.
    from scipy.spatial import cKDTree

    places, queries = (target.places(which, spacing).T for which in (target.indices, points))
    # An unbalanced tree is built faster and answers as fast, because voxels are spread evenly.
    return cKDTree(places, balanced_tree=False, compact_nodes=False).query(queries)[0]


def _by_transform(points: np.ndarray, target: Voxels, spacing: Sequence[float]) -> np.ndarray:
    """As ``_far``."""
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(~target.mask, sampling=spacing).reshape(-1)[points]
