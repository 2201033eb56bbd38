"""Class probabilities as prediction writes them: ``probabilities`` (heads, z, y, x) in an .npz, read head by head."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from autoseg.errors import DatasetError

MEMBER = "probabilities"
_HINT = "write it again: autoseg_predict --save-probabilities"
# What zipfile, its decompressors and numpy's header raise, depending on which bytes are damaged.
_DAMAGE = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError),
)


def probabilities_shape(path: Path) -> tuple[int, int, int, int]:
    """(heads, z, y, x) from the header; errors as ``probability_heads``."""
    with _reading(path) as stream:
        return _header(path, stream)[0]


def probability_heads(path: Path) -> Iterator[np.ndarray]:
    """The volumes (z, y, x) of all heads in order, one at a time in memory; nothing in the file is run.

    Raises:
        DatasetError: not such a file, or damaged.
    """
    with _reading(path) as stream:
        (heads, *shape), kind = _header(path, stream)
        size = math.prod(shape) * kind.itemsize
        for _ in range(heads):
            content = stream.read(size)
            if len(content) != size:
                raise DatasetError(f"{path} is truncated", hint=_HINT)
            yield np.frombuffer(content, dtype=kind).reshape(shape)


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """The array's bytes; whatever a damaged archive raises is one sentence."""
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{MEMBER}.npy" not in archive.namelist():
                raise DatasetError(f"{path} holds no array {MEMBER!r}", hint=_HINT)
            with archive.open(f"{MEMBER}.npy") as stream:
                yield stream
    except _DAMAGE as error:
        raise DatasetError(f"{path} cannot be read: {error}", hint=_HINT) from error


def _header(path: Path, stream: IO[bytes]) -> tuple[tuple[int, int, int, int], np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, kind = read(stream)
    if len(shape) != 4 or fortran or kind.kind != "f" or min(shape) < 1:
        raise DatasetError(f"{path} holds {kind} of shape {shape}, not (heads, z, y, x) of fractions", hint=_HINT)
    return shape, kind
