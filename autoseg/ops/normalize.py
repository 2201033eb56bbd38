"""Intensity normalisation, one scheme per channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from autoseg.errors import DatasetError, SettingError
from autoseg.schema.plan import Normalization

Planes = Callable[[int, int], np.ndarray]
"""Planes start to stop of a channel, float32 (z, y, x), computed when they are asked for."""

# A constant channel has no spread to divide by.
_SMALLEST_SPREAD = 1e-8


def normalizers(
    image: np.ndarray, schemes: Sequence[Normalization], mask: np.ndarray | None = None
) -> tuple[Planes, ...]:
    """How to normalise each channel of (c, z, y, x) to float32, slab by slab; the input is left alone.

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
    for scheme in schemes:
        if scheme.scheme not in _SCHEMES:
            raise SettingError(
                f"there is no normalisation called {scheme.scheme!r}", hint=f"choose one of: {', '.join(_SCHEMES)}"
            )
    return tuple(_SCHEMES[scheme.scheme](channel, scheme, mask) for channel, scheme in zip(image, schemes, strict=True))


def normalize(image: np.ndarray, schemes: Sequence[Normalization], mask: np.ndarray | None = None) -> np.ndarray:
    """All of (c, z, y, x) at once, float32; see ``normalizers``."""
    result = np.empty(image.shape, dtype=np.float32)
    for planes, out in zip(normalizers(image, schemes, mask), result, strict=True):
        for z in range(len(out)):
            out[z] = planes(z, z + 1)[0]
    return result


def _ct(channel: np.ndarray, scheme: Normalization, mask: np.ndarray | None) -> Planes:
    lower, upper = (None if bound is None else np.float32(bound) for bound in (scheme.lower, scheme.upper))

    def planes(start: int, stop: int) -> np.ndarray:
        values = channel[start:stop].astype(np.float32)
        np.clip(values, lower, upper, out=values)
        return _shifted(values, scheme.mean, scheme.std)

    return planes


def _zscore(channel: np.ndarray, scheme: Normalization, mask: np.ndarray | None) -> Planes:
    mean, std = _moments(plane for plane in channel)
    return lambda start, stop: _shifted(channel[start:stop].astype(np.float32), mean, std)


def _zscore_masked(channel: np.ndarray, scheme: Normalization, mask: np.ndarray | None) -> Planes:
    if mask is None:
        raise ValueError("zscore_masked needs a mask")
    mean, std = _moments(plane[inside] for plane, inside in zip(channel, mask, strict=True))

    def planes(start: int, stop: int) -> np.ndarray:
        values = channel[start:stop].astype(np.float32)
        return np.where(mask[start:stop], _shifted(values.copy(), mean, std), values)

    return planes


def _moments(parts: Iterator[np.ndarray]) -> tuple[float, float]:
    """Mean and standard deviation of all values; (0, 1) if there are none.

    Moments of parts about their own means are joined (Chan, Golub, LeVeque, 1983): sums of squares of values far
    from zero would lose the spread.
    """
    count, mean, squares = 0, 0.0, 0.0
    for part in parts:
        if part.size:
            own = float(part.mean(dtype=np.float64))
            spread = float(np.square(part.astype(np.float32) - np.float32(own)).sum(dtype=np.float64))
            total = count + part.size
            squares += spread + (own - mean) ** 2 * count * part.size / total
            mean += (own - mean) * part.size / total
            count = total
    return (mean, math.sqrt(squares / count)) if count else (0.0, 1.0)


def _rescale(channel: np.ndarray, scheme: Normalization, mask: np.ndarray | None) -> Planes:
    low, high = float(channel.min()), float(channel.max())
    return lambda start, stop: _shifted(channel[start:stop].astype(np.float32), low, high - low)


def _rgb(channel: np.ndarray, scheme: Normalization, mask: np.ndarray | None) -> Planes:
    low, high = float(channel.min()), float(channel.max())
    if low < 0 or high > 255:
        raise DatasetError(
            f"a channel planned as RGB has values from {low:g} to {high:g}, outside 0 to 255",
            hint="name the channel something else than rgb_to_0_1 in dataset.json, or convert the images to 8 bits",
        )
    return lambda start, stop: _shifted(channel[start:stop].astype(np.float32), 0.0, 255.0)


def _none(channel: np.ndarray, scheme: Normalization, mask: np.ndarray | None) -> Planes:
    return lambda start, stop: channel[start:stop].astype(np.float32)


def _shifted(values: np.ndarray, offset: float, divisor: float) -> np.ndarray:
    values -= np.float32(offset)
    values /= np.float32(max(divisor, _SMALLEST_SPREAD))
    return values


_SCHEMES: dict[str, Callable[[np.ndarray, Normalization, np.ndarray | None], Planes]] = {
    "ct": _ct,
    "zscore": _zscore,
    "zscore_masked": _zscore_masked,
    "rescale_0_1": _rescale,
    "rgb_0_1": _rgb,
    "none": _none,
}
