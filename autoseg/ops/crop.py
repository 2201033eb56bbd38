"""Cutting away what is empty around an image."""

from __future__ import annotations

import numpy as np

from autoseg.ops.components import fill_holes

Box = tuple[tuple[int, int], ...]
"""Half-open (start, stop) per spatial axis."""


def nonzero_box(image: np.ndarray) -> Box:
    """The smallest box of (c, z, y, x) with every voxel that has a non-zero channel; the full box if there is none."""
    occupied = _occupied(image)
    box = []
    for axis in range(occupied.ndim):
        others = tuple(other for other in range(occupied.ndim) if other != axis)
        hits = np.flatnonzero(occupied.any(axis=others))
        if not len(hits):
            return tuple((0, length) for length in occupied.shape)
        box.append((int(hits[0]), int(hits[-1]) + 1))
    return tuple(box)


def nonzero_mask(image: np.ndarray) -> np.ndarray:
    """Where any channel of (c, z, y, x) is not zero, with enclosed holes filled: bool (z, y, x)."""
    return fill_holes(_occupied(image))


def crop(array: np.ndarray, box: Box) -> np.ndarray:
    """A view of the box over the last ``len(box)`` axes."""
    leading = (slice(None),) * (array.ndim - len(box))
    return array[leading + tuple(slice(start, stop) for start, stop in box)]


def _occupied(image: np.ndarray) -> np.ndarray:
    mask = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    return mask
