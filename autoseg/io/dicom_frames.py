"""Frames of a DICOM SEG as masks on the grid of an image, taken there by nearest neighbour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.errors import DatasetError
from autoseg.io.volume import Geometry

_HALF = 0.5


def segments(data: Any) -> list[tuple[int, str]]:
    """(number, name) of the segments, without the background that label maps may list as number 0."""
    pairs = [(int(one.SegmentNumber), str(one.SegmentLabel).strip()) for one in data.get("SegmentSequence") or []]
    return [(number, name) for number, name in pairs if number != 0]


def frame_masks(path: Path, data: Any, geometry: Geometry, shape: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, bool mask (z, y, x)) of every segment; all are empty where there are no frames.

    Raises:
        DatasetError: the frames cannot be read, or do not say where they lie.
    """
    if not data.get("PerFrameFunctionalGroupsSequence") and not data.get("PixelData"):
        yield from ((name, np.zeros(tuple(shape), dtype=bool)) for _, name in segments(data))
        return
    frames = _pixels(path, data)
    grid, planes, numbers = _frame_grid(path, data, frames.shape)
    kind = str(data.SegmentationType)
    threshold = _HALF * float(data.get("MaximumFractionalValue", 1)) if kind == "FRACTIONAL" else _HALF
    lookup = _Lookup(grid, geometry, shape)
    for number, name in segments(data):
        volume = np.zeros((max(planes) + 1, *frames.shape[1:]), dtype=bool)
        for frame, plane, own in zip(frames, planes, numbers, strict=True):
            if kind == "LABELMAP":
                volume[plane] |= frame == number
            elif own == number:
                volume[plane] |= frame > threshold
        yield name, lookup(volume)


def _pixels(path: Path, data: Any) -> np.ndarray:
    try:
        pixels = np.asarray(data.pixel_array)
    except (AttributeError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} has frames that cannot be read: {error}", hint="save it uncompressed") from error
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels


def _frame_grid(path: Path, data: Any, shape: Sequence[int]) -> tuple[Geometry, list[int], list[int]]:
    """The grid of the frames stacked along their normal, the plane of each frame, and the segment of each."""
    shared = data.get("SharedFunctionalGroupsSequence", [{}])[0]
    groups = list(data.get("PerFrameFunctionalGroupsSequence", []))

    def of(group: Any, name: str) -> Any:
        sequence = group.get(name) or shared.get(name)
        return sequence[0] if sequence else None

    try:
        cosines = np.asarray(of(groups[0], "PlaneOrientationSequence").ImageOrientationPatient, dtype=np.float64)
        measures = of(groups[0], "PixelMeasuresSequence")
        rows, columns = (float(value) for value in measures.PixelSpacing)
        positions = np.array(
            [np.asarray(of(group, "PlanePositionSequence").ImagePositionPatient, dtype=np.float64) for group in groups]
        )
        own = [of(group, "SegmentIdentificationSequence") for group in groups]
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} does not say where its frames lie: {error}", hint="export it again") from error
    if len(positions) != shape[0]:
        raise DatasetError(
            f"{path} has {shape[0]} frames and says of {len(positions)} where they lie", hint="restore it"
        )
    normal = np.cross(cosines[:3], cosines[3:])
    along = positions @ normal
    distances = np.diff(np.unique(np.round(along, 3)))
    stated = [measures.get("SpacingBetweenSlices"), measures.get("SliceThickness"), 1.0]
    # The smallest distance is the step, unless the frames of one segment leave out every other plane.
    step = next(float(value) for value in stated if value)
    if len(distances) and (not measures.get("SpacingBetweenSlices") or distances.min() < step * (1 - 1e-2)):
        step = float(distances.min())
    planes = np.rint((along - along.min()) / step).astype(int)
    if np.abs(along - along.min() - planes * step).max() > 0.1 * step:
        raise DatasetError(f"{path} has frames at uneven distances", hint="export it on the planes of its series")
    grid = Geometry(
        spacing=(step, rows, columns),
        origin=tuple(float(value) for value in positions[along.argmin()]),
        direction=tuple(float(value) for value in np.column_stack([cosines[:3], cosines[3:], normal]).ravel()),
        ndim=3,
    )
    return grid, planes.tolist(), [0 if one is None else int(one.ReferencedSegmentNumber) for one in own]


class _Lookup:
    """Takes masks from one grid to another by nearest neighbour, plane by plane of the target."""

    def __init__(self, source: Geometry, target: Geometry, shape: Sequence[int]) -> None:
        self._matrix = np.linalg.inv(source.affine()) @ target.affine()
        self._shape = tuple(shape)

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        result = np.zeros(self._shape, dtype=bool)
        if not mask.any():
            return result
        depth, height, width = self._shape
        y, x = np.mgrid[:height, :width]
        for z in range(depth):
            index = [
                np.rint(row[0] * x + row[1] * y + (row[2] * z + row[3])).astype(np.int64) for row in self._matrix[:3]
            ]
            inside = np.ones((height, width), dtype=bool)
            for values, length in zip(index, mask.shape[::-1], strict=True):
                inside &= (values >= 0) & (values < length)
            result[z][inside] = mask[index[2][inside], index[1][inside], index[0][inside]]
        return result


__all__ = ["frame_masks", "segments"]
