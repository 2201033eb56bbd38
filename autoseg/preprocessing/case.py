"""One case on its way to a network: transpose, crop, normalise, resample (in this order, as nnU-Net).

The way back is ``restore.Restorer``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from autoseg.io.volume import Volume
from autoseg.ops.crop import Box, crop, nonzero_box, nonzero_mask
from autoseg.ops.normalize import normalizers
from autoseg.ops.resample import resize_labels, resize_planes, separate_axis, target_shape
from autoseg.preprocessing.trace import Trace
from autoseg.schema.dataset import Labels
from autoseg.schema.plan import Configuration, Plan, Resampling

ANNOTATED = -1
"""Key of ``class_locations`` for any annotated voxel, in datasets with an ignore label."""

_MAX_LOCATIONS = 10_000
_MIN_FRACTION = 0.01
_SLAB_VOXELS = 1 << 18


@dataclass(frozen=True, kw_only=True)
class PreprocessedCase:
    """A case as a network sees it, axes transposed.

    ``image`` is float32 (c, z, y, x); ``label`` (z, y, x) holds internal indices in the dtype that came in; ``mask``
    bool (z, y, x) is where ``zscore_masked`` normalised, None if no channel does. ``coarse`` is the same image for
    the first stage of a cascade, ``empty`` (z, y, x) where it is zero outside of everything else, axes not transposed;
    only cascades of nnU-Net ask for it.
    """

    id: str
    image: np.ndarray
    label: np.ndarray | None
    trace: Trace
    mask: np.ndarray | None
    coarse: PreprocessedCase | None = None
    empty: np.ndarray | None = None


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
    resampled = np.empty((len(cropped), *trace.resampled_shape), dtype=np.float32)
    for planes, out in zip(normalizers(cropped, configuration.normalization, mask), resampled, strict=True):
        resize_planes(
            planes,
            cropped.shape[1:],
            out,
            order=rules.order_image,
            separate_axis=trace.separate_axis,
            order_z=rules.order_z,
        )

    return PreprocessedCase(
        id=id,
        image=resampled,
        label=None if label is None else label_on_grid(label, trace, rules),
        trace=trace,
        mask=None if mask is None else _on_grid(mask.view(np.uint8), trace, rules).view(bool),
    )


def label_on_grid(label: np.ndarray, trace: Trace, rules: Resampling) -> np.ndarray:
    """A label map (z, y, x) on the grid of an image, brought to the grid that the image was brought to."""
    return _on_grid(crop(label.transpose(trace.transpose), trace.box), trace, rules)


def _on_grid(values: np.ndarray, trace: Trace, rules: Resampling) -> np.ndarray:
    return resize_labels(
        values,
        trace.resampled_shape,
        order=rules.order_label,
        separate_axis=trace.separate_axis,
        order_z=rules.order_z,
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
    heads = {index: labels.internal(entry) for index, entry in enumerate(labels.foreground)}
    if labels.ignore_index is not None:
        heads[ANNOTATED] = tuple(range(len(labels.leaves)))
    counts = np.stack([_class_counts(slab, len(labels.leaves)) for _, slab in _slabs(label)])
    found: dict[int, _Drawn] = {}
    for position, (head, values) in enumerate(heads.items()):
        used = sorted(value for value in values if value > 0 or head == ANNOTATED)
        before = np.concatenate([[0], np.cumsum(counts[:, used].sum(axis=1))])
        total = int(before[-1])
        if total:
            count = max(min(maximum, total), math.ceil(minimum_fraction * total))
            ranks = np.random.default_rng((seed, position)).choice(total, count, replace=False, shuffle=False)
            found[head] = _Drawn(values=used, ranks=np.sort(ranks), before=before)
    return _located(label, counts, found)


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """``ranks`` among the voxels of the indices ``values`` as they lie in memory; ``before`` slab i are so many."""

    values: list[int]
    ranks: np.ndarray
    before: np.ndarray


def _slabs(label: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first plane, some planes) one after the other."""
    step = max(1, _SLAB_VOXELS // label[0].size)
    return ((z, label[z : z + step]) for z in range(0, len(label), step))


def _class_counts(slab: np.ndarray, classes: int) -> np.ndarray:
    """Voxels of each internal index."""
    found = np.bincount(slab[slab > 0], minlength=classes)[:classes]
    found[0] = np.count_nonzero(slab == 0)
    return found


def _located(label: np.ndarray, counts: np.ndarray, drawn: Mapping[int, _Drawn]) -> dict[int, np.ndarray]:
    """Where the drawn voxels are; slab by slab, so that the places of all voxels are never listed at once."""
    result = {head: np.empty((len(item.ranks), 3), dtype=np.int32) for head, item in drawn.items()}
    bounds = {head: np.searchsorted(item.ranks, item.before) for head, item in drawn.items()}
    for index, (z, slab) in enumerate(_slabs(label)):
        wanted = [head for head in drawn if bounds[head][index + 1] > bounds[head][index]]
        if not wanted:
            continue
        values = slab.ravel()
        inside = np.flatnonzero((values > 0) & (values < counts.shape[1]))
        inside = inside[np.argsort(values[inside], kind="stable")]
        ends = np.cumsum(counts[index, 1:])
        groups = [np.flatnonzero(values == 0) if ANNOTATED in wanted else inside[:0], *np.split(inside, ends)]
        for head in wanted:
            item = drawn[head]
            start, stop = bounds[head][index : index + 2]
            parts = [groups[value] for value in item.values]
            places = parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts))
            chosen = places[item.ranks[start:stop] - item.before[index]]
            result[head][start:stop] = np.stack(np.unravel_index(chosen, slab.shape), axis=1)
            result[head][start:stop, 0] += z
    return result


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
