"""Target spacing, order of the axes, and the shapes that follow from them. Axis order (z, y, x), mm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoseg.schema.fingerprint import Fingerprint, Shape, Spacing

# An axis counts as coarse if it is this many times coarser, and has this many times fewer voxels, than the others.
ANISOTROPY = 3.0


def target_spacing(fingerprint: Fingerprint) -> tuple[Spacing, str]:
    """The spacing of full resolution, and why.

    The median per axis; on a coarse axis the 10th percentile, so that thin-slice cases do not lose most of theirs,
    but never finer than the others.
    """
    spacings = np.array([case.spacing for case in fingerprint.cases])
    shapes = np.array([case.cropped_shape for case in fingerprint.cases])
    target = np.median(spacings, axis=0)
    size = np.median(shapes, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    coarsest_other = max(target[others])
    if not (target[worst] > ANISOTROPY * coarsest_other and ANISOTROPY * size[worst] < min(size[others])):
        return tuple(map(float, target)), "the target spacing is the median of the cases, axis by axis"
    target[worst] = max(np.percentile(spacings[:, worst], 10), coarsest_other + 1e-5)
    return (
        tuple(map(float, target)),
        "the target spacing is the median of the cases; on the coarse axis it is the 10th percentile, "
        "so that cases with thin slices keep them",
    )


def axis_order(spacing: Sequence[float], *, is_2d: bool) -> tuple[Shape, str]:
    """The order in which axes are stored, and why: the coarsest first, because 2D slices run across it.

    ``order[i]`` is the (z, y, x) axis that becomes axis i. Pictures keep theirs.
    """
    if is_2d:
        return (0, 1, 2), "the images are pictures: axes stay as they are"
    worst = int(np.argmax(spacing))
    order = (worst, *(axis for axis in range(3) if axis != worst))
    if worst == 0:
        return order, "z is the coarsest axis (or none is): axes stay as they are"
    return order, f"{'zyx'[worst]} is the coarsest axis, so it becomes the first one: 2D slices run across it"


def median_shape(fingerprint: Fingerprint, spacing: Sequence[float]) -> tuple[float, ...]:
    """Median over cases of the cropped shape after resampling to ``spacing`` (z, y, x); halves occur."""
    shapes = [
        [
            max(1, round(old / new * length))
            for length, old, new in zip(case.cropped_shape, case.spacing, spacing, strict=True)
        ]
        for case in fingerprint.cases
    ]
    return tuple(map(float, np.median(np.array(shapes), axis=0)))


def transposed(values: Sequence[float], order: Shape) -> tuple[float, ...]:
    """Values per (z, y, x) axis in the plan's order."""
    return tuple(values[axis] for axis in order)
