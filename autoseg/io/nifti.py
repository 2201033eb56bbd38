"""NIfTI-1 files, without ITK but for the meaning of a header's geometry.

ITK fills the missing end of a truncated file with whatever is in memory, does not look at the checksum of a
compressed one, and five-dimensional files can take the process down. It writes the orientation as a quaternion too,
and reads that back in preference, which turns axes that are not quite square by some thousandths of a mm.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from autoseg.errors import DatasetError
from autoseg.io import itk
from autoseg.io.volume import Geometry, Volume
from autoseg.records import atomic_path

_HEADER_SIZE = 348
_HEADER_SIZE_2 = 540
_ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")
_DATA_OFFSET = 352
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_SHEAR_LIMIT_MM = 0.1
# NIfTI-1 standard (nifti1.h), datatype codes; colours are three or four bytes per voxel.
_DTYPES = {
    2: ("u1", 1),
    4: ("i2", 1),
    8: ("i4", 1),
    16: ("f4", 1),
    64: ("f8", 1),
    128: ("u1", 3),
    256: ("i1", 1),
    512: ("u2", 1),
    768: ("u4", 1),
    1024: ("i8", 1),
    1280: ("u8", 1),
    2304: ("u1", 4),
}


@dataclass(frozen=True)
class Header:
    """``shape`` is (x, y, z, t) with ones where an axis is missing; ``dtype`` has the byte order of the file."""

    shape: tuple[int, int, int, int]
    dtype: np.dtype
    components: int
    offset: int
    slope: float
    intercept: float
    sform: np.ndarray | None

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.components * self.dtype.itemsize

    @property
    def channels(self) -> int:
        return self.shape[3] * self.components


def read_header(path: Path) -> Header:
    """Read and judge the header.

    Raises:
        DatasetError: not NIfTI-1, more than four dimensions, or a voxel type without a use for segmentation.
    """
    with _opened(path) as stream:
        raw = stream.read(_HEADER_SIZE)
    return _parse(path, raw)


def read(path: Path) -> Volume:
    """Read a 2D, 3D or 4D file; the fourth axis and colours become channels.

    Integers with a scale factor become float32 (float64 where float32 cannot hold the stored integers).

    Raises:
        DatasetError: see ``read_header``; also a truncated or damaged file, or sheared axes.
    """
    header = read_header(path)
    raw = _read_voxels(path, header)
    x, y, z, t = header.shape
    # The stored order is x fastest, so the C order of numpy is (t, z, y, x, colour).
    data = raw.reshape(t, z, y, x, header.components)
    data = np.moveaxis(data, -1, 1).reshape(t * header.components, z, y, x)
    return Volume(_scaled(data, header), read_geometry(path, header))


def read_geometry(path: Path, header: Header) -> Geometry:
    """The geometry as ITK understands it; axes that are off square by less than 0.1 mm anywhere are straightened."""
    try:
        return itk.read_geometry(path)
    except DatasetError as error:
        if "orthonormal" not in error.message or header.sform is None:
            raise
        return _straightened(path, header)


def write(path: Path, data: np.ndarray, geometry: Geometry) -> None:
    """Write (channel, z, y, x) atomically; several channels become the fourth axis. The bytes are reproducible.

    The geometry is in the sform alone, which all programs read, as nibabel does it.
    """
    channels, z, y, x = data.shape
    flat = geometry.ndim == 2 and channels == 1
    ndim = 2 if flat else 3 if channels == 1 else 4
    codes = {kind: code for code, (kind, components) in _DTYPES.items() if components == 1}
    header = bytearray(_DATA_OFFSET)
    struct.pack_into("<i", header, 0, _HEADER_SIZE)
    struct.pack_into("<8h", header, 40, ndim, x, y, z, channels, 1, 1, 1)
    struct.pack_into("<2h", header, 70, codes[data.dtype.str[1:]], 8 * data.dtype.itemsize)
    struct.pack_into("<8f", header, 76, 1.0, *geometry.spacing[::-1], 1.0, 0.0, 0.0, 0.0)
    struct.pack_into("<3f", header, 108, _DATA_OFFSET, 1.0, 0.0)
    struct.pack_into("<B", header, 123, 2)  # millimetres
    struct.pack_into("<2h", header, 252, 0, 1)  # no qform; sform in scanner coordinates
    struct.pack_into("<12f", header, 280, *(_LPS_TO_RAS @ geometry.affine()[:3]).ravel())
    header[344:348] = b"n+1\0"
    voxels = np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("<"))
    with atomic_path(path) as temporary, temporary.open("wb") as plain:
        if not path.name.lower().endswith(".gz"):
            plain.write(header)
            plain.write(voxels.data)
            return
        # No name and no time inside, so that equal images are equal files.
        with gzip.GzipFile(filename="", fileobj=plain, mode="wb", compresslevel=4, mtime=0) as stream:
            stream.write(header)
            stream.write(voxels.data)


def _parse(path: Path, raw: bytes) -> Header:
    if len(raw) < _HEADER_SIZE:
        raise DatasetError(f"{path} is truncated: its header is incomplete", hint="restore the file")
    order: Literal["<", ">"] | None = next(
        (sign for sign in _ORDERS if struct.unpack(f"{sign}i", raw[:4])[0] in {348, 540}), None
    )
    if order and struct.unpack(f"{order}i", raw[:4])[0] == 540:
        raise DatasetError(f"{path} is a NIfTI-2 file, which is not supported", hint="convert it to NIfTI-1")
    if order is None or raw[344:347] not in {b"n+1", b"ni1"}:
        raise DatasetError(f"{path} is not a NIfTI file, whatever its name says", hint="restore or remove the file")
    if raw[344:347] == b"ni1":
        raise DatasetError(f"{path} is half of a NIfTI .hdr/.img pair", hint="convert it to a single .nii.gz file")
    dim = struct.unpack(f"{order}8h", raw[40:56])
    code = struct.unpack(f"{order}h", raw[70:72])[0]
    if not 1 <= dim[0] <= 7 or any(length < 1 for length in dim[1 : dim[0] + 1]):
        raise DatasetError(f"{path} has a damaged header: dimensions {dim}", hint="restore the file")
    sizes = [*dim[1 : dim[0] + 1], *[1] * (7 - dim[0])]
    if dim[0] < 2 or any(length > 1 for length in sizes[4:]):
        shown = " x ".join(str(length) for length in dim[1 : dim[0] + 1])
        raise DatasetError(
            f"{path} has {dim[0]} dimensions ({shown}); 2 to 4 can be read", hint="save one 3D file per channel"
        )
    if code not in _DTYPES:
        raise DatasetError(
            f"{path} has voxels of NIfTI type {code} (complex, bits or long doubles), which no network takes",
            hint="convert it to an integer or float image",
        )
    kind, components = _DTYPES[code]
    offset, slope, intercept = struct.unpack(f"{order}3f", raw[108:120])
    has_sform = struct.unpack(f"{order}h", raw[254:256])[0] > 0
    rows = np.frombuffer(raw, dtype=f"{order}f4", count=12, offset=280).reshape(3, 4).astype(np.float64)
    if not 0 <= offset < 2**40:
        raise DatasetError(f"{path} has a damaged header: voxels begin at byte {offset}", hint="restore the file")
    return Header(
        shape=(sizes[0], sizes[1], sizes[2], sizes[3]),
        dtype=np.dtype(kind).newbyteorder(order),
        components=components,
        offset=max(int(offset), _HEADER_SIZE),
        slope=slope,
        intercept=intercept,
        sform=rows if has_sform else None,
    )


def _read_voxels(path: Path, header: Header) -> np.ndarray:
    # Deflate packs at most 1032 to 1; a damaged header must not make us ask for all memory there is.
    if header.num_bytes > 1100 * path.stat().st_size:
        raise _truncated(path)
    buffer = bytearray(header.num_bytes)
    with _opened(path) as stream:
        stream.seek(header.offset)
        if _fill(stream, memoryview(buffer)) < header.num_bytes:
            raise _truncated(path)
        # The checksum of a compressed file is only compared at its end.
        while stream.read(1 << 20):
            continue
    array = np.frombuffer(buffer, dtype=header.dtype)
    return array.astype(header.dtype.newbyteorder("="), copy=False)


def _fill(stream: BinaryIO, view: memoryview) -> int:
    done = 0
    while done < len(view):
        count = stream.readinto(view[done : done + (1 << 24)])  # type: ignore[attr-defined]
        if not count:
            break
        done += count
    return done


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, decompressed if it is compressed (by its first bytes, not by its name)."""
    try:
        with path.open("rb") as plain:
            compressed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            if not compressed:
                yield plain
                return
            with gzip.GzipFile(fileobj=plain) as stream:
                yield stream  # type: ignore[misc]
    except EOFError as error:
        raise _truncated(path) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DatasetError(f"{path} is damaged: {error}", hint="restore the file from its source") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error


def _truncated(path: Path) -> DatasetError:
    return DatasetError(f"{path} is truncated: its end is missing", hint="restore the file from its source")


def _scaled(data: np.ndarray, header: Header) -> np.ndarray:
    slope = header.slope if np.isfinite(header.slope) and header.slope != 0 else 1.0
    intercept = header.intercept if np.isfinite(header.intercept) and header.slope != 0 else 0.0
    if (slope == 1.0 and intercept == 0.0) or header.components > 1:
        return data
    kind = np.float32 if data.dtype.itemsize <= 2 or data.dtype == np.float32 else np.float64
    scaled = np.multiply(data, slope, dtype=kind)
    return np.add(scaled, intercept, out=scaled)


def _straightened(path: Path, header: Header) -> Geometry:
    """The square grid nearest to the sheared one of the sform (polar decomposition of its axes)."""
    assert header.sform is not None
    matrix = _LPS_TO_RAS @ header.sform
    spacing = np.linalg.norm(matrix[:, :3], axis=0)
    if not spacing.all():
        raise DatasetError(f"{path} has an axis without length in its header", hint="correct its affine matrix")
    u, _, vt = np.linalg.svd(matrix[:, :3] / spacing)
    square = (u @ vt) * spacing
    size = np.asarray(header.shape[:3])
    corners = np.stack(np.meshgrid(*[(0, length - 1) for length in size], indexing="ij")).reshape(3, -1)
    error = np.linalg.norm((square - matrix[:, :3]) @ corners, axis=0).max()
    if error > _SHEAR_LIMIT_MM:
        raise DatasetError(
            f"{path} has sheared axes: straightening them would move voxels by {error:.2g} mm",
            hint="resample it to a rectangular grid",
        )
    x, y, z = (float(step) for step in spacing)
    return Geometry((z, y, x), tuple(map(float, matrix[:, 3])), tuple(map(float, (u @ vt).ravel())), 3)
