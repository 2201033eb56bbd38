"""DICOM series as volumes. SimpleITK reads the files; the grid is worked out here from the positions of the slices.

Voxels are rescaled to what they mean (Hounsfield units). Slices are sorted along their common normal, so that the
third axis of the grid completes a right-handed system whatever the order of names, numbers or acquisition.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name everybody uses

from autoseg.errors import DatasetError
from autoseg.io.volume import Geometry, Volume
from autoseg.log import get_logger

_LOG = get_logger(__name__)

_MODALITY, _SERIES = "0008|0060", "0020|000e"
_POSITION, _ORIENTATION, _PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
_THICKNESS, _FRAMES = "0018|0050", "0028|0008"
_ROWS, _COLUMNS, _FRAME_OF_REFERENCE = "0028|0010", "0028|0011", "0020|0052"
# What is no image, though some of it has pixels.
_DERIVED = {"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "REG"}

# Slices may be off an even distance by this share of it (headers round to a few digits), or by this many mm.
_UNEVEN, _UNEVEN_MM = 0.02, 0.02
# Directions are cosines with a few digits.
_PARALLEL = 1e-3

# The element Modality with its value in both byte layouts of little endian: SimpleITK opens nothing without pixels.
_MODALITY_BYTES = re.compile(rb"\x08\x00\x60\x00.{4}([A-Z]{2,16})", re.DOTALL)
_HEAD = 1 << 14
# File names in a line of the log.
_SHOWN = 3


@dataclass(frozen=True)
class _Slice:
    path: Path
    series: str
    modality: str
    position: np.ndarray
    row: np.ndarray
    column: np.ndarray
    spacing: tuple[float, float]
    thickness: float
    size: tuple[int, int]
    frame_of_reference: str

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.row, self.column)


@dataclass(frozen=True)
class Series:
    """An image series: its files in the order of the volume's planes, and the grid.

    ``shape`` is (z, y, x); ``frame_of_reference`` is the UID of its coordinates, empty where the files do not say it.
    """

    uid: str
    modality: str
    files: tuple[Path, ...]
    geometry: Geometry
    shape: tuple[int, int, int]
    frame_of_reference: str


@dataclass(frozen=True)
class BrokenSeries:
    """An image series that makes no volume: its files by name, what is wrong, and whether that is multi-frame files."""

    uid: str
    files: tuple[Path, ...]
    error: DatasetError
    multi_frame: bool


def is_dicom(path: Path) -> bool:
    """Whether a file has the mark of DICOM."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def dicom_files(folder: Path) -> Iterator[Path]:
    """Every DICOM file below a folder, by name."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and is_dicom(path))


def holds_dicom(folder: Path) -> bool:
    """Whether there is a DICOM file below a folder."""
    return next(dicom_files(folder), None) is not None


def modalities(folder: Path) -> dict[str, int]:
    """How many DICOM files below a folder are of which modality ("unknown" where the file does not say it)."""
    counts: Counter[str] = Counter()
    for path in dicom_files(folder):
        with path.open("rb") as stream:
            found = _MODALITY_BYTES.search(stream.read(_HEAD))
        counts[found[1].decode() if found else "unknown"] += 1
    return dict(sorted(counts.items()))


def scan_series(folder: Path) -> dict[str, Series | BrokenSeries]:
    """Series instance UID -> series, or what is wrong with it, of every image series below a folder.

    Single pictures without a place in the patient (screenshots) are left out, and the log names them.
    """
    by_uid: dict[str, list[tuple[Path, Mapping[str, str]]]] = {}
    placeless = []
    for path in dicom_files(folder):
        header = _header(path)
        if header is None:
            continue
        if _placed(header) or _frames(header) > 1:
            by_uid.setdefault(header.get(_SERIES, ""), []).append((path, header))
        else:
            placeless.append(str(path))
    if placeless:
        shown = ", ".join(placeless[:_SHOWN]) + (", ..." if len(placeless) > _SHOWN else "")
        _LOG.warning("%d DICOM images without a place in the patient are left out: %s", len(placeless), shown)
    result: dict[str, Series | BrokenSeries] = {}
    for uid, files in by_uid.items():
        try:
            result[uid] = _series(uid, [_slice(path, header) for path, header in files])
        except DatasetError as error:
            several = any(_frames(header) > 1 for _, header in files)
            result[uid] = BrokenSeries(uid, tuple(path for path, _ in files), error, several)
    return result


def series_of(files: Sequence[Path]) -> Series:
    """The series that these files are the slices of.

    Raises:
        DatasetError: a file that is no slice of it, or an uneven grid.
    """
    slices: list[_Slice] = []
    for path in files:
        header = _header(path)
        found = None if header is None or not _placed(header) else _slice(path, header)
        if found is None or (slices and found.series != slices[0].series):
            raise DatasetError(f"{path} is no slice of the series of {files[0]}", hint="give the files of one series")
        slices.append(found)
    return _series(slices[0].series, slices)


def read_dicom_series(folder: Path | str, *, uid: str | None = None) -> Volume:
    """The one image series below a folder, or the one called ``uid``, as (1, z, y, x) in rescaled values.

    Raises:
        DatasetError: none, several, an uneven grid, or files that cannot be read. Multi-frame files are no obstacle
            to another series.
    """
    wanted = [one for one in scan_series(Path(folder)).values() if uid in (None, one.uid)]
    found = [one for one in wanted if isinstance(one, Series)]
    broken = [one for one in wanted if isinstance(one, BrokenSeries) and not (found and one.multi_frame)]
    if broken:
        raise broken[0].error
    if len(found) != 1:
        names = ", ".join(f"{series.modality} {series.uid}" for series in found)
        raise DatasetError(
            f"{folder} has {len(found)} DICOM series{f': {names}' if names else ''}",
            hint="give the folder of one series",
        )
    return read_series(found[0])


def read_series(series: Series) -> Volume:
    """The voxels of a series; errors as ``read_dicom_series``."""
    planes = []
    for path in series.files:
        try:
            image = sitk.ReadImage(str(path))
        except RuntimeError as error:
            raise DatasetError(f"{path} cannot be read as DICOM", hint="restore the file from its source") from error
        if image.GetNumberOfComponentsPerPixel() != 1 or (image.GetDimension() > 2 and image.GetSize()[2] != 1):
            raise DatasetError(
                f"{path} is not one grey slice", hint="convert colour or multi-frame images to NIfTI first"
            )
        planes.append(sitk.GetArrayFromImage(image).reshape(image.GetSize()[1::-1]))
    if len({plane.shape for plane in planes}) > 1:
        raise DatasetError(f"{series.files[0]} and its series have slices of several sizes", hint="remove the others")
    return Volume(_smallest(np.stack(planes))[np.newaxis], series.geometry)


def _smallest(data: np.ndarray) -> np.ndarray:
    """Rescaling makes float64 even where whole numbers come out."""
    if data.dtype.kind == "f" and (np.rint(data) == data).all() and np.abs(data).max(initial=0) < 2**15:
        return data.astype(np.int16)
    return data.astype(np.float32) if data.dtype == np.float64 else data


def _header(path: Path) -> dict[str, str] | None:
    """Tag -> value of an image; None for what is no image, or none of the patient."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    values = {key: reader.GetMetaData(key).strip() for key in reader.GetMetaDataKeys()}
    return None if values.get(_MODALITY) in _DERIVED else values


def _placed(header: Mapping[str, str]) -> bool:
    return _POSITION in header and _ORIENTATION in header


def _frames(header: Mapping[str, str]) -> int:
    text = header.get(_FRAMES, "")
    return int(text) if text.isdecimal() else 1


def _slice(path: Path, values: Mapping[str, str]) -> _Slice:
    """What the header of an image says of its place.

    Raises:
        DatasetError: it is multi-frame, or the numbers cannot be read.
    """
    if _frames(values) > 1:
        raise DatasetError(
            f"{path} is multi-frame: {_frames(values)} frames in one file",
            hint="convert multi-frame files to NIfTI first",
        )
    try:
        position, cosines = _numbers(values[_POSITION]), _numbers(values[_ORIENTATION])
        rows, columns = _numbers(values.get(_PIXEL_SPACING, "1\\1"))
        thickness = float(values.get(_THICKNESS) or 1.0)
        size = int(values.get(_ROWS, "0")), int(values.get(_COLUMNS, "0"))
    except ValueError as error:
        raise DatasetError(f"{path} has a geometry that cannot be read: {error}", hint="restore the file") from error
    return _Slice(
        path=path,
        series=values.get(_SERIES, ""),
        modality=values.get(_MODALITY, ""),
        position=position,
        row=cosines[:3],
        column=cosines[3:],
        spacing=(float(rows), float(columns)),
        thickness=thickness,
        size=size,
        frame_of_reference=values.get(_FRAME_OF_REFERENCE, "").rstrip("\0"),
    )


def _numbers(text: str) -> np.ndarray:
    return np.array([float(part) for part in text.split("\\")])


def _series(uid: str, slices: Sequence[_Slice]) -> Series:
    first = slices[0]
    for other in slices:
        same = np.abs(np.concatenate([other.row - first.row, other.column - first.column])).max() < _PARALLEL
        if not same or not np.allclose(other.spacing, first.spacing, rtol=1e-3):
            raise DatasetError(
                f"{other.path} lies on another grid than {first.path} of the same series",
                hint="keep one series per folder, without localisers",
            )
    ordered = sorted(slices, key=lambda item: float(item.position @ first.normal))
    step = _step(ordered)
    direction = np.column_stack([first.row, first.column, first.normal])
    rows, columns = first.spacing
    geometry = Geometry(
        spacing=(step, rows, columns),
        origin=tuple(float(value) for value in ordered[0].position),
        direction=tuple(float(value) for value in direction.ravel()),
        ndim=3,
    )
    return Series(
        uid=uid,
        modality=first.modality,
        files=tuple(item.path for item in ordered),
        geometry=geometry,
        shape=(len(ordered), *first.size),
        frame_of_reference=first.frame_of_reference,
    )


def _step(ordered: Sequence[_Slice]) -> float:
    """The distance of neighbouring slices in mm; of a single slice its thickness."""
    if len(ordered) == 1:
        return ordered[0].thickness
    positions = np.array([item.position for item in ordered])
    normal = ordered[0].normal
    along = positions @ normal
    steps = np.diff(along)
    step = float((along[-1] - along[0]) / (len(along) - 1))
    bound = max(_UNEVEN_MM, _UNEVEN * float(np.median(steps)))
    if steps.min() <= bound:
        place = int(steps.argmin())
        raise DatasetError(
            f"{ordered[place].path} and {ordered[place + 1].path} are slices at the same place",
            hint="keep one time point or one reconstruction per folder",
        )
    if np.abs(steps - np.median(steps)).max() > bound:
        place = int(np.abs(steps - np.median(steps)).argmax())
        raise DatasetError(
            f"between {ordered[place].path} and {ordered[place + 1].path} lie {steps[place]:.3g} mm, "
            f"elsewhere {np.median(steps):.3g} mm: slices are missing or unevenly spaced",
            hint="add the missing slices, or resample the series to even slices first",
        )
    sideways = positions - positions[0] - np.outer(along - along[0], normal)
    if np.abs(sideways).max() > max(_UNEVEN_MM, _UNEVEN * step):
        raise DatasetError(
            f"{ordered[0].path} and its series are sheared (a tilted gantry): slices shift sideways by up to "
            f"{np.abs(sideways).max():.3g} mm",
            hint="resample the series to an upright grid first",
        )
    return step


__all__ = [
    "BrokenSeries",
    "Series",
    "dicom_files",
    "holds_dicom",
    "is_dicom",
    "modalities",
    "read_dicom_series",
    "read_series",
    "scan_series",
]
