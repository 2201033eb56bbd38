"""TIFF: grey and colour pictures, and 3D stacks whose spacing lies in a JSON file beside them.

The sidecar of ``case.tif`` and of every ``case_0000.tif`` is ``case.json`` with ``{"spacing": [z, y, x]}`` in mm,
as in nnU-Net. Without one the spacing is 1 mm, because no two programs agree on what TIFF tags mean.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from autoseg.errors import DatasetError
from autoseg.io.volume import Geometry, Volume
from autoseg.records import atomic_path, write_text

# Deflate and LZW pack at most some 1000 to 1.
_LARGEST_PACKING = 2000
# What tifffile raises for damaged files.
_ERRORS = (
    tifffile.TiffFileError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def read(path: Path) -> Volume:
    """Samples and channel axes become channels, the one other axis z.

    Raises:
        DatasetError: unreadable, truncated, more than one axis besides channels, y and x, or a wrong sidecar.
    """
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            axes = series.axes
            _check_length(path, file, series.nbytes)
            try:
                data = series.asarray()
            except ValueError as error:
                if "imagecodecs" not in str(error):
                    raise
                data = _with_pillow(path, series.shape)
    except _ERRORS as error:
        raise _unreadable(path, error) from error
    data = _arranged(path, data, axes)
    return Volume(data, _geometry(path, data.shape[1]))


def read_shape(path: Path) -> tuple[int, int, int, int]:
    """(channel, z, y, x) from the tags alone."""
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            shape, axes = series.shape, series.axes
    except _ERRORS as error:
        raise _unreadable(path, error) from error
    c, z, y, x = _order(path, shape, axes)
    return (
        math.prod(shape[axis] for axis in c),
        math.prod(shape[axis] for axis in z),
        shape[y],
        shape[x],
    )


def write(path: Path, data: np.ndarray, geometry: Geometry) -> None:
    """Write (channel, z, y, x), deflated, and the sidecar where the spacing says more than one by one pixels."""
    channels, z, _, _ = data.shape
    picture = z == 1
    if picture:
        shown = np.moveaxis(data[:, 0], 0, -1) if channels in {3, 4} else data[:, 0]
        shown = shown[0] if channels == 1 else shown
    else:
        shown = data[0] if channels == 1 else np.moveaxis(data, 0, 1)
    colour = "rgb" if picture and channels in {3, 4} else "minisblack"
    axes = {(True, 2): "YX", (True, 3): "YXS" if colour == "rgb" else "CYX", (False, 3): "ZYX", (False, 4): "ZCYX"}
    if not picture or geometry.spacing[1:] != (1.0, 1.0):
        # The sidecar first: a picture with it is complete, a picture without it has another spacing.
        write_text(_own_sidecar(path), json.dumps({"spacing": list(geometry.spacing)}) + "\n")
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            np.ascontiguousarray(shown),
            photometric=colour,
            compression="zlib",
            metadata={"axes": axes[picture, shown.ndim]},
        )


def _order(path: Path, shape: tuple[int, ...], axes: str) -> tuple[list[int], list[int], int, int]:
    """Positions of the channel axes, of z (or none), of y and of x in an array with these axes."""
    if "Y" not in axes or "X" not in axes:
        raise DatasetError(f"{path} has no picture in it (axes {axes})", hint="save it again as a plain TIFF")
    y, x = axes.index("Y"), axes.index("X")
    channels = [index for index, axis in enumerate(axes) if axis in "CS"]
    others = [index for index in range(len(axes)) if index not in {y, x, *channels}]
    long = [index for index in others if shape[index] > 1]
    if len(long) > 1:
        shown = " x ".join(str(length) for length in shape)
        raise DatasetError(f"{path} has too many axes ({axes}: {shown})", hint="save one 3D file per channel")
    return channels, others, y, x


def _arranged(path: Path, data: np.ndarray, axes: str) -> np.ndarray:
    channels, others, y, x = _order(path, data.shape, axes)
    ordered = data.transpose(*channels, *others, y, x)
    lengths = [math.prod(data.shape[axis] for axis in group) for group in (channels, others, [y], [x])]
    ordered = ordered.reshape(lengths)
    if ordered.dtype == bool:
        ordered = ordered.astype(np.uint8)
    return np.ascontiguousarray(ordered.astype(ordered.dtype.newbyteorder("="), copy=False))


def _check_length(path: Path, file: tifffile.TiffFile, num_bytes: int) -> None:
    # A damaged size must not make us ask for all memory there is; and tifffile reads zeros where a file is cut off.
    length = path.stat().st_size
    if num_bytes > _LARGEST_PACKING * length:
        raise OSError("its size cannot be true")
    for page in file.pages:
        ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
        if ends and max(ends) > length:
            raise OSError("its end is missing")


def _with_pillow(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """LZW and JPEG inside TIFF need a C library that Pillow brings along."""
    with Image.open(path) as image:
        pages = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            pages.append(np.asarray(image))
    return np.stack(pages).reshape(shape)


def _geometry(path: Path, z: int) -> Geometry:
    spacing = _sidecar_spacing(path)
    return Geometry.upright(spacing) if z > 1 else Geometry.picture(spacing[1:])


def _sidecar_spacing(path: Path) -> tuple[float, float, float]:
    there = sidecars(path)
    if not there:
        return 1.0, 1.0, 1.0
    sidecar = there[0]
    hint = 'write it as {"spacing": [z, y, x]} with millimetres, or remove it'
    try:
        values = json.loads(sidecar.read_text(encoding="utf-8"))["spacing"]
        spacing = tuple(float(value) for value in values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{sidecar} does not give the spacing of {path.name}", hint=hint) from error
    if len(spacing) not in {2, 3} or not all(math.isfinite(step) and step > 0 for step in spacing):
        raise DatasetError(f"{sidecar} gives the impossible spacing {values}", hint=hint)
    y, x = spacing[-2:]
    return (spacing[0] if len(spacing) == 3 else max(y, x)), y, x


def sidecars(path: Path) -> tuple[Path, ...]:
    """The JSON files that may give the spacing of a TIFF; the first one counts."""
    return tuple(file for file in dict.fromkeys((_case_sidecar(path), _own_sidecar(path))) if file.is_file())


def _own_sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _case_sidecar(path: Path) -> Path:
    return path.with_name(re.sub(r"_\d{4}$", "", path.stem) + ".json")


def _unreadable(path: Path, error: Exception) -> DatasetError:
    if isinstance(error, FileNotFoundError):
        return DatasetError(f"{path} does not exist", hint="check the path")
    return DatasetError(
        f"{path} cannot be read: it is truncated, damaged, or not a TIFF file ({error})",
        hint="restore the file from its source",
    )
