"""Damage that ITK does not notice in MetaImage and GIPL files: it would hand over whatever is in memory."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

from autoseg.errors import DatasetError

_GIPL_HEADER = 256
# GIPL image types: bytes per voxel.
_GIPL_BYTES = {7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}
_STEP = 1 << 20


def check(path: Path, ending: str) -> None:
    """Look for damage in a file whose format (by its lower-case ending) ITK reads carelessly.

    Raises:
        DatasetError: the end of the file or the file with its voxels is missing, or a compressed stream is damaged.
    """
    if ending in {".mha", ".mhd"}:
        _check_metaimage(path)
    elif ending in {".gipl", ".gipl.gz"}:
        _check_gipl(path)


def _check_metaimage(path: Path) -> None:
    """Look for the voxels, and unpack them once if they are compressed."""
    fields, end = _metaimage_fields(path)
    where = fields.get("elementdatafile", "")
    if where.upper().startswith("LIST") or "%" in where:
        return
    local = where.lower() == "local"
    source = path if local else path.parent / where
    if not source.is_file():
        raise DatasetError(
            f"{path} has no voxels: the file {where} beside it does not exist", hint="restore that file as well"
        )
    if fields.get("compresseddata", "").lower() != "true":
        return
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        with source.open("rb") as stream:
            stream.seek(end if local else 0)
            while not unpacker.eof and (chunk := stream.read(_STEP)):
                while chunk:
                    unpacker.decompress(chunk, _STEP)
                    chunk = unpacker.unconsumed_tail
    except zlib.error as error:
        raise _damaged(source, str(error)) from error
    if not unpacker.eof:
        raise _damaged(source, "its end is missing")


def _check_gipl(path: Path) -> None:
    """Compare the length of the file with what its header promises."""
    try:
        with path.open("rb") as plain:
            compressed = plain.read(2) == b"\x1f\x8b"
        if compressed:
            with gzip.open(path, "rb") as stream:
                header = stream.read(_GIPL_HEADER)
                length = len(header)
                while chunk := stream.read(_STEP):
                    length += len(chunk)
        else:
            length = path.stat().st_size
            with path.open("rb") as plain:
                header = plain.read(_GIPL_HEADER)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    if len(header) < _GIPL_HEADER:
        raise _damaged(path, "its header is incomplete")
    *size, kind = struct.unpack(">5H", header[:10])
    voxels = math.prod(max(count, 1) for count in size)
    if length < _GIPL_HEADER + voxels * _GIPL_BYTES.get(kind, 0):
        raise _damaged(path, "its end is missing")


def _metaimage_fields(path: Path) -> tuple[dict[str, str], int]:
    """The header's fields with lower-case names, and the byte at which it ends."""
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        while line := stream.readline(65536):
            name, _, value = line.decode("latin-1").partition("=")
            fields[name.strip().lower()] = value.strip()
            if name.strip().lower() == "elementdatafile":
                break
        return fields, stream.tell()


def _damaged(path: Path, reason: str) -> DatasetError:
    return DatasetError(f"{path} is truncated or damaged: {reason}", hint="restore the file from its source")
