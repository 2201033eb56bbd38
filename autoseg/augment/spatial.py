"""Turn, zoom, cut and mirror one patch and its label together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from autoseg.augment.policy import Spatial


def apply_spatial(
    image: Tensor, label: Tensor, spatial: Spatial, patch_size: Sequence[int], *, voxels_at_once: int = 2**25
) -> tuple[Tensor, Tensor]:
    """Cut a patch out of the centre of a larger one, turned, zoomed and mirrored.

    Args:
        image: (c, *extent) float32, interpolated (tri)linearly; outside of it is 0.
        label: (1, *extent) signed or unsigned integers. Each voxel gets the label with the largest linearly
            interpolated indicator; outside is -1 if any label is negative, else 0.
        spatial: what ``draw_spatial`` drew. Nothing lies outside if ``extent`` is its ``source_extent``.
        voxels_at_once: bound on image channels and label indicators that are interpolated together; beyond it labels
            take turns, which needs less memory and more time.

    Returns:
        (c, *patch_size) and (1, *patch_size) of the same types; views of the inputs where nothing is to be done.
    """
    patch = tuple(patch_size)
    if spatial.identity:
        image, label = _centre(image, patch), _centre(label, patch)
    else:
        image, label = _resample(image, label, spatial, patch, voxels_at_once)
    if spatial.flips:
        axes = [axis + 1 for axis in spatial.flips]
        image, label = image.flip(axes), label.flip(axes)
    return image, label


def _centre(array: Tensor, shape: Sequence[int]) -> Tensor:
    for axis, size in enumerate(shape, start=1):
        array = array.narrow(axis, (array.shape[axis] - size) // 2, size)
    return array


def _resample(
    image: Tensor, label: Tensor, spatial: Spatial, patch: tuple[int, ...], voxels_at_once: int
) -> tuple[Tensor, Tensor]:
    moved = len(spatial.matrix)
    still = patch[:-moved]
    image = _centre(image, still)
    label = _centre(label, still)
    grid = _sampling_grid(spatial, tuple(image.shape[-moved:]), patch[-moved:], image.device)

    def sample(volumes: Tensor) -> Tensor:
        # Axes that stay are folded into the channels: slices of a 3D patch are 2D images with one common grid.
        flat = volumes.reshape(1, -1, *volumes.shape[-moved:])
        out = F.grid_sample(flat, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return out.view(volumes.shape[0], *patch)

    values = _present(label)
    outside = min(0, values[0])
    values = [value for value in values if value != outside]
    together = max(1, voxels_at_once // label.numel())
    if len(image) + len(values) <= together:
        # Finding the eight neighbours is half of the work: do it once for the image and all labels.
        sampled = sample(torch.cat([image, *(label == value for value in values)]))
        image, scores = sampled[: len(image)], iter(sampled[len(image) :])
    else:
        image = sample(image)
        groups = (values[first : first + together] for first in range(0, len(values), together))
        indicators = (torch.cat([label == value for value in group]).to(image.dtype) for group in groups)
        scores = chain.from_iterable(map(sample, indicators))
    winner = torch.full(patch, outside, dtype=label.dtype, device=label.device)
    best, rest = torch.zeros_like(winner, dtype=image.dtype), torch.ones_like(winner, dtype=image.dtype)
    for value, score in zip(values, scores, strict=True):
        winner.masked_fill_(score > best, value)
        best = torch.maximum(best, score)
        rest.sub_(score)
    # What the indicators leave of 1 is the indicator of the outside.
    return image, winner.masked_fill_(rest > best, outside)[None]


def _sampling_grid(spatial: Spatial, extent: tuple[int, ...], patch: tuple[int, ...], device: torch.device) -> Tensor:
    """The source of every output voxel in grid_sample's terms: x first, edges of the array at -1 and 1."""
    axes = len(patch)
    # One plane per coordinate, so that the sums below run along whole rows of voxels.
    grid = torch.zeros((axes, *patch), device=device)
    for axis, size in enumerate(patch):
        offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
        steps = torch.from_numpy(spatial.matrix[:, axis] * 2 / extent)[:, None] * offset
        along = [axes, *(1,) * axes]
        along[axis + 1] = size
        grid += steps.flip(0).to(grid).view(along)
    return grid.movedim(0, -1)[None]


def _present(label: Tensor) -> list[int]:
    """The labels that occur, ascending; -1 stands for all negative ones."""
    counts = torch.bincount(label.flatten().to(torch.int64).clamp_(min=-1) + 1)
    return [int(value) - 1 for value in counts.nonzero().flatten().tolist()]
