"""Read and write images and labels; the ending of the name decides the format.

SimpleITK is loaded for the formats that need it: it takes more memory than a worker otherwise does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoseg.errors import DatasetError, joined
from autoseg.io import integrity, nifti, pictures, tif
from autoseg.io.volume import Geometry, Volume, corner_distance_mm

_NIFTI = (".nii.gz", ".nii")
_ITK = (".nrrd", ".nhdr", ".mha", ".mhd", ".gipl.gz", ".gipl")
_LOSSLESS_PICTURES = (".png", ".bmp")
_LOSSY = (".jpg", ".jpeg")
_TIFF = (".tif", ".tiff")

READABLE_ENDINGS = (*_NIFTI, *_ITK, *_LOSSLESS_PICTURES, *_LOSSY, *_TIFF)
LABEL_ENDINGS = tuple(ending for ending in READABLE_ENDINGS if ending not in _LOSSY)

# A label that went through a float32 scale factor is off by less than this; a blurred one by more.
_INTEGER_NOISE = 1e-3


class Finding(NamedTuple):
    """What is wrong with a file, as the rest of a sentence that begins with its name, and what to do."""

    fault: str
    remedy: str


def split_ending(name: str) -> tuple[str, str]:
    """``("case_0000", ".nii.gz")`` for ``case_0000.nii.gz``: the longest readable ending, whatever its case.

    Raises:
        DatasetError: no format has this ending.
    """
    lower = name.lower()
    ending = max((ending for ending in READABLE_ENDINGS if lower.endswith(ending)), key=len, default="")
    if not ending:
        raise DatasetError(
            f"{name} has an ending that autoseg does not read", hint=f"use one of: {' '.join(READABLE_ENDINGS)}"
        )
    return name[: -len(ending)], name[-len(ending) :]


def label_ending(ending: str) -> str:
    """The ending for segmentations of images with ``ending``: the same, but PNG where it would lose values."""
    return ".png" if ending.lower() in _LOSSY else ending


def read_image(path: Path | str) -> Volume:
    """Read one file; voxels keep their type, colours, vectors and a fourth axis become channels.

    Raises:
        DatasetError: missing, unreadable, truncated, of unknown format, or without a usable geometry.
    """
    return _read(Path(path), pictures.read)


def read_shape(path: Path | str) -> tuple[int, int, int, int]:
    """(channel, z, y, x) of a file, from its header where the format has one; errors as ``read_image``."""
    path = _existing(Path(path))
    ending = split_ending(path.name)[1].lower()
    if ending in _NIFTI:
        header = nifti.read_header(path)
        x, y, z, _ = header.shape
        return header.channels, z, y, x
    if ending in _TIFF:
        return tif.read_shape(path)
    if ending in _ITK:
        from autoseg.io import itk

        return itk.read_shape(path)
    return pictures.read_shape(path)


def read_channels(paths: Sequence[Path | str], *, tolerance_mm: float = 0.1) -> Volume:
    """Read the files of one case and stack their channels; the geometry is that of the first.

    Raises:
        DatasetError: as ``read_image``; NaN or infinite values; or shapes or corners that do not agree. All
            problems of the case are listed.
    """
    volumes: list[Volume] = []
    problems: list[str] = []
    hints: dict[str, None] = {}
    for path in paths:
        try:
            volumes.append(read_image(path))
        except DatasetError as error:
            problems.append(error.message)
            hints[error.hint] = None
            continue
        found = [non_finite(volumes[-1].data), grid_difference(volumes[-1], volumes[0], tolerance_mm=tolerance_mm)]
        for finding in filter(None, found):
            problems.append(f"{path} {finding.fault}")
            hints[finding.remedy] = None
    if problems:
        message = problems[0] if len(problems) == 1 else f"a case cannot be read:\n{joined(problems)}"
        raise DatasetError(message, hint="; ".join(hints))
    return stacked(volumes)


def stacked(volumes: Sequence[Volume]) -> Volume:
    """The channels of all volumes one after the other, in the geometry of the first."""
    if len(volumes) == 1:
        return volumes[0]
    return Volume(np.concatenate([volume.data for volume in volumes]), volumes[0].geometry)


def non_finite(data: np.ndarray) -> Finding | None:
    """Whether there are NaN or infinite values."""
    # The sum is NaN or infinite if any value is, and needs no second array.
    if data.dtype.kind != "f" or np.isfinite(data.sum(dtype=np.float64)):
        return None
    count = data.size - int(np.isfinite(data).sum())
    if count == 0:
        return None
    return Finding(f"has NaN or infinite values in {count} voxels", "replace them with the value of the background")


def grid_difference(volume: Volume, reference: Volume, *, tolerance_mm: float) -> Finding | None:
    """Whether a file does not lie on the grid of the first image of its case: another shape, or corners apart."""
    if volume.shape != reference.shape:
        return Finding(
            f"has another shape than the first image: {_times(volume.shape)}, not {_times(reference.shape)} (z, y, x)",
            "resample one to the grid of the other",
        )
    distance = corner_distance_mm(volume.geometry, reference.geometry, volume.shape)
    if distance <= tolerance_mm:
        return None
    names = " and ".join(_differing(volume.geometry, reference.geometry, volume.shape, tolerance_mm)) or "geometry"
    return Finding(
        f"has another {names} than the first image: corners up to {distance:.3g} mm apart",
        "correct the header if the voxels belong together, else resample",
    )


def _differing(a: Geometry, b: Geometry, shape: Sequence[int], tolerance_mm: float) -> list[str]:
    """Which of spacing, origin and direction alone would move a corner beyond the tolerance."""
    if a.ndim != b.ndim:
        return ["number of dimensions"]
    changed = {
        "spacing": Geometry(b.spacing, a.origin, a.direction, a.ndim),
        "origin": Geometry(a.spacing, b.origin, a.direction, a.ndim),
        "direction": Geometry(a.spacing, a.origin, b.direction, a.ndim),
    }
    return [name for name, other in changed.items() if corner_distance_mm(a, other, shape) > tolerance_mm]


def read_label(path: Path | str) -> Volume:
    """Read a label map as (1, z, y, x) integers; palette pictures give their indices.

    Raises:
        DatasetError: as ``read_image``; a lossy format, several channels, NaN, or values between integers.
    """
    path = Path(path)
    if split_ending(path.name)[1].lower() in _LOSSY:
        raise DatasetError(f"{path} is a JPEG, which changes label values", hint="save labels as PNG")
    volume = _read(path, pictures.read_label)
    data = _single_channel(path, volume.data)
    return Volume(_as_integers(path, data), volume.geometry)


def write_label(path: Path | str, labels: np.ndarray, geometry: Geometry) -> None:
    """Write (z, y, x) integers atomically in the smallest unsigned type that holds them (signed if some are < 0).

    Raises:
        DatasetError: the format cannot hold the labels.
    """
    largest, smallest = (int(labels.max()), int(labels.min())) if labels.size else (0, 0)
    kinds = (np.uint8, np.uint16, np.uint32) if smallest >= 0 else (np.int16, np.int32)
    kind = next((kind for kind in kinds if np.iinfo(kind).min <= smallest and largest <= np.iinfo(kind).max), np.int64)
    if split_ending(Path(path).name)[1].lower() in _LOSSY:
        raise DatasetError(f"{path}: JPEG would change label values", hint="write labels as PNG")
    write_image(path, Volume(labels[np.newaxis].astype(kind), geometry))


def write_image(path: Path | str, volume: Volume) -> None:
    """Write an image atomically and compressed; several channels become a vector, a colour or a fourth axis.

    Raises:
        DatasetError: the format cannot hold it.
    """
    path = Path(path)
    ending = split_ending(path.name)[1].lower()
    data = _storable(volume.data)
    if ending in (*_LOSSLESS_PICTURES, *_LOSSY):
        pictures.write(path, data)
    elif ending in _TIFF:
        tif.write(path, data, volume.geometry)
    elif ending in _NIFTI:
        nifti.write(path, data, volume.geometry)
    else:
        from autoseg.io import itk

        itk.write(path, itk.to_image(data, volume.geometry))


def _read(path: Path, read_picture: Callable[[Path], Volume]) -> Volume:
    path = _existing(path)
    ending = split_ending(path.name)[1].lower()
    if ending in _NIFTI:
        volume = nifti.read(path)
    elif ending in _TIFF:
        volume = tif.read(path)
    elif ending in _ITK:
        from autoseg.io import itk

        integrity.check(path, ending)
        volume = itk.read(path)
    else:
        volume = read_picture(path)
    if volume.data.size == 0:
        raise DatasetError(f"{path} has no voxels: its shape is {_times(volume.shape)}", hint="restore the file")
    return volume


def _existing(path: Path) -> Path:
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise DatasetError(f"{path} {state}", hint="check the path, and that links lead somewhere")
    try:
        with path.open("rb") as stream:
            if not stream.read(1):
                raise DatasetError(f"{path} is empty", hint="restore the file from its source")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from error
    return path


def _single_channel(path: Path, data: np.ndarray) -> np.ndarray:
    """Grey saved as colour, or with an opaque alpha, is still one channel."""
    colours = data[:-1] if len(data) in {2, 4} and (data[-1] == data[-1].flat[0]).all() else data
    if all(np.array_equal(colours[0], colour) for colour in colours[1:]):
        return colours[:1]
    raise DatasetError(
        f"{path} has {len(data)} channels where a label has one integer per voxel",
        hint="save the label as a single-channel image",
    )


def _as_integers(path: Path, data: np.ndarray) -> np.ndarray:
    if data.dtype.kind in "iu":
        return data
    rounded = np.rint(data)
    off = ~(np.abs(data - rounded) <= _INTEGER_NOISE)
    if off.any():
        shown = ", ".join(f"{value:g}" for value in np.unique(data[off])[:3])
        raise DatasetError(
            f"{path} has {int(off.sum())} voxels whose label is no integer ({shown})",
            hint="labels must be resampled with nearest-neighbour interpolation and saved as integers",
        )
    return rounded.astype(np.int32 if np.abs(rounded).max(initial=0) < 2**31 else np.int64)


def _storable(data: np.ndarray) -> np.ndarray:
    if data.dtype == bool:
        return data.astype(np.uint8)
    return data.astype(np.float32) if data.dtype == np.float16 else data


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(length) for length in shape)
