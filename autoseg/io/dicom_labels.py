"""RTSTRUCT contours and SEG frames as masks on the grid of an image. Needs pydicom (``pip install autoseg[dicom]``).

A voxel belongs to a contour if its centre lies inside; contours of one structure in one plane exclude each other
where they overlap, which is how holes are drawn. Frames of a SEG are taken to the image by nearest neighbour.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.errors import DatasetError, SettingError
from autoseg.io.dicom import dicom_files
from autoseg.io.volume import Geometry

# Contours this far from a plane, as a share of the distance of planes, still belong to it.
_OFF_PLANE = 0.5
_HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """An RTSTRUCT or SEG file: the series that it is about, the patient, and the names of what it marks, in order."""

    path: Path
    kind: str
    series: str
    patient: str
    names: tuple[str, ...]


def find_annotations(folder: Path) -> tuple[Annotation, ...]:
    """Every RTSTRUCT and SEG below a folder.

    Raises:
        SettingError: pydicom is not installed.
        DatasetError: one of them does not say which series it is about.
    """
    found = []
    for path in dicom_files(folder):
        data = _open(path, pixels=False)
        kind = str(data.get("Modality", ""))
        if kind in {"RTSTRUCT", "SEG"}:
            found.append(_annotation(path, kind, data))
    return tuple(found)


def read_masks(annotation: Annotation, geometry: Geometry, shape: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, bool mask (z, y, x)) of everything that an annotation marks on the grid of an image.

    Raises:
        DatasetError: contours or frames that do not fit the grid.
    """
    data = _open(annotation.path, pixels=True)
    if annotation.kind == "RTSTRUCT":
        return _contour_masks(annotation, data, geometry, shape)
    return _frame_masks(annotation, data, geometry, shape)


def pydicom_module() -> Any:
    """pydicom.

    Raises:
        SettingError: it is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise SettingError(
            "RTSTRUCT and SEG need pydicom, which is not installed", hint="pip install 'autoseg[dicom]'"
        ) from error
    return pydicom


def _open(path: Path, *, pixels: bool) -> Any:
    pydicom = pydicom_module()
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except (OSError, EOFError, ValueError, AttributeError, pydicom.errors.InvalidDicomError) as error:
        raise DatasetError(f"{path} cannot be read as DICOM: {error}", hint="restore the file") from error


def _annotation(path: Path, kind: str, data: Any) -> Annotation:
    if kind == "RTSTRUCT":
        names = [str(roi.ROIName).strip() for roi in data.get("StructureSetROISequence", [])]
        series = [
            str(one.SeriesInstanceUID)
            for frame in data.get("ReferencedFrameOfReferenceSequence", [])
            for study in frame.get("RTReferencedStudySequence", [])
            for one in study.get("RTReferencedSeriesSequence", [])
        ]
    else:
        names = [str(segment.SegmentLabel).strip() for segment in _segments(data)]
        series = [str(one.SeriesInstanceUID) for one in data.get("ReferencedSeriesSequence", [])]
    if len(set(series)) > 1:
        raise DatasetError(f"{path} is about several series", hint="keep annotations of one series each")
    return Annotation(
        path=path,
        kind=kind,
        # Some writers leave the reference out; then it can only be about the one series beside it.
        series=series[0] if series else "",
        patient=str(data.get("PatientID", "")).strip(),
        names=tuple(names),
    )


def _segments(data: Any) -> list[Any]:
    """Segments without the background that label maps may list as number 0."""
    return [segment for segment in data.get("SegmentSequence", []) if int(segment.SegmentNumber) != 0]


def _contour_masks(
    annotation: Annotation, data: Any, geometry: Geometry, shape: Sequence[int]
) -> Iterator[tuple[str, np.ndarray]]:
    to_index = np.linalg.inv(geometry.affine())
    names = {int(roi.ROINumber): str(roi.ROIName).strip() for roi in data.get("StructureSetROISequence", [])}
    for roi in data.get("ROIContourSequence", []):
        name = names.get(int(roi.ReferencedROINumber), "")
        mask = np.zeros(tuple(shape), dtype=bool)
        for contour in roi.get("ContourSequence", []):
            if str(contour.ContourGeometricType) not in {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"}:
                continue
            points = np.asarray(contour.ContourData, dtype=np.float64).reshape(-1, 3)
            index = points @ to_index[:3, :3].T + to_index[:3, 3]
            plane = round(float(index[:, 2].mean()))
            if np.abs(index[:, 2] - plane).max() > _OFF_PLANE + 1e-3:
                raise DatasetError(
                    f"{annotation.path}: a contour of {name!r} does not lie in a plane of its image",
                    hint="export the structures on the planes of this series",
                )
            if 0 <= plane < shape[0]:
                mask[plane] ^= _filled(index[:, :2], (int(shape[1]), int(shape[2])))
        yield name, mask


def _filled(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pixels (y, x) whose centres lie inside a closed polygon of (x, y) vertices: crossings counted row by row."""
    result = np.zeros(shape, dtype=bool)
    start, stop = polygon, np.roll(polygon, -1, axis=0)
    columns = np.arange(shape[1])
    low = max(0, int(np.ceil(polygon[:, 1].min())))
    high = min(shape[0] - 1, int(np.floor(polygon[:, 1].max())))
    for y in range(low, high + 1):
        # Half-open edges: a vertex on the row counts for one of its two edges.
        crossing = (start[:, 1] <= y) != (stop[:, 1] <= y)
        a, b = start[crossing], stop[crossing]
        x = np.sort(a[:, 0] + (y - a[:, 1]) / (b[:, 1] - a[:, 1]) * (b[:, 0] - a[:, 0]))
        result[y] = np.searchsorted(x, columns, side="right") % 2 == 1
    return result


def _frame_masks(
    annotation: Annotation, data: Any, geometry: Geometry, shape: Sequence[int]
) -> Iterator[tuple[str, np.ndarray]]:
    frames = _pixels(annotation.path, data)
    grid, planes, numbers = _frame_grid(annotation.path, data, frames.shape)
    kind = str(data.SegmentationType)
    threshold = _HALF * float(data.get("MaximumFractionalValue", 1)) if kind == "FRACTIONAL" else _HALF
    lookup = _Lookup(grid, geometry, shape)
    for segment in _segments(data):
        number = int(segment.SegmentNumber)
        volume = np.zeros((max(planes) + 1, *frames.shape[1:]), dtype=bool)
        for frame, plane, own in zip(frames, planes, numbers, strict=True):
            if kind == "LABELMAP":
                volume[plane] |= frame == number
            elif own == number:
                volume[plane] |= frame > threshold
        yield str(segment.SegmentLabel).strip(), lookup(volume)


def _pixels(path: Path, data: Any) -> np.ndarray:
    try:
        pixels = np.asarray(data.pixel_array)
    except (AttributeError, ValueError, RuntimeError, NotImplementedError, ImportError) as error:
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


def joined_masks(masks: Iterator[tuple[str, np.ndarray]], values: Mapping[str, int], label: np.ndarray) -> None:
    """Write masks into a label map (z, y, x) by name; names without a value are left out, later masks win."""
    for name, mask in masks:
        if name in values:
            label[mask] = values[name]


__all__ = ["Annotation", "find_annotations", "joined_masks", "pydicom_module", "read_masks"]
