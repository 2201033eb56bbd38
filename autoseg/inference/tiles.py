"""Where windows lie, how much each voxel of a window counts, and how windows are grouped along z.

Facts sheet 7.1: windows cover the image with at least the asked overlap, evenly spread, the last one flush with the
border; Gaussian weights favour the middle of a window, where the network sees context on every side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from autoseg.errors import SettingError
from autoseg.schema.fingerprint import Shape

# The least weight of a voxel. Unbounded, corners that only one window covers would divide tiny sums by tiny weights;
# sums in float16 need more. At the faces of an image all weights are small, and a high floor would make a plain mean
# of windows of which some see the voxel at their very edge. This is nnU-Net's: the smallest float16, relative to 10.
WEIGHT_FLOOR = 2.0**-24 / 10
NARROW_FLOOR = 1e-3


def tile_starts(length: int, patch: int, step: float) -> tuple[int, ...]:
    """First voxels of windows of ``patch`` voxels along an axis of ``length``, at most ``step * patch`` apart.

    ``n = ceil((length - patch) / (step * patch)) + 1`` windows at ``round(i * (length - patch) / (n - 1))``; one
    window at 0 when the axis is not longer than the patch.

    Raises:
        SettingError: ``step`` outside (0, 1], which would leave gaps or never end.
    """
    if not 0 < step <= 1:
        raise SettingError(f"the step size {step} is not a fraction of the window", hint="use more than 0, at most 1")
    if length <= patch:
        return (0,)
    count = math.ceil((length - patch) / (step * patch)) + 1
    distance = (length - patch) / (count - 1)
    return tuple(round(index * distance) for index in range(count))


def gaussian_window(patch: Shape, *, floor: float = WEIGHT_FLOOR) -> np.ndarray:
    """Weights of a window, float32 of shape ``patch``: a Gaussian of sigma patch / 8 around voxel ``patch // 2``.

    The maximum is 1 and nothing is below ``floor``.
    """
    window = np.ones((), np.float64)
    for size in patch:
        offset = (np.arange(size) - size // 2) / (size / 8)
        window = window[..., None] * np.exp(-0.5 * offset**2)
    return np.maximum(window, floor).astype(np.float32)


def centred_padding(shape: Shape, patch: Shape) -> tuple[tuple[int, int], ...]:
    """Voxels to add before and after each axis so that the patch fits; an odd one goes behind."""
    missing = [max(0, size - length) for length, size in zip(shape, patch, strict=True)]
    return tuple((gap // 2, gap - gap // 2) for gap in missing)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Windows that are evaluated together: every (y, x) place at some neighbouring z starts.

    After a group, the planes from ``first`` to ``done`` (exclusive) get no further windows.
    """

    corners: tuple[tuple[int, int, int], ...]
    first: int
    done: int


def tile_groups(shape: Shape, patch: Shape, step: float, *, per_batch: int) -> tuple[tuple[Group, ...], int]:
    """Windows of a volume in z order, and the number of planes that the widest group spans.

    One group has all windows of one z start, or of several if they fit into a batch together. ``shape`` (z, y, x) is
    at least ``patch`` on every axis. A patch of one plane takes every plane.
    """
    starts = [tile_starts(length, size, step) for length, size in zip(shape, patch, strict=True)]
    z_starts = tuple(range(shape[0])) if patch[0] == 1 else starts[0]
    places = list(product(starts[1], starts[2]))
    rows = max(1, per_batch // len(places))
    groups = []
    span = patch[0]
    for index in range(0, len(z_starts), rows):
        members: Sequence[int] = z_starts[index : index + rows]
        following = z_starts[index + rows] if index + rows < len(z_starts) else shape[0]
        corners = tuple((z, y, x) for z in members for y, x in places)
        groups.append(Group(corners=corners, first=members[0], done=following))
        span = max(span, members[-1] + patch[0] - members[0])
    return tuple(groups), span
