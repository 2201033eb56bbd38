"""Rules on connected components of a label map; what each rule does is said at ``PostStep``.

Components are those of ``ops.components``: voxels that share a face, an edge or a corner are connected, as in
nnU-Net. The background of a hole is connected through faces only, the complement of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from autoseg.ops.components import fill_holes, largest_component, remove_small
from autoseg.schema.postprocessing import FILL_HOLES, KEEP_LARGEST, REMOVE_SMALL, PostStep

Box = tuple[slice, ...]


def postprocess(labels: np.ndarray, steps: Sequence[PostStep], *, voxel_size: float) -> np.ndarray:
    """A label map after a chain of steps; the array given is left as it is.

    Args:
        labels: integers of label files, (z, y, x); of a picture z = 1, and holes are those within the plane.
        steps: applied in order.
        voxel_size: mm^3 of a voxel, or mm^2 of a pixel.
    """
    result = labels
    for step in steps:
        result = _apply(result, step, voxel_size)
    return result


def _apply(labels: np.ndarray, step: PostStep, voxel_size: float) -> np.ndarray:
    mask = labels == step.values[0] if len(step.values) == 1 else np.isin(labels, step.values)
    box = _bounding_box(mask)
    if box is None:
        return labels
    inside = mask[box]
    kept = _RULES[step.rule](inside, step, voxel_size, labels.shape[0] == 1)
    changed = kept != inside
    if step.rule == FILL_HOLES:
        # A hole may hold other labels: they were predicted, and stay.
        changed &= labels[box] == 0
    if not changed.any():
        return labels
    value = step.fill if step.rule == FILL_HOLES else 0
    result = labels.copy() if value <= np.iinfo(labels.dtype).max else labels.astype(np.int32)
    result[box][changed] = value
    return result


def _largest(mask: np.ndarray, step: PostStep, voxel_size: float, picture: bool) -> np.ndarray:
    return largest_component(mask)


def _small(mask: np.ndarray, step: PostStep, voxel_size: float, picture: bool) -> np.ndarray:
    # Spacings are rounded in files: 100 mm3 are 100 voxels of 0.9999999 mm3.
    return remove_small(mask, max(1, math.ceil(step.minimum_mm3 / voxel_size - 1e-3)))


def _filled(mask: np.ndarray, step: PostStep, voxel_size: float, picture: bool) -> np.ndarray:
    """Around its box a mask has nothing, or the volume ends: what is open in the box is open in the volume."""
    if min(mask.shape[1:] if picture else mask.shape) < 3:
        # Every voxel lies at the border.
        return mask
    if not picture:
        return fill_holes(mask)
    # A single plane is all border; between two full planes only its own rim is.
    return fill_holes(np.pad(mask, ((1, 1), (0, 0), (0, 0)), constant_values=True))[1:-1]


_RULES: dict[str, Callable[[np.ndarray, PostStep, float, bool], np.ndarray]] = {
    KEEP_LARGEST: _largest,
    REMOVE_SMALL: _small,
    FILL_HOLES: _filled,
}


def _bounding_box(mask: np.ndarray) -> Box | None:
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        if not len(hit):
            return None
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)
