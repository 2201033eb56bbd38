"""An image with its place in the world.

Arrays are (channel, z, y, x) and spacings (z, y, x) in mm. Origin and direction stay in the (x, y, z) order and the
LPS frame of ITK, so that they go back to a file unchanged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """The grid of an image in patient space.

    Attributes:
        spacing: distance of neighbouring voxels in mm along (z, y, x). A picture has no z; there it is the larger
            of the other two, so that no rule takes a picture for a stack of thin or thick slices.
        origin: position in mm of the first voxel's centre, (x, y, z), or (x, y) for a picture.
        direction: row-major cosines; column k is the direction in which index k of (x, y, z) grows.
        ndim: dimensions of the file, 2 or 3.
    """

    spacing: tuple[float, float, float]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    ndim: int

    @staticmethod
    def picture(spacing: Sequence[float] = (1.0, 1.0)) -> Geometry:
        """The grid of a picture with pixels of ``spacing`` (y, x) mm at the origin."""
        y, x = spacing
        return Geometry((max(y, x), y, x), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0), 2)

    @staticmethod
    def upright(spacing: Sequence[float]) -> Geometry:
        """An unrotated grid of (z, y, x) ``spacing`` mm at the origin."""
        z, y, x = spacing
        return Geometry((z, y, x), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), 3)

    @property
    def voxel_size(self) -> float:
        """Volume of a voxel in mm^3; of a picture, the area of a pixel in mm^2."""
        return math.prod(self.spacing[-self.ndim :])

    def affine(self) -> np.ndarray:
        """4 x 4 matrix from (x, y, z, 1) voxel indices to (x, y, z, 1) positions in mm."""
        matrix = np.eye(4)
        direction = np.asarray(self.direction, dtype=np.float64).reshape(self.ndim, self.ndim)
        matrix[: self.ndim, : self.ndim] = direction
        matrix[:3, :3] *= np.asarray(self.spacing[::-1])
        matrix[: self.ndim, 3] = self.origin
        return matrix


@dataclass(frozen=True)
class Volume:
    """``data`` is (channel, z, y, x); a picture has z = 1."""

    data: np.ndarray
    geometry: Geometry

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x) without the channels."""
        _, z, y, x = self.data.shape
        return z, y, x


def corner_distance_mm(a: Geometry, b: Geometry, shape: Sequence[int]) -> float:
    """The largest distance in mm between the corners of two grids of the same (z, y, x) shape.

    Corners are the outer ones of the corner voxels (half a voxel beyond the centres), so that the thickness of a
    single slice counts. A picture has no thickness. No voxel of one grid lies further than this from its partner
    in the other, because the distance of two affine images of a box is largest at a corner.
    """
    indices = np.ones((8, 4))
    indices[:, :3] = list(itertools.product(*((-0.5, length - 0.5) for length in reversed(shape))))
    if 2 in (a.ndim, b.ndim):
        indices[:, 2] = 0.0
    difference = indices @ (a.affine() - b.affine()).T
    return float(np.sqrt((difference**2).sum(axis=1)).max())
