"""PNG, BMP and JPEG through Pillow; 16-bit colour PNG through SimpleITK, because Pillow cuts it to 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from autoseg.errors import DatasetError
from autoseg.io.volume import Geometry, Volume
from autoseg.records import atomic_path

# Modes whose samples are what is stored; others are converted first.
_PLAIN = {"L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I;16L", "I", "F"}
_ERRORS = (OSError, SyntaxError, ValueError, MemoryError)
# A damaged size must not make us ask for all memory there is: pixels per byte of a file, at the most.
_LARGEST_PACKING = 10_000
# Slides are large on purpose; the user chose the files.
Image.MAX_IMAGE_PIXELS = None


def read(path: Path) -> Volume:
    """Grey pictures give one channel, colour three, alpha one more; palettes are resolved to colours.

    Raises:
        DatasetError: unreadable or truncated.
    """
    if _is_deep_colour_png(path):
        from autoseg.io import itk

        return Volume(itk.read(path).data, Geometry.picture())
    return _volume(_load(path, palette_indices=False))


def read_label(path: Path) -> Volume:
    """As ``read``, but a palette picture gives its indices: they are the labels."""
    return _volume(_load(path, palette_indices=True))


def read_shape(path: Path) -> tuple[int, int, int, int]:
    """(channel, 1, y, x) from the header alone."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            mode = _colour_mode(image)
    except _ERRORS as error:
        raise _unreadable(path, error) from error
    return Image.getmodebands(mode), 1, height, width


def write(path: Path, data: np.ndarray) -> None:
    """Write (channel, 1, y, x) as PNG or BMP: uint8 with 1, 3 or 4 channels, or uint16 with one (PNG only)."""
    channels, z, _, _ = data.shape
    deep = data.dtype == np.uint16 and channels == 1 and path.suffix.lower() == ".png"
    if z != 1 or channels not in {1, 3, 4} or not (data.dtype == np.uint8 or deep):
        raise DatasetError(
            f"{path} cannot hold {channels} channels of {z} slices of {data.dtype}",
            hint="use .nii.gz or .tif for this image",
        )
    picture = data[0, 0] if channels == 1 else np.ascontiguousarray(np.moveaxis(data[:, 0], 0, -1))
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary)


def _load(path: Path, *, palette_indices: bool) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.width * image.height > _LARGEST_PACKING * path.stat().st_size:
                raise ValueError("size")
            if image.mode == "P" and palette_indices:
                return np.asarray(image)
            mode = _colour_mode(image)
            picture = image if mode == image.mode else image.convert(mode)
            return np.asarray(picture)
    except _ERRORS as error:
        raise _unreadable(path, error) from error


def _colour_mode(image: Image.Image) -> str:
    if image.mode in _PLAIN:
        return image.mode
    if image.mode == "1":
        return "1"
    if image.mode in {"P", "PA"}:
        return "RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB"
    return "RGB"


def _volume(picture: np.ndarray) -> Volume:
    if picture.dtype == bool:
        picture = picture.astype(np.uint8)
    if picture.ndim == 2:
        picture = picture[..., np.newaxis]
    picture = picture.astype(picture.dtype.newbyteorder("="), copy=False)
    return Volume(np.ascontiguousarray(np.moveaxis(picture, -1, 0)[:, np.newaxis]), Geometry.picture())


def _is_deep_colour_png(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(26)
    # PNG specification, IHDR: bit depth in byte 24, colour type in byte 25 (2 RGB, 6 RGBA).
    return start[:8] == b"\x89PNG\r\n\x1a\n" and len(start) == 26 and start[24] == 16 and start[25] in {2, 6}


def _unreadable(path: Path, error: Exception) -> DatasetError:
    reason = "it is damaged, or not of the format that its name says"
    if "truncated" in str(error):
        reason = "it is truncated"
    return DatasetError(f"{path} cannot be read: {reason}", hint="restore the file from its source")
