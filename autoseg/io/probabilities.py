"""Class probabilities as prediction writes them: ``probabilities`` (heads, z, y, x) in an .npz, read head by head."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from autoseg.errors import DatasetError

MEMBER = "probabilities"
_HINT = "write it again: autoseg_predict --save-probabilities"


def probabilities_shape(path: Path) -> tuple[int, int, int, int]:
    """(heads, z, y, x) from the header; errors as ``probability_heads``."""
    with _opened(path) as archive, archive.open(f"{MEMBER}.npy") as stream:
        return _header(path, stream)[0]


def probability_heads(path: Path) -> Iterator[np.ndarray]:
    """The volumes (z, y, x) of all heads in order, one at a time in memory; nothing in the file is run.

    Raises:
        DatasetError: not such a file, or truncated.
    """
    with _opened(path) as archive, archive.open(f"{MEMBER}.npy") as stream:
        (heads, *shape), kind = _header(path, stream)
        size = int(np.prod(shape)) * kind.itemsize
        for _ in range(heads):
            try:
                content = stream.read(size)
            except (OSError, EOFError, zipfile.BadZipFile, ValueError) as error:
                raise DatasetError(f"{path} cannot be read: {error}", hint=_HINT) from error
            if len(content) != size:
                raise DatasetError(f"{path} is truncated", hint=_HINT)
            yield np.frombuffer(content, dtype=kind).reshape(shape)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} cannot be read: {error}", hint=_HINT) from error
    if f"{MEMBER}.npy" not in archive.namelist():
        archive.close()
        raise DatasetError(f"{path} holds no array {MEMBER!r}", hint=_HINT)
    return archive


def _header(path: Path, stream: IO[bytes]) -> tuple[tuple[int, int, int, int], np.dtype]:
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, kind = read(stream)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} cannot be read: {error}", hint=_HINT) from error
    if len(shape) != 4 or fortran or kind.kind != "f":
        raise DatasetError(f"{path} holds {kind} of shape {shape}, not (heads, z, y, x) of fractions", hint=_HINT)
    return shape, kind
