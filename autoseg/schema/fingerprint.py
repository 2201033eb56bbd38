"""What autoseg measured in a dataset. Axis order everywhere: (z, y, x); spacing in mm; 2D pictures have z = 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

Shape = tuple[int, ...]
Spacing = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Intensities:
    """Statistics of one channel over foreground voxels (``std`` is the population's); NaN where there are none."""

    count: int
    mean: float
    std: float
    minimum: float
    maximum: float
    median: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """Voxels and connected components (full connectivity) of one foreground label in one case."""

    name: str
    voxels: int
    components: int


@dataclass(frozen=True, kw_only=True)
class CaseFingerprint:
    id: str
    shape: Shape
    cropped_shape: Shape
    spacing: Spacing
    classes: tuple[ClassCount, ...]
    intensities: tuple[Intensities, ...]


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """All cases, and the pooled intensities per channel (every case with foreground weighs the same, as in nnU-Net)."""

    VERSION: ClassVar[int] = 1

    version: int = 1
    dataset: str
    content_hash: str
    cases: tuple[CaseFingerprint, ...]
    intensities: tuple[Intensities, ...]

    @property
    def is_2d(self) -> bool:
        """Pictures without a third axis."""
        return all(case.shape[0] == 1 for case in self.cases)

    @property
    def median_relative_size_after_cropping(self) -> float:
        ratios = sorted(_volume(case.cropped_shape) / _volume(case.shape) for case in self.cases)
        middle = len(ratios) // 2
        return ratios[middle] if len(ratios) % 2 else (ratios[middle - 1] + ratios[middle]) / 2


def _volume(shape: Shape) -> int:
    result = 1
    for length in shape:
        result *= length
    return result
