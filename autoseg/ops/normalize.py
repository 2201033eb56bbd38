"""Intensity normalisation, one scheme per channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from autoseg.errors import DatasetError, SettingError
from autoseg.schema.plan import Normalization

# A constant channel has no spread to divide by.
_SMALLEST_SPREAD = 1e-8


def normalize(image: np.ndarray, schemes: Sequence[Normalization], mask: np.ndarray | None = None) -> np.ndarray:
    """Normalise (c, z, y, x) channel by channel to float32; the input is left alone.

    ``ct``: clip to [lower, upper], then subtract mean and divide by std of the dataset's foreground.
    ``zscore``: subtract mean and divide by std of the image. ``zscore_masked``: the same inside ``mask`` (bool
    (z, y, x)), voxels outside stay as they are. ``rescale_0_1``: by the range of the image. ``rgb_0_1``: divide by
    255. ``none``: as it is. (nnU-Net's schemes.)

    Raises:
        SettingError: an unknown scheme, or not one per channel.
        DatasetError: ``rgb_0_1`` on values outside 0 to 255.
        ValueError: ``zscore_masked`` without a mask.
    """
    if len(schemes) != len(image):
        raise SettingError(
            f"the plan normalises {len(schemes)} channels, the image has {len(image)}",
            hint="give as many images per case as the plan has channels",
        )
    result = np.empty(image.shape, dtype=np.float32)
    for channel, scheme, out in zip(image, schemes, result, strict=True):
        if scheme.scheme not in _SCHEMES:
            raise SettingError(
                f"there is no normalisation called {scheme.scheme!r}", hint=f"choose one of: {', '.join(_SCHEMES)}"
            )
        out[...] = channel
        _SCHEMES[scheme.scheme](out, scheme, mask)
    return result


def _ct(channel: np.ndarray, scheme: Normalization, mask: np.ndarray | None) -> None:
    np.clip(channel, scheme.lower, scheme.upper, out=channel)
    channel -= np.float32(scheme.mean)
    channel /= np.float32(max(scheme.std, _SMALLEST_SPREAD))


def _zscore(channel: np.ndarray, scheme: Normalization, mask: np.ndarray | None) -> None:
    # float32 sums over millions of voxels far from zero would lose the spread.
    channel -= np.float32(channel.mean(dtype=np.float64))
    std = math.sqrt(np.square(channel).mean(dtype=np.float64))
    channel /= np.float32(max(std, _SMALLEST_SPREAD))


def _zscore_masked(channel: np.ndarray, scheme: Normalization, mask: np.ndarray | None) -> None:
    if mask is None:
        raise ValueError("zscore_masked needs a mask")
    inside = channel[mask]
    if inside.size:
        _zscore(inside, scheme, None)
        channel[mask] = inside


def _rescale(channel: np.ndarray, scheme: Normalization, mask: np.ndarray | None) -> None:
    channel -= channel.min()
    channel /= max(channel.max(), np.float32(_SMALLEST_SPREAD))


def _rgb(channel: np.ndarray, scheme: Normalization, mask: np.ndarray | None) -> None:
    low, high = float(channel.min()), float(channel.max())
    if low < 0 or high > 255:
        raise DatasetError(
            f"a channel planned as RGB has values from {low:g} to {high:g}, outside 0 to 255",
            hint="name the channel something else than rgb_to_0_1 in dataset.json, or convert the images to 8 bits",
        )
    channel /= np.float32(255)


def _none(channel: np.ndarray, scheme: Normalization, mask: np.ndarray | None) -> None:
    pass


_SCHEMES: dict[str, Callable[[np.ndarray, Normalization, np.ndarray | None], None]] = {
    "ct": _ct,
    "zscore": _zscore,
    "zscore_masked": _zscore_masked,
    "rescale_0_1": _rescale,
    "rgb_0_1": _rgb,
    "none": _none,
}
