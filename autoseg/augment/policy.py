"""The recipe as numbers, and everything that is drawn from it: one generator per sample decides all.

Numbers and order are those of nnU-Net's default augmentation (Isensee et al., Nature Methods 2021, supplement 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoseg.errors import SettingError
from autoseg.schema.plan import Configuration

Array = NDArray[np.float64]
Range = tuple[float, float]

# Patches whose first axis is this many times shorter than their longest turn and zoom within slices only.
DUMMY_2D_RATIO = 3.0
# 2D patches longer than this turn only a little, so that little of the patch lies outside the image.
LONG_2D_RATIO = 1.5


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Probabilities (``p_...``), ranges and axes of the augmentation of one configuration.

    ``rotation`` is the largest angle in degrees, about each of three axes or, with one entry, within the plane of the
    last two axes. ``dummy_2d``: patches are 3D but turn, zoom and lose resolution within slices. Ranges of factors
    (``contrast``, ``brightness``, ``gamma``) are split at 1: a fair coin chooses the lower or the upper part.
    """

    ndim: int
    rotation: tuple[float, ...]
    dummy_2d: bool
    mirror_axes: tuple[int, ...]
    p_rotation: float = 0.2
    p_scale: float = 0.2
    scale: Range = (0.7, 1.4)
    p_noise: float = 0.1
    noise_std: Range = (0.0, 0.1)
    p_blur: float = 0.2
    p_blur_channel: float = 0.5
    blur_sigma: Range = (0.5, 1.0)
    p_brightness: float = 0.15
    brightness: Range = (0.75, 1.25)
    p_contrast: float = 0.15
    contrast: Range = (0.75, 1.25)
    p_low_resolution: float = 0.25
    p_low_resolution_channel: float = 0.5
    low_resolution: Range = (0.5, 1.0)
    p_inverted_gamma: float = 0.1
    p_gamma: float = 0.3
    gamma: Range = (0.7, 1.5)
    p_mirror: float = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Spatial:
    """Where a sample's voxels come from.

    ``matrix`` takes the offset of an output voxel from the patch centre to the offset of its source, in voxels, over
    the last axes of the patch (2x2 also for 3D patches that turn within slices). ``identity``: it changes nothing.
    ``flips`` are the spatial axes that are mirrored afterwards.
    """

    matrix: Array
    identity: bool
    flips: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Intensity:
    """How the channels of a sample change, in the order of the fields; NaN is where nothing happens.

    Arrays have one entry per channel; ``blur`` (channels, axes) holds sigmas in voxels. ``noise`` is the standard
    deviation for all channels and ``noise_seed`` what its field grows from.
    """

    noise: float
    noise_seed: int
    blur: Array
    brightness: Array
    contrast: Array
    low_resolution: Array
    inverted_gamma: Array
    gamma: Array


def make_policy(configuration: Configuration, *, mirror_axes: Iterable[int]) -> Policy:
    """nnU-Net's recipe for the patch of a configuration.

    Args:
        mirror_axes: spatial axes of the patch that may be mirrored.

    Raises:
        SettingError: an axis that the patch does not have.
    """
    patch = configuration.patch_size
    axes = tuple(sorted(set(mirror_axes)))
    if any(not 0 <= axis < configuration.ndim for axis in axes):
        raise SettingError(
            f"mirror axes {list(axes)} do not fit patches with {configuration.ndim} axes",
            hint=f"use axes from 0 to {configuration.ndim - 1}",
        )
    dummy_2d = configuration.ndim == 3 and max(patch) / patch[0] > DUMMY_2D_RATIO
    if dummy_2d:
        rotation: tuple[float, ...] = (180.0,)
    elif configuration.ndim == 3:
        rotation = (30.0, 30.0, 30.0)
    else:
        rotation = (15.0,) if max(patch) / min(patch) > LONG_2D_RATIO else (180.0,)
    return Policy(ndim=configuration.ndim, rotation=rotation, dummy_2d=dummy_2d, mirror_axes=axes)


def draw_spatial(policy: Policy, rng: np.random.Generator) -> Spatial:
    """Draw rotation, zoom (one factor for all axes that turn; above 1 shows more of the image) and mirroring."""
    axes = 3 if len(policy.rotation) == 3 else 2
    matrix = np.eye(axes)
    identity = True
    if rng.random() < policy.p_rotation:
        matrix, identity = rotation_matrix([rng.uniform(-limit, limit) for limit in policy.rotation]), False
    if rng.random() < policy.p_scale:
        matrix, identity = matrix * rng.uniform(*policy.scale), False
    flips = tuple(axis for axis in policy.mirror_axes if rng.random() < policy.p_mirror)
    return Spatial(matrix=matrix, identity=identity, flips=flips)


def rotation_matrix(degrees: Sequence[float]) -> Array:
    """Rotation about axes 0, 1 and 2, in this order (3x3), or within a plane for one angle (2x2).

    As the matrix of a ``Spatial`` it turns the places that are sampled, so the picture turns the other way.
    """
    if len(degrees) == 1:
        return _plane_rotation(2, 0, 1, degrees[0])
    about_0 = _plane_rotation(3, 1, 2, degrees[0])
    about_1 = _plane_rotation(3, 0, 2, degrees[1])
    about_2 = _plane_rotation(3, 0, 1, degrees[2])
    return about_2 @ about_1 @ about_0


def _plane_rotation(size: int, first: int, second: int, degrees: float) -> Array:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = np.eye(size)
    matrix[first, first] = matrix[second, second] = cos
    matrix[first, second], matrix[second, first] = -sin, sin
    return matrix


def source_extent(spatial: Spatial, patch_size: Sequence[int]) -> tuple[int, ...]:
    """Voxels to read around the centre of a patch so that its transform never looks outside them.

    Exact for the given matrix: the corners of the patch decide. At least the patch, and odd or even as the patch is,
    so that both have the same centre.
    """
    if spatial.identity:
        return tuple(patch_size)
    moved = len(spatial.matrix)
    still, turning = tuple(patch_size[:-moved]), np.asarray(patch_size[-moved:])
    reach = np.abs(spatial.matrix) @ (turning - 1)
    # A full turn by 90 degrees must not read a voxel more because cos(90) is 6e-17.
    extra = np.maximum(0, np.ceil((reach + 1 - turning) / 2 - 1e-6)).astype(int)
    return still + tuple(int(size) for size in turning + 2 * extra)


def draw_intensity(policy: Policy, rng: np.random.Generator, channels: int) -> Intensity:
    """Draw which intensity transforms a sample gets, and how strong, channel by channel."""
    nothing = np.full(channels, np.nan)

    def fires(probability: float) -> bool:
        return bool(rng.random() < probability)

    def factors(probability: float, bounds: Range) -> Array:
        if not fires(probability):
            return nothing
        return np.array([_around_one(bounds, rng) for _ in range(channels)])

    noise, seed = math.nan, 0
    if fires(policy.p_noise):
        noise, seed = rng.uniform(*policy.noise_std), int(rng.integers(2**62))
    blur = np.full((channels, policy.ndim), np.nan)
    if fires(policy.p_blur):
        blurred = rng.random(channels) < policy.p_blur_channel
        blur[blurred] = rng.uniform(*policy.blur_sigma, size=(int(blurred.sum()), policy.ndim))
    brightness = factors(policy.p_brightness, policy.brightness)
    contrast = factors(policy.p_contrast, policy.contrast)
    low_resolution = nothing.copy()
    if fires(policy.p_low_resolution):
        coarse = rng.random(channels) < policy.p_low_resolution_channel
        low_resolution[coarse] = rng.uniform(*policy.low_resolution, size=int(coarse.sum()))
    return Intensity(
        noise=noise,
        noise_seed=seed,
        blur=blur,
        brightness=brightness,
        contrast=contrast,
        low_resolution=low_resolution,
        inverted_gamma=factors(policy.p_inverted_gamma, policy.gamma),
        gamma=factors(policy.p_gamma, policy.gamma),
    )


def _around_one(bounds: Range, rng: np.random.Generator) -> float:
    lower, upper = bounds
    return float(rng.uniform(lower, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, upper))
