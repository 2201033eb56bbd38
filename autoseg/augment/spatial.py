"""Turn, zoom, cut and mirror one patch and its label together.

Mirroring that is not free is left to the caller, who may do it on the way of another copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autoseg.augment.policy import Spatial

# Output voxels per pass: what a pass holds fits the cache of a core; a GPU takes a patch at once.
_CPU_VOXELS, _GPU_VOXELS = 2**17, 2**25
# Planes that share their places are fetched so many at a time: with fewer it does not pay, and with more their
# voxels lie too far apart to be brought side by side quickly.
_MANY_PLANES = 8
# Voxels by which rounding may lead outside a patch that was read just large enough.
_SLACK = 1e-4
# Cells that are looked at together for several labels: again what fits the cache.
_CELLS = 2**17
# Shares of a voxel that differ by less than rounding are equal.
_TIE = 1e-6


def cut(
    image: Tensor,
    label: Tensor,
    spatial: Spatial,
    patch_size: Sequence[int],
    *,
    centre: Sequence[float] | None = None,
    outside: int = 0,
    padded: bool = False,
    voxels_at_once: int | None = None,
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Cut a patch out of a larger one, turned and zoomed, and mirrored where that is free.

    Args:
        image: (c, *extent) float32, interpolated (tri)linearly; outside of it is 0.
        label: (1, *extent) signed or unsigned integers. Each voxel gets the label with the largest linearly
            interpolated indicator, the lowest of several; outside of it is ``outside``.
        spatial: what ``draw_spatial`` drew. Nothing lies outside if ``extent`` is its ``source_extent``.
        centre: of the patch, in voxels along the axes of the matrix; default: the centre of what is given. Only
            for patches that turn or zoom.
        padded: both end in a voxel of the outside wherever the patch reaches further.
        voxels_at_once: output voxels per pass; default: what suits the device.

    Returns:
        (c, *patch_size) and (1, *patch_size) of the same types (unsigned labels become int16 where they must hold a
        negative ``outside``), views of the inputs where nothing is to be done; and
        the spatial axes along which both are still to be mirrored.
    """
    patch = tuple(patch_size)
    if spatial.identity:
        return _centre(image, patch), _centre(label, patch), spatial.flips
    spatial, flips = _with_flips(spatial, len(patch))
    extent = image.shape[-len(spatial.matrix) :]
    middle = tuple((size - 1) / 2 for size in extent) if centre is None else tuple(centre)
    if not (padded and min(extent) > 1) and not _inside(spatial, extent, patch[-len(extent) :], middle):
        if outside < 0 and not label.dtype.is_signed:
            label = label.to(torch.int16)
        image, label = F.pad(image, (1, 1) * len(extent)), F.pad(label, (1, 1) * len(extent), value=outside)
        middle = tuple(place + 1 for place in middle)
    image, label = _resample(image, label, spatial, patch, middle, voxels_at_once)
    return image, label, flips


def _with_flips(spatial: Spatial, axes: int) -> tuple[Spatial, tuple[int, ...]]:
    """Mirroring of axes that turn as part of the matrix, where it costs nothing; and what is left to mirror."""
    still = axes - len(spatial.matrix)
    matrix = spatial.matrix.copy()
    matrix[:, [axis - still for axis in spatial.flips if axis >= still]] *= -1
    return replace(spatial, matrix=matrix), tuple(axis for axis in spatial.flips if axis < still)


def _centre(array: Tensor, shape: Sequence[int]) -> Tensor:
    for axis, size in enumerate(shape, start=1):
        array = array.narrow(axis, (array.shape[axis] - size) // 2, size)
    return array


@dataclass(frozen=True, eq=False)
class _Places:
    """Where the voxels of some output rows come from: the first corner of the cell of voxels around each place, as
    index into the flat source (int32), and how far into the cell it lies along each axis (0 to 1, float32)."""

    rows: slice
    first: Tensor
    fractions: tuple[Tensor, ...]
    strides: tuple[int, ...]

    def corners(self, source: Tensor) -> Iterator[Tensor]:
        """The values of a flat source at the 4 or 8 corners, the last axis changing fastest."""
        for steps in product((0, 1), repeat=len(self.strides)):
            offset = sum(step * stride for step, stride in zip(steps, self.strides, strict=True))
            yield source[offset:].index_select(0, self.first)

    def part(self, chosen: Tensor) -> _Places:
        """Some of these places, by their indices."""
        first, *fractions = (values.index_select(0, chosen) for values in (self.first, *self.fractions))
        return _Places(self.rows, first, tuple(fractions), self.strides)


def _resample(
    image: Tensor,
    label: Tensor,
    spatial: Spatial,
    patch: tuple[int, ...],
    centre: tuple[float, ...],
    voxels_at_once: int | None,
) -> tuple[Tensor, Tensor]:
    moved = len(spatial.matrix)
    still, turning = patch[:-moved], patch[-moved:]
    image, label = _centre(image, still), _centre(label, still)
    # Torch's own sampling is fast on GPUs and for a few channels in 2D; else gathering takes a third of its time.
    planes = image.shape[0] * int(np.prod(still))
    gathers = image.device.type == "cpu" and (moved == 3 or planes >= _MANY_PLANES)
    turned = None if gathers else _sample(image, spatial, patch, centre)
    extent = tuple(label.shape[-moved:])
    # Axes that stay are folded: slices of a 3D patch are 2D labels that share their places.
    labels = label.reshape(-1, int(np.prod(extent)))
    images = torch.empty((planes if gathers else 0, *turning), dtype=image.dtype)
    sources = image.reshape(planes, labels.shape[1]) if gathers else images
    tables = [_side_by_side(few) for few in sources.split(_MANY_PLANES)] if gathers and moved == 2 else []
    winners = torch.empty((len(labels), *turning), dtype=label.dtype, device=label.device)
    size = voxels_at_once or (_CPU_VOXELS if label.device.type == "cpu" else _GPU_VOXELS)
    picked = _Winners(labels, winners, voxels_at_once=size, strides=_strides(extent))
    for places in _all_places(spatial, extent, turning, centre, label.device, voxels_at_once=size):
        if tables:
            _interpolate_planes(tables, places, out=images[:, places.rows].flatten(1))
        elif gathers:
            for source, values in zip(sources, images, strict=True):
                _interpolate(source, places, out=values[places.rows].view(-1))
        for index in range(len(labels)):
            picked.pick(index, places)
    picked.settle()
    return (images.view(-1, *patch) if turned is None else turned), winners.view(label.shape[0], *patch)


def _sample(image: Tensor, spatial: Spatial, patch: tuple[int, ...], centre: tuple[float, ...]) -> Tensor:
    moved = len(spatial.matrix)
    grid = _sampling_grid(spatial, tuple(image.shape[-moved:]), patch[-moved:], centre, image.device)
    flat = image.reshape(1, -1, *image.shape[-moved:])
    out = F.grid_sample(flat, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return out.view(image.shape[0], *patch)


def _sampling_grid(
    spatial: Spatial, extent: tuple[int, ...], patch: tuple[int, ...], centre: tuple[float, ...], device: torch.device
) -> Tensor:
    """The source of every output voxel in grid_sample's terms: x first, edges of the array at -1 and 1."""
    axes = len(patch)
    middle = [(2 * place + 1) / size - 1 for place, size in zip(centre, extent, strict=True)]
    # One plane per coordinate, so that the last sum, the only one over all voxels, runs along whole rows.
    grid = torch.tensor(middle[::-1], dtype=torch.float32, device=device).view(axes, *(1,) * axes)
    for axis, size in enumerate(patch):
        offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
        steps = torch.from_numpy(spatial.matrix[:, axis] * 2 / extent)[:, None] * offset
        along = [axes, *(1,) * axes]
        along[axis + 1] = size
        grid = grid + steps.flip(0).to(grid).view(along)
    return grid.movedim(0, -1)[None]


def _inside(spatial: Spatial, extent: tuple[int, ...], patch: tuple[int, ...], centre: tuple[float, ...]) -> bool:
    """Whether every place lies between the first and the last voxel of a source, which has cells on every axis."""
    reach = np.abs(spatial.matrix) @ (np.array(patch) - 1) / 2
    room = np.minimum(centre, np.array(extent) - 1 - centre)
    return bool((reach <= room + _SLACK).all() and min(extent) > 1)


def _strides(extent: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(extent[axis + 1 :])) for axis in range(len(extent)))


def _all_places(
    spatial: Spatial,
    extent: tuple[int, ...],
    patch: tuple[int, ...],
    centre: tuple[float, ...],
    device: torch.device,
    *,
    voxels_at_once: int,
) -> Iterator[_Places]:
    """Rows of the output along its first axis, as many at once as are asked for, but at least one."""
    strides = _strides(extent)
    # What a step along each axis of the output adds to the coordinates, from the centre on.
    along = []
    for axis, size in enumerate(patch):
        offset = np.arange(size) - (size - 1) / 2
        middle = np.array(centre) if axis == 0 else 0.0
        steps = (spatial.matrix[:, axis] * offset[:, None] + middle).astype(np.float32).T
        along.append(torch.from_numpy(np.ascontiguousarray(steps)).to(device))
    within_row = along[1] if len(patch) == 2 else along[1][:, :, None] + along[2][:, None, :]
    within_row = within_row.flatten(1)
    count = max(1, voxels_at_once // within_row.shape[1])
    for start in range(0, patch[0], count):
        rows = slice(start, min(patch[0], start + count))
        first, fractions = None, []
        for axis, (length, stride) in enumerate(zip(extent, strides, strict=True)):
            coordinate = (along[0][axis, rows, None] + within_row[axis]).flatten()
            # Places beyond the border take its value: there, a source that is not large enough has been padded.
            coordinate.clamp_(0, length - 1)
            corner = coordinate.floor().clamp_(max=length - 2)
            fractions.append(coordinate.sub_(corner))
            index = corner.to(torch.int32)
            first = index.mul_(stride) if first is None else first.add_(index, alpha=stride)
        assert first is not None
        yield _Places(rows, first, tuple(fractions), strides)


def _interpolate(source: Tensor, places: _Places, *, out: Tensor) -> None:
    """Write a flat source (voxels) at places into ``out`` (places)."""
    values = list(places.corners(source))
    first, *others = places.fractions
    for fraction in reversed(others):
        values = [low.lerp_(high, fraction) for low, high in zip(values[::2], values[1::2], strict=True)]
    torch.lerp(values[0], values[1], first, out=out)


def _side_by_side(planes: Tensor) -> Tensor:
    """Planes (few, voxels) as a table (voxels, few)."""
    table = torch.empty(planes.shape[1], len(planes))
    # numpy copies across in half the time of torch: here and below.
    for column, plane in zip(table.numpy().T, planes.numpy(), strict=True):
        column[...] = plane
    return table


def _interpolate_planes(tables: Sequence[Tensor], places: _Places, *, out: Tensor) -> None:
    """Write planes that lie side by side (voxels, few) into ``out`` (planes, places).

    Each value is the weighted sum of four corners; a bag of embeddings does this for a few planes in one pass.
    """
    across, along = places.fractions
    corners = torch.empty((len(places.first), 4), dtype=places.first.dtype)
    for corner, step in enumerate((0, places.strides[1], places.strides[0], sum(places.strides))):
        torch.add(places.first, step, out=corners[:, corner])
    weights = torch.empty((len(along), 4))
    torch.mul(across, along, out=weights[:, 3])
    torch.sub(across, weights[:, 3], out=weights[:, 2])
    torch.sub(along, weights[:, 3], out=weights[:, 1])
    torch.sub(1 - across, weights[:, 1], out=weights[:, 0])
    for table, few in zip(tables, out.split(_MANY_PLANES), strict=True):
        few.numpy()[...] = F.embedding_bag(corners, table, mode="sum", per_sample_weights=weights).numpy().T


class _Winners:
    """The labels with the largest interpolated indicators. Where all corners of a cell have one label, that is it;
    the other voxels are few, and counted together.

    Args:
        labels: flat sources (n, voxels).
        winners: (n, *patch), where the labels are written.
    """

    def __init__(self, labels: Tensor, winners: Tensor, *, voxels_at_once: int, strides: tuple[int, ...]) -> None:
        self._labels, self._winners = labels.flatten(), winners.view(-1)
        self._source, self._patch = labels.shape[1], winners[0].numel()
        self._row = winners[0, 0].numel()
        # A label that is this one is counted too, to no harm.
        self._mark = torch.iinfo(labels.dtype).max
        self._cells = [_marked(label[: -sum(strides)], _mixed(label, strides)) for label in labels]
        self._most = voxels_at_once
        self._waiting: list[tuple[Tensor, _Places]] = []

    def pick(self, index: int, places: _Places) -> None:
        """Write the winners of label ``index`` at ``places``, but for those that are to be counted."""
        start = index * self._patch + places.rows.start * self._row
        winners = self._winners[start : start + len(places.first)]
        torch.index_select(self._cells[index], 0, places.first, out=winners)
        chosen = _nonzero(_equal(winners, self._mark))
        if len(chosen) == 0:
            return
        few = places.part(chosen)
        few.first.add_(index * self._source)
        self._waiting.append((chosen.add_(start), few))
        if sum(len(voxels) for voxels, _ in self._waiting) > self._most:
            self.settle()

    def settle(self) -> None:
        """Count and write all that are waiting."""
        if not self._waiting:
            return
        voxels = torch.cat([voxels for voxels, _ in self._waiting])
        several = [places for _, places in self._waiting]
        places = replace(
            several[0],
            first=torch.cat([one.first for one in several]),
            fractions=tuple(map(torch.cat, zip(*(one.fractions for one in several), strict=True))),
        )
        self._winners.index_copy_(0, voxels, _vote(self._labels, places))
        self._waiting = []


def _nonzero(mask: Tensor) -> Tensor:
    """Where a flat mask is true; numpy's search takes a fraction of the time of torch's on a CPU."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().flatten()


def _equal(values: Tensor, other: Tensor | int) -> Tensor:
    """Where integers are equal; on a CPU numpy compares them in a tenth of the time of torch, but for bytes."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy() == (other.numpy() if isinstance(other, Tensor) else other))
    return values == other


def _marked(label: Tensor, mixed: Tensor) -> Tensor:
    """The label, and the largest number of its type where ``mixed``: without a branch, in a tenth of the time."""
    flags = mixed.view(label.dtype) if label.dtype.itemsize == 1 else mixed.to(label.dtype)
    # All bits or none; and with the sign turned, the largest number or the smallest.
    return torch.maximum(label, flags.neg().bitwise_xor_(torch.iinfo(label.dtype).min))


def _mixed(label: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Whether the cell at each index of a flat label has corners of several labels."""
    reach = sum(strides)
    mixed = torch.empty(len(label) - reach, dtype=torch.bool, device=label.device)
    for start in range(0, len(mixed), _CELLS):
        part = label[start : start + _CELLS + reach]
        same = _equal(part[:-1], part[1:])
        # The last axis has stride 1. A corner differs from the first one, or one of its neighbours does.
        for stride in reversed(strides[:-1]):
            across = _equal(part[: len(same) - stride], part[stride : len(same)])
            same = across.logical_and_(same[:-stride]).logical_and_(same[stride:])
        torch.logical_not(same, out=mixed[start : start + _CELLS])
    return mixed


def _vote(label: Tensor, places: _Places) -> Tensor:
    """The label with the largest interpolated indicator at each place of a flat source, the lowest of several."""
    corners = torch.stack(list(places.corners(label)))
    lowest, highest = corners.amin(0), corners.amax(0)
    high = _equal(corners, highest)
    share = high.view(torch.uint8).to(places.fractions[0].dtype)
    for fraction in reversed(places.fractions):
        share = torch.lerp(share[::2], share[1::2], fraction)
    winner = torch.where(share[0] > 0.5 + _TIE, highest, lowest)
    # Where three or more labels meet, which is rare, each must be counted.
    many = _nonzero(_equal(high.logical_or_(_equal(corners, lowest)).view(torch.uint8).amin(0), 0))
    if len(many):
        winner.index_copy_(0, many, _count(corners.index_select(1, many), places.part(many).fractions))
    return winner


def _count(corners: Tensor, fractions: Sequence[Tensor]) -> Tensor:
    """As ``_vote``, from the labels at the corners (4 or 8, n), however many they are."""
    weights = [torch.ones_like(fractions[0])]
    for fraction in fractions:
        weights = [part for weight in weights for part in (weight * (1 - fraction), weight * fraction)]
    # Of a pair of corners (i, j), j adds its weight to the score of i if their labels are the same.
    scores = ((corners[:, None] == corners) * torch.stack(weights)).sum(1)
    # Corners of one label have added the same weights, but not in the same order.
    beaten = scores < scores.amax(0) - _TIE
    return corners.masked_fill(beaten, torch.iinfo(corners.dtype).max).amin(0)
