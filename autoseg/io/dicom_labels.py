"""RTSTRUCT contours and SEG frames as masks on the grid of an image. Needs pydicom (``pip install autoseg[dicom]``).

A voxel belongs to a contour if its centre lies inside; contours of one structure at one height exclude each other
where they overlap, which is how holes are drawn. Frames of a SEG: ``dicom_frames``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.errors import DatasetError, SettingError
from autoseg.io.dicom import dicom_files
from autoseg.io.dicom_frames import frame_masks, segments
from autoseg.io.volume import Geometry

# Contours this far from a plane, as a share of the distance of planes, still belong to it.
_OFF_PLANE = 0.5
# Heights that are the same to this share of the distance of planes are one.
_DIGITS = 2
# What pydicom and conversions raise where elements are missing, empty or of another kind.
_MALFORMED = (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError)


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """An RTSTRUCT or SEG file: the series that it is about, the patient, and the names of what it lists, in order.

    ``frames_of_reference`` are the UIDs of the coordinates of what it marks, as far as the file says them.
    """

    path: Path
    kind: str
    series: str
    patient: str
    names: tuple[str, ...]
    frames_of_reference: frozenset[str]


def find_annotations(folder: Path) -> tuple[Annotation, ...]:
    """Every RTSTRUCT and SEG below a folder.

    Raises:
        SettingError: pydicom is not installed.
        DatasetError: one of them is about several series, or its header cannot be understood.
    """
    found = []
    for path in dicom_files(folder):
        data = _open(path, pixels=False)
        kind = str(data.get("Modality", ""))
        if kind in {"RTSTRUCT", "SEG"}:
            with _understood(path, kind):
                found.append(_annotation(path, kind, data))
    return tuple(found)


def read_masks(annotation: Annotation, geometry: Geometry, shape: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, bool mask (z, y, x)) of everything that an annotation marks on the grid of an image.

    Raises:
        DatasetError: contours or frames that do not fit the grid, or cannot be understood.
    """
    data = _open(annotation.path, pixels=True)
    with _understood(annotation.path, annotation.kind):
        if annotation.kind == "RTSTRUCT":
            yield from _contour_masks(annotation, data, geometry, shape)
        else:
            yield from frame_masks(annotation.path, data, geometry, shape)


@contextmanager
def _understood(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except _MALFORMED as error:
        raise DatasetError(
            f"{path} is a {kind} that cannot be understood: {error}", hint="export it again, or take it out"
        ) from error


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
        rois = data.get("StructureSetROISequence") or []
        names = [_roi_name(roi) for roi in rois]
        frames = data.get("ReferencedFrameOfReferenceSequence") or []
        series = [
            str(one.SeriesInstanceUID)
            for frame in frames
            for study in frame.get("RTReferencedStudySequence") or []
            for one in study.get("RTReferencedSeriesSequence") or []
        ]
        # What a structure says of itself counts: a file may also list the frames of images that were registered.
        coordinates = [str(roi.get("ReferencedFrameOfReferenceUID") or "") for roi in rois]
        if not any(coordinates):
            coordinates = [str(frame.get("FrameOfReferenceUID") or "") for frame in frames]
    else:
        names = [name for _, name in segments(data)]
        series = [str(one.SeriesInstanceUID) for one in data.get("ReferencedSeriesSequence") or []]
        coordinates = [str(data.get("FrameOfReferenceUID") or "")]
    if len(set(series)) > 1:
        raise DatasetError(f"{path} is about several series", hint="keep annotations of one series each")
    return Annotation(
        path=path,
        kind=kind,
        # Some writers leave the reference out; then it can only be about the one series beside it.
        series=series[0] if series else "",
        patient=str(data.get("PatientID", "")).strip(),
        names=tuple(names),
        frames_of_reference=frozenset(coordinates) - {""},
    )


def _roi_name(roi: Any) -> str:
    return str(roi.get("ROIName") or "").strip()


def _contour_masks(
    annotation: Annotation, data: Any, geometry: Geometry, shape: Sequence[int]
) -> Iterator[tuple[str, np.ndarray]]:
    to_index = np.linalg.inv(geometry.affine())
    names = {int(roi.ROINumber): _roi_name(roi) for roi in data.get("StructureSetROISequence") or []}
    for roi in data.get("ROIContourSequence") or []:
        name = names.get(int(roi.ReferencedROINumber), "")
        polygons: list[np.ndarray] = []
        for contour in roi.get("ContourSequence") or []:
            if str(contour.ContourGeometricType) not in {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"}:
                continue
            points = np.asarray(contour.ContourData, dtype=np.float64).reshape(-1, 3)
            index = points @ to_index[:3, :3].T + to_index[:3, 3]
            if np.abs(index[:, 2] - round(float(index[:, 2].mean()))).max() > _OFF_PLANE + 1e-3:
                raise DatasetError(
                    f"{annotation.path}: a contour of {name!r} does not lie in a plane of its image",
                    hint="export the structures on the planes of this series",
                )
            polygons.append(index)
        yield name, _mask(polygons, shape)


def _mask(polygons: Sequence[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """The voxels (z, y, x) inside of polygons of (x, y, z) indices, each in a plane.

    Those at one height make holes of each other; heights that share a plane of the image, as those of contours on
    thinner slices do, are joined. A contour that some program wrote twice counts once, or it would be its own hole.
    """
    mask = np.zeros(tuple(shape), dtype=bool)
    heights: dict[float, list[np.ndarray]] = {}
    for polygon in {polygon.tobytes(): polygon for polygon in polygons}.values():
        heights.setdefault(round(float(polygon[:, 2].mean()), _DIGITS), []).append(polygon[:, :2])
    for height, together in heights.items():
        # Halves go one way: rounding to even would leave out every other plane.
        plane = int(np.floor(height + 0.5))
        if 0 <= plane < shape[0]:
            inside = [_filled(polygon, (int(shape[1]), int(shape[2]))) for polygon in together]
            mask[plane] |= np.logical_xor.reduce(inside)
    return mask


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


__all__ = ["Annotation", "find_annotations", "pydicom_module", "read_masks"]
