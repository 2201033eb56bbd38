"""Faults in the segmentation that a cascade's second stage starts from, so that it does not learn to trust it blindly.

The recipe is nnU-Net's (``ApplyRandomBinaryOperatorTransform`` and
``RemoveRandomConnectedComponentFromOneHotEncodingTransform`` as its trainer calls them): masks of labels grow, shrink,
lose thin parts or close gaps, and components vanish. Mended: structuring elements of any radius are balls around a
voxel; every other one of the peer's fractional radii gives an even number of voxels, which shifts the mask by half of
one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from autoseg.ops.components import label_components

P_OPERATOR = 0.4
P_REMOVE = 0.2
P_LABEL = 0.5
RADIUS = (1.0, 8.0)
# A component that fills this share of the patch or more stays.
LARGEST_SHARE = 0.15
_FAR = 10_000


def disturb_labels(label: Tensor, labels: Sequence[int], rng: np.random.Generator) -> Tensor:
    """Draw faults and apply them to a label map (z, y, x) of internal indices, in place; returned too.

    Voxels that a label gains are taken from whichever had them, those that it loses become background (0).

    Args:
        label: integers on any device.
        labels: the indices of the foreground.
    """
    if rng.random() < P_OPERATOR:
        for index in _chosen(labels, rng):
            operator = _OPERATORS[int(rng.integers(len(_OPERATORS)))]
            change_mask(label, index, operator, rng.uniform(*RADIUS))
    if rng.random() < P_REMOVE:
        for index in _chosen(labels, rng):
            remove_component(label, index, rng)
    return label


def _chosen(labels: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Some of the labels, in random order."""
    order = rng.permutation(len(labels))
    return [labels[place] for place in order[rng.random(len(labels)) < P_LABEL]]


def change_mask(label: Tensor, index: int, operator: Callable[[Tensor, float], Tensor], radius: float) -> None:
    """Replace the mask of one label by what ``operator`` (``dilate``, ``erode``, ...) makes of it, in place."""
    part = label[_around(label == index, 2 * math.floor(radius) + 1)]
    mask = part == index
    if mask.numel() == 0:
        return
    changed = operator(mask, radius)
    part.masked_fill_(mask & ~changed, 0)
    part.masked_fill_(changed, index)


def _around(mask: Tensor, margin: int) -> tuple[slice, ...]:
    """The box of a mask with a margin, cut at the borders; empty for an empty mask."""
    box = []
    for axis in range(mask.dim()):
        others = [other for other in range(mask.dim()) if other != axis]
        found = torch.nonzero(mask.amax(dim=others))
        low, high = (int(found[0]), int(found[-1])) if len(found) else (margin, -margin - 1)
        box.append(slice(max(0, low - margin), max(0, high + margin + 1)))
    return tuple(box)


def dilate(mask: Tensor, radius: float) -> Tensor:
    """All voxels at most ``radius`` voxels away from a bool mask (z, y, x); beyond the borders there is no mask.

    Squared distances grow axis by axis from the mask (the minimum of shifted copies plus squared shifts), which is
    exact, in integers, and the same on every device.
    """
    reach = math.floor(radius)
    squares = torch.where(mask, 0, _FAR).to(torch.int16)
    for axis in range(mask.dim()):
        source = squares.clone()
        length = mask.shape[axis]
        for shift in range(1, min(reach, length - 1) + 1):
            near, far = squares.narrow(axis, 0, length - shift), squares.narrow(axis, shift, length - shift)
            torch.minimum(far, source.narrow(axis, 0, length - shift) + shift**2, out=far)
            torch.minimum(near, source.narrow(axis, shift, length - shift) + shift**2, out=near)
    return squares <= math.floor(radius**2)


def erode(mask: Tensor, radius: float) -> Tensor:
    """The voxels of a mask that are more than ``radius`` voxels away from everything else within the borders."""
    return ~dilate(~mask, radius)


def opened(mask: Tensor, radius: float) -> Tensor:
    return dilate(erode(mask, radius), radius)


def closed(mask: Tensor, radius: float) -> Tensor:
    return erode(dilate(mask, radius), radius)


_OPERATORS = (dilate, erode, closed, opened)


def remove_component(label: Tensor, index: int, rng: np.random.Generator) -> None:
    """Make one component of a label background, in place: any of those below ``LARGEST_SHARE`` of the patch."""
    numbered, count = label_components((label == index).cpu().numpy())
    if count == 0:
        return
    sizes = np.bincount(numbered.ravel())
    small = [number for number in range(1, count + 1) if sizes[number] < LARGEST_SHARE * label.numel()]
    if small:
        gone = torch.from_numpy(numbered == small[int(rng.integers(len(small)))])
        label.masked_fill_(gone.to(label.device), 0)
