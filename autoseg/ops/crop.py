"""Cutting away what is empty around an image."""

from __future__ import annotations

import numpy as np

from autoseg.ops.components import fill_holes

Box = tuple[tuple[int, int], ...]
"""Half-open (start, stop) per spatial axis."""


def nonzero_box(image: np.ndarray) -> Box:
    """The smallest box of (c, z, y, x) with every voxel that has a non-zero channel; the full box if there is none."""
    box = [(0, length) for length in image.shape[1:]]
    for axis in range(len(box)):
        # Planes outside of what is known already are empty.
        planes = np.moveaxis(crop(image, tuple(box)), axis + 1, 0)
        first = next((index for index, plane in enumerate(planes) if plane.any()), None)
        if first is None:
            return tuple((0, length) for length in image.shape[1:])
        last = next(index for index in range(len(planes) - 1, first - 1, -1) if planes[index].any())
        box[axis] = (first, last + 1)
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
