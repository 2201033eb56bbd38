"""NIfTI-1 files, without ITK but for the meaning of an unusual header's geometry.

ITK fills the missing end of a truncated file with whatever is in memory, does not look at the checksum of a
compressed one, and five-dimensional files can take the process down. It writes the orientation as a quaternion too,
and reads that back in preference, which turns axes that are not quite square by some thousandths of a mm.
"""

from __future__ import annotations

import gzip
import itertools
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from autoseg.errors import DatasetError
from autoseg.io.volume import Geometry, Volume
from autoseg.records import atomic_path

_HEADER_SIZE = 348
_HEADER_SIZE_2 = 540
_ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")
_DATA_OFFSET = 352
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_SHEAR_LIMIT_MM = 0.1
# How far two matrices of one header may lie apart in mm, and cosines from square, to be a matter of rounding alone.
_SAME_MM = 1e-5
_SQUARE = 1e-5
_BLOCK = 1 << 20
# Decompressed first: whoever wants the header alone waits for no more.
_FIRST_BLOCK = 1 << 12
# zlib's window bits for gzip with its header and checksum.
_GZIP = 31
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
    """``shape`` is (x, y, z, t) with ones where an axis is missing; ``dtype`` has the byte order of the file.

    ``sform`` and ``qform`` (3, 4) lead from (x, y, z, 1) indices to RAS positions, None where the file has none.
    """

    shape: tuple[int, int, int, int]
    dtype: np.dtype
    components: int
    offset: int
    slope: float
    intercept: float
    sform: np.ndarray | None
    qform: np.ndarray | None
    spacing: tuple[float, float, float]
    millimetres: bool

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
    with _opened(path) as blocks:
        return _parse(path, _beginning(blocks))


def read(path: Path) -> Volume:
    """Read a 2D, 3D or 4D file; the fourth axis and colours become channels.

    Integers with a scale factor become float32 (float64 where float32 cannot hold the stored integers).

    Raises:
        DatasetError: see ``read_header``; also a truncated or damaged file, or sheared axes.
    """
    with _opened(path) as blocks:
        start = _beginning(blocks)
        header = _parse(path, start)
        raw = _voxels(path, header, start, blocks)
    x, y, z, t = header.shape
    # The stored order is x fastest, so the C order of numpy is (t, z, y, x, colour).
    data = raw.reshape(t, z, y, x, header.components)
    data = np.moveaxis(data, -1, 1).reshape(t * header.components, z, y, x)
    return Volume(_scaled(data, header), read_geometry(path, header))


def read_geometry(path: Path, header: Header) -> Geometry:
    """The geometry as ITK understands it; axes that are off square by less than 0.1 mm anywhere are straightened."""
    plain = _plain_geometry(header)
    if plain is not None:
        return plain
    # Loaded for unusual headers only: it takes more memory than all else that reads an image.
    from autoseg.io import itk

    try:
        return itk.read_geometry(path)
    except DatasetError as error:
        if "orthonormal" not in error.message or header.sform is None:
            raise
        return _straightened(path, header)


def _plain_geometry(header: Header) -> Geometry | None:
    """The geometry of a header that leaves no choice: a volume in mm whose matrices agree and are square."""
    matrices = [matrix for matrix in (header.sform, header.qform) if matrix is not None]
    spacing = np.asarray(header.spacing)
    if not matrices or header.shape[2] == 1 or not header.millimetres or not (spacing > 0).all():
        return None
    cosines = matrices[0][:, :3] / spacing
    apart = np.abs(matrices[0] - matrices[-1]).max()
    uneven = np.abs(cosines.T @ cosines - np.eye(3)).max()
    if not (apart <= _SAME_MM and uneven <= _SQUARE):
        return None
    # Columns of length one, as ITK makes them of whichever matrix it takes.
    direction = _LPS_TO_RAS @ (cosines / np.linalg.norm(cosines, axis=0))
    origin = _LPS_TO_RAS @ matrices[0][:, 3]
    x, y, z = header.spacing
    return Geometry((z, y, x), tuple(map(float, origin)), tuple(map(float, direction.ravel())), 3)


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
    qform_code, sform_code = struct.unpack(f"{order}2h", raw[252:256])
    rows = np.frombuffer(raw, dtype=f"{order}f4", count=12, offset=280).reshape(3, 4).astype(np.float64)
    steps = struct.unpack(f"{order}4f", raw[76:92])
    if not 0 <= offset < 2**40:
        raise DatasetError(f"{path} has a damaged header: voxels begin at byte {offset}", hint="restore the file")
    return Header(
        shape=(sizes[0], sizes[1], sizes[2], sizes[3]),
        dtype=np.dtype(kind).newbyteorder(order),
        components=components,
        offset=max(int(offset), _HEADER_SIZE),
        slope=slope,
        intercept=intercept,
        sform=rows if sform_code > 0 else None,
        qform=_qform(struct.unpack(f"{order}6f", raw[256:280]), steps) if qform_code > 0 else None,
        spacing=(steps[1], steps[2], steps[3]),
        # Without a unit, millimetres are meant.
        millimetres=raw[123] & 0x07 in {0, 2},
    )


def _qform(quaternion: tuple[float, ...], steps: tuple[float, ...]) -> np.ndarray:
    """The (3, 4) matrix of NIfTI-1's second method: rotation by a unit quaternion, then an offset."""
    b, c, d, *offset = quaternion
    a = math.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d)))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    handed = -1.0 if steps[0] < 0 else 1.0
    scaled = rotation * np.array([steps[1], steps[2], steps[3] * handed])
    return np.column_stack([scaled, offset])


def _beginning(blocks: Iterator[bytes]) -> bytes:
    """At least the header, if there is as much; the following blocks go on behind it."""
    start = b""
    for block in blocks:
        start += block
        if len(start) >= _DATA_OFFSET:
            break
    return start


def _voxels(path: Path, header: Header, start: bytes, blocks: Iterator[bytes]) -> np.ndarray:
    # Deflate packs at most 1032 to 1; a damaged header must not make us ask for all memory there is.
    num_bytes = header.num_bytes
    if num_bytes > 1100 * path.stat().st_size:
        raise _truncated(path)
    buffer = np.empty(num_bytes, dtype=np.uint8)
    position = -header.offset
    # To the very end, where the checksum of a compressed file is.
    for block in itertools.chain([start], blocks):
        wanted = memoryview(block)[max(0, -position) : max(0, num_bytes - position)]
        place = max(0, position)
        buffer[place : place + len(wanted)] = np.frombuffer(wanted, np.uint8)
        position += len(block)
    if position < num_bytes:
        raise _truncated(path)
    return buffer.view(header.dtype).astype(header.dtype.newbyteorder("="), copy=False)


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[bytes]]:
    """The file in blocks, decompressed if it is compressed (by its first bytes, not by its name)."""
    try:
        with path.open("rb") as plain:
            compressed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            yield _unpacked(plain) if compressed else iter(partial(plain.read, _BLOCK), b"")
    except EOFError as error:
        raise _truncated(path) from error
    except zlib.error as error:
        raise DatasetError(f"{path} is damaged: {error}", hint="restore the file from its source") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}") from error


def _unpacked(plain: BinaryIO) -> Iterator[bytes]:
    """The content of a gzip file with one member or several, whose checksums zlib compares.

    Raises:
        EOFError: the end is missing.
        zlib.error: anything else is wrong.
    """
    unpacker = zlib.decompressobj(wbits=_GZIP)
    size = _FIRST_BLOCK
    while packed := plain.read(_BLOCK // 4):
        while packed:
            if unpacker.eof:
                # Zeros may fill up the space behind a member.
                packed = packed.lstrip(b"\0")
                unpacker = zlib.decompressobj(wbits=_GZIP) if packed else unpacker
                continue
            yield unpacker.decompress(packed, size)
            size = _BLOCK
            packed = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
    if not unpacker.eof:
        raise EOFError


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
