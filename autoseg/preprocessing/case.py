"""One case on its way to a network: transpose, crop, normalise, resample (in this order, as nnU-Net).

The way back is ``restore.Restorer``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from autoseg.io.volume import Volume
from autoseg.ops.crop import Box, crop, nonzero_box, nonzero_mask
from autoseg.ops.normalize import normalize
from autoseg.ops.resample import resize, resize_labels, separate_axis, target_shape
from autoseg.preprocessing.trace import Trace
from autoseg.schema.dataset import Labels
from autoseg.schema.plan import Configuration, Plan

ANNOTATED = -1
"""Key of ``class_locations`` for any annotated voxel, in datasets with an ignore label."""

_MAX_LOCATIONS = 10_000
_MIN_FRACTION = 0.01


@dataclass(frozen=True, kw_only=True)
class PreprocessedCase:
    """A case as a network sees it, axes transposed.

    ``image`` is float32 (c, z, y, x); ``label`` (z, y, x) holds internal indices in the dtype that came in; ``mask``
    bool (z, y, x) is where ``zscore_masked`` normalised, None if no channel does.
    """

    id: str
    image: np.ndarray
    label: np.ndarray | None
    trace: Trace
    mask: np.ndarray | None


def preprocess_case(
    image: Volume,
    label: np.ndarray | None,
    *,
    plan: Plan,
    configuration: Configuration,
    id: str = "",  # noqa: A002 - the field's word
) -> PreprocessedCase:
    """Bring an image (and its label of internal indices (z, y, x)) to the grid of a configuration.

    The box of non-zero voxels is cut out; a 2D configuration keeps the spacing of the first transposed axis.

    Raises:
        SettingError: the plan's normalisation does not fit the image's channels.
        DatasetError: values that the planned normalisation cannot take.
        ValueError: label and image differ in shape.
    """
    if label is not None and label.shape != image.data.shape[1:]:
        raise ValueError(f"the label is {label.shape}, the image {image.data.shape[1:]}")
    transposed = image.data.transpose(0, *(axis + 1 for axis in plan.transpose))
    box = nonzero_box(transposed)
    cropped = crop(transposed, box)
    trace = _trace(image, cropped.shape[1:], box, plan, configuration)
    masked = any(scheme.scheme == "zscore_masked" for scheme in configuration.normalization)
    mask = nonzero_mask(cropped) if masked else None
    rules = configuration.resampling
    normalized = normalize(cropped, configuration.normalization, mask)
    resampled = resize(
        normalized,
        trace.resampled_shape,
        order=rules.order_image,
        separate_axis=trace.separate_axis,
        order_z=rules.order_z,
    )

    def on_grid(values: np.ndarray) -> np.ndarray:
        return resize_labels(
            values,
            trace.resampled_shape,
            order=rules.order_label,
            separate_axis=trace.separate_axis,
            order_z=rules.order_z,
        )

    return PreprocessedCase(
        id=id,
        image=resampled,
        label=None if label is None else on_grid(crop(label.transpose(plan.transpose), box)),
        trace=trace,
        mask=None if mask is None else on_grid(mask.view(np.uint8)).view(bool),
    )


def class_locations(
    label: np.ndarray,
    labels: Labels,
    *,
    seed: int,
    maximum: int = _MAX_LOCATIONS,
    minimum_fraction: float = _MIN_FRACTION,
) -> dict[int, np.ndarray]:
    """Voxels of each class for sampling patches: index into ``labels.foreground`` -> int32 (N, 3) as (z, y, x).

    N is min(``maximum``, all), but at least ``minimum_fraction`` of all (nnU-Net's numbers), drawn without
    replacement; absent classes have no entry. With an ignore label, ``ANNOTATED`` has voxels of any other index.
    The draw of a class depends on ``seed`` and its index only.
    """
    boxes = ndimage.find_objects(np.maximum(label, 0), max_label=len(labels.leaves))
    found: dict[int, np.ndarray] = {}
    for index, entry in enumerate(labels.foreground):
        present = [value for value in labels.internal(entry) if value > 0 and boxes[value - 1] is not None]
        if present:
            box = _union([boxes[value - 1] for value in present])
            found[index] = _draw(np.isin(label[box], present), box, (seed, index), maximum, minimum_fraction)
    if labels.ignore_index is not None:
        annotated = (label >= 0) & (label != labels.ignore_index)
        if annotated.any():
            whole = tuple(slice(0, length) for length in label.shape)
            found[ANNOTATED] = _draw(annotated, whole, (seed, len(labels.foreground)), maximum, minimum_fraction)
    return found


def _union(boxes: list[tuple[slice, ...]]) -> tuple[slice, ...]:
    return tuple(
        slice(min(part.start for part in parts), max(part.stop for part in parts)) for parts in zip(*boxes, strict=True)
    )


def _draw(
    chosen: np.ndarray, box: tuple[slice, ...], seed: tuple[int, int], maximum: int, minimum_fraction: float
) -> np.ndarray:
    """Some of the voxels of ``box`` where ``chosen`` is true, as positions in the whole label, ascending."""
    flat = np.flatnonzero(chosen)
    count = max(min(maximum, len(flat)), math.ceil(minimum_fraction * len(flat)))
    drawn = np.sort(np.random.default_rng(seed).choice(flat, count, replace=False, shuffle=False))
    inside = np.stack(np.unravel_index(drawn, chosen.shape), axis=1)
    return (inside + [part.start for part in box]).astype(np.int32)


def _trace(image: Volume, cropped_shape: tuple[int, ...], box: Box, plan: Plan, configuration: Configuration) -> Trace:
    spacing = tuple(image.geometry.spacing[axis] for axis in plan.transpose)
    target = configuration.spacing if configuration.ndim == 3 else (spacing[0], *configuration.spacing)
    return Trace(
        shape=image.data.shape[1:],
        spacing=tuple(image.geometry.spacing),
        transpose=tuple(plan.transpose),
        box=box,
        cropped_shape=tuple(cropped_shape),
        resampled_shape=target_shape(cropped_shape, spacing, target),
        target_spacing=tuple(target),
        separate_axis=separate_axis(spacing, target, configuration.resampling.anisotropy_threshold),
    )
