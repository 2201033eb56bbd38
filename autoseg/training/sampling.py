"""Which case, where, and how turned: everything that is drawn for one sample.

(seed, fold, stream, step, sample) decides it all, whatever the number of workers and wherever training was resumed.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from autoseg.training.recipe import FOREGROUND_FRACTION

TRAIN, VALIDATION = 0, 1


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How samples that show foreground are drawn.

    Attributes:
        share: of the samples, that show foreground.
        balanced: the label is drawn first, from all of the fold, and then a case that has it; else the case comes
            first, and then one of its labels.
        offset: how far the voxel that is shown may lie from the middle of the patch, as a share of half the patch.
    """

    share: float = FOREGROUND_FRACTION
    balanced: bool = False
    offset: float = 0.0


# Short of 1, so that little of what is shown is cut off by the border of the patch.
_WIDE = 0.75
SAMPLINGS = {
    "default": Sampling(),
    "class_balanced": Sampling(balanced=True),
    "offset": Sampling(offset=_WIDE),
    "small_objects": Sampling(share=0.66, balanced=True, offset=_WIDE),
}


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One sequence of random samples: seed, fold, and TRAIN or VALIDATION."""

    seed: int
    fold: str
    kind: int

    def generator(self, step: int, sample: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(self.fold.encode()), self.kind, step, sample])


def is_foreground_sample(step: int, sample: int, batch_size: int, *, share: float = FOREGROUND_FRACTION) -> bool:
    """Whether this sample shows foreground.

    In a batch of two or more the last ``share`` (rounded as the peer rounds) do; a batch of one takes every third
    step, where the peer would never sample foreground.
    """
    if batch_size == 1:
        return int((step + 1) * share) > int(step * share)
    return sample >= round(batch_size * (1 - share))


def shifted(voxel: np.ndarray, patch: tuple[int, ...], offset: float, rng: np.random.Generator) -> np.ndarray:
    """The middle of a patch in which ``voxel`` lies up to ``offset`` halves of the patch away from the middle."""
    reach = [int(offset * (size - 1) / 2) for size in patch]
    return voxel + rng.integers([-far for far in reach], [far + 1 for far in reach])


def patch_start(
    shape: tuple[int, ...], patch: tuple[int, ...], rng: np.random.Generator, *, around: np.ndarray | None = None
) -> tuple[int, ...]:
    """First voxel of a patch, per axis: uniform over the positions inside the image, or centred on ``around``.

    Both are clamped, so that a patch never hangs out of an image that is larger than it; in an image that is
    smaller, the patch is centred on the image.
    """
    start = []
    for axis, (length, size) in enumerate(zip(shape, patch, strict=True)):
        if length <= size:
            start.append(-((size - length) // 2))
        elif around is None:
            start.append(int(rng.integers(0, length - size + 1)))
        else:
            start.append(int(np.clip(int(around[axis]) - size // 2, 0, length - size)))
    return tuple(start)
