"""Where in a label map each integer occurs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Slices = tuple[slice, ...]

# As many integers as a byte has bits are looked for at once.
_BITS = 8
_WINDOW = 31 * _BITS


def bounding_boxes(array: np.ndarray, values: Sequence[int]) -> dict[int, Slices]:
    """The smallest box around each of ``values`` that occurs in an array of integers.

    Every voxel becomes a byte with one bit per value, and the bytes are joined along the axes: for eight values a tenth
    of the time of ``scipy.ndimage.find_objects``, for a hundred about as much (numpy 2.4, uint8).
    """
    boxes: dict[int, Slices] = {}
    integers = array.view(np.uint8) if array.dtype == bool else array
    limits = np.iinfo(integers.dtype)
    pending = sorted(value for value in values if limits.min <= value <= limits.max)
    while pending and integers.size:
        lowest = pending[0]
        distances = _distances(integers, lowest)
        while pending and pending[0] < lowest + _WINDOW:
            first = pending[0] - lowest
            profiles = _profiles(np.left_shift(np.uint8(1), distances - np.uint8(first)))
            while pending and pending[0] < lowest + first + _BITS:
                value = pending.pop(0)
                bit = 1 << (value - lowest - first)
                occupied = [np.flatnonzero(profile & bit) for profile in profiles]
                if all(map(len, occupied)):
                    boxes[value] = tuple(slice(int(where[0]), int(where[-1]) + 1) for where in occupied)
    return boxes


def _distances(array: np.ndarray, lowest: int) -> np.ndarray:
    """How far above ``lowest`` each voxel is, as uint8; 255 or a value beyond those that are asked for otherwise."""
    # What lies below wraps around, so that as unsigned it is as far off as what lies above.
    distances = (array - array.dtype.type(lowest)).view(f"u{array.dtype.itemsize}")
    return distances if distances.dtype == np.uint8 else np.minimum(distances, 255).astype(np.uint8)


def _profiles(bits: np.ndarray) -> list[np.ndarray]:
    """The bytes of an array joined by OR for every index of every axis."""
    first = np.bitwise_or.reduce(bits.reshape(len(bits), -1), axis=1)
    others = np.bitwise_or.reduce(bits, axis=0)
    axes = range(others.ndim)
    return [first, *(np.bitwise_or.reduce(others, axis=tuple(set(axes) - {axis})) for axis in axes)]
