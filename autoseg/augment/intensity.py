"""Noise, blur, brightness, contrast, lost resolution and gamma, for all samples of a batch that drew them at once.

Every transform but noise works on rows: one channel of one sample each. On a GPU, channels of one batch that drew
the same transform are gathered, changed together and put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from autoseg.augment.blur import blur
from autoseg.augment.policy import Intensity, Policy, draw_intensity

_EPS = 1e-7


def apply_intensity(image: Tensor, policy: Policy, generators: Sequence[np.random.Generator]) -> Tensor:
    """Draw per sample and apply; the image is changed in place and returned.

    Args:
        image: (b, c, *patch) float32, contiguous, on any device.
        generators: one per sample; nothing else is random. Noise fields differ between kinds of device.
    """
    drawn = [draw_intensity(policy, rng, image.shape[1]) for rng in generators]
    _add_noise(image, drawn)
    rows = image.flatten(0, 1)
    _change(rows, [one.blur for one in drawn], blur)
    _change(rows, [one.brightness for one in drawn], brighten)
    _change(rows, [one.contrast for one in drawn], stretch_contrast)
    fixed = 1 if policy.dummy_2d else 0
    _change(rows, [one.low_resolution for one in drawn], lambda x, zoom: lose_resolution(x, zoom, fixed_axes=fixed))
    _change(rows, [one.inverted_gamma for one in drawn], lambda x, gamma: apply_gamma(x.neg_(), gamma).neg_())
    _change(rows, [one.gamma for one in drawn], apply_gamma)
    return image


def _add_noise(image: Tensor, drawn: Sequence[Intensity]) -> None:
    for sample, one in zip(image, drawn, strict=True):
        if not math.isnan(one.noise):
            generator = torch.Generator(image.device).manual_seed(one.noise_seed)
            sample.add_(torch.randn(sample.shape, generator=generator, device=image.device), alpha=one.noise)


def _change(
    rows: Tensor, drawn: Sequence[NDArray[np.float64]], transform: Callable[[Tensor, NDArray[np.float64]], Tensor]
) -> None:
    parameters = np.concatenate(drawn)
    chosen = np.flatnonzero(~np.isnan(parameters.reshape(len(parameters), -1)[:, 0]))
    if len(chosen) == 0:
        return
    if rows.device.type == "cpu":
        # Row by row, mostly in place: gathering would copy them twice, and a row is what fits the cache.
        for row in chosen.tolist():
            one = rows[row : row + 1]
            changed = transform(one, parameters[row : row + 1])
            if changed.data_ptr() != one.data_ptr():
                one.copy_(changed)
        return
    index = torch.from_numpy(chosen).to(rows.device)
    rows[index] = transform(rows[index], parameters[chosen])


def _per_row(values: NDArray[np.float64], like: Tensor) -> Tensor:
    """(n,) -> a tensor that multiplies the rows (n, ...) of ``like``."""
    return torch.from_numpy(values).to(like).view(-1, *(1,) * (like.dim() - 1))


def _range(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum (n, 1) of rows (n, voxels); torch's ``aminmax`` of rows takes 20 times as long on a CPU."""
    return rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)


def brighten(rows: Tensor, factor: NDArray[np.float64]) -> Tensor:
    """Multiply each row (n, *patch) by its factor, in place."""
    return rows.mul_(_per_row(factor, rows))


def stretch_contrast(rows: Tensor, factor: NDArray[np.float64]) -> Tensor:
    """Spread each row about its mean by its factor, within the minimum and maximum that it had; in place."""
    flat = rows.flatten(1)
    lowest, highest = _range(flat)
    mean = flat.mean(1, keepdim=True)
    spread = _per_row(factor, flat)
    _stretch_and_shift(flat, spread, mean * (1 - spread))
    # With one number per row, two operands are several times as fast as three: here and below.
    torch.maximum(flat, lowest, out=flat)
    torch.minimum(flat, highest, out=flat)
    return rows


def apply_gamma(rows: Tensor, gamma: NDArray[np.float64]) -> Tensor:
    """Raise each row, scaled to 0..1, to its power; range, then mean and standard deviation are restored; in place."""
    flat = rows.flatten(1)
    lowest, highest = _range(flat)
    extent = highest - lowest
    mean = flat.mean(1, keepdim=True)
    # Norms of deviations stand for standard deviations: only their ratio counts, and the extent drops out of it.
    spread = torch.linalg.vector_norm(flat.sub_(mean), dim=1, keepdim=True)
    flat.sub_(lowest - mean).clamp_(min=0)
    # A power by way of a logarithm takes half the time, and the range comes off with it.
    power = _per_row(gamma * math.log2(math.e), flat)
    _stretch_and_shift(_logarithm(flat), power, -power * extent.clamp(min=_EPS).log()).exp2_()
    flat.sub_(flat.mean(1, keepdim=True))
    new_spread = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return _stretch_and_shift(flat, spread / new_spread.clamp(min=_EPS), mean).view_as(rows)


def _stretch_and_shift(flat: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Multiply rows (n, voxels) by factors (n, 1) and add shifts (n, 1), in place; a single row in one pass."""
    if flat.device.type == "cpu" and len(flat) == 1:
        return torch.add(shift[0, 0], flat, alpha=float(factor), out=flat)
    return flat.mul_(factor).add_(shift)


def _logarithm(values: Tensor) -> Tensor:
    """Natural, in place; that of 0 is minus infinity."""
    if values.device.type != "cpu":
        return values.log_()
    # numpy's takes a third of the time of torch's.
    with np.errstate(divide="ignore"):
        np.log(values.numpy(), out=values.numpy())
    return values


def lose_resolution(rows: Tensor, zoom: NDArray[np.float64], *, fixed_axes: int = 0) -> Tensor:
    """Shrink each row (n, *patch) by its zoom to the nearest voxels and stretch it back linearly.

    The first ``fixed_axes`` axes of the patch keep their resolution.
    """
    full = tuple(rows.shape[1:])
    for row, factor in zip(rows, zoom.tolist(), strict=True):
        small = [size if axis < fixed_axes else max(1, round(size * factor)) for axis, size in enumerate(full)]
        row.copy_(_stretch(F.interpolate(row[None, None], small, mode="nearest-exact")[0, 0], full))
    return rows


def _stretch(coarse: Tensor, shape: Sequence[int]) -> Tensor:
    """Enlarge linearly: in the plane of the last two axes, then between planes, three times as fast as at once."""
    planes = coarse if coarse.dim() == 3 else coarse[None]
    planes = F.interpolate(planes[None], tuple(shape[-2:]), mode="bilinear", align_corners=False)[0]
    if coarse.dim() == 2 or len(planes) == shape[0]:
        return planes.view(*shape)
    # As everywhere in torch without aligned corners: voxel centres at half steps, clamped at the border.
    place = (torch.arange(shape[0], dtype=torch.float64) + 0.5) * (len(planes) / shape[0]) - 0.5
    place = place.clamp(0, len(planes) - 1)
    below = place.floor().clamp(max=max(len(planes) - 2, 0))
    fraction = (place - below).to(planes)[:, None, None]
    below = below.to(planes.device, torch.int64)
    above = (below + 1).clamp(max=len(planes) - 1)
    return planes.index_select(0, below).lerp_(planes.index_select(0, above), fraction)
