"""Preprocessed cases of one configuration on disk: Blosc2 arrays, JSON properties, memory-mapped locations.

``<id>.image.b2nd``      float32 (channel, z, y, x); or uint8, where that times a factor is the image exactly
``<id>.label.b2nd``      uint8, int8 or int16 (1, z, y, x), internal indices
``<id>.locations.npy``   int32 (N, 3): voxels (z, y, x) of every head, one head after the other
``<id>.json``            shapes, properties, which rows belong to which head, the sizes of the three files, and
                         by what a uint8 image is to be divided
``manifest.json``        the hash of everything that made the store

A case counts only when its JSON, which is written last, agrees with its files. So a killed run leaves nothing that
is taken for whole, and the same run started again only does what is missing.
"""

from __future__ import annotations

import json
import mmap
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from autoseg.errors import DatasetError
from autoseg.records import atomic_path, make_folder, write_text

if TYPE_CHECKING:
    # Loaded by whoever reads or writes arrays: many look only at what is there.
    import blosc2

_VERSION = 1
# Of cases with images of single bytes: programs that do not know these make such cases anew.
_BYTES_VERSION = 2
# Pictures are normalised to their levels divided by this.
_LEVELS = 255
_MANIFEST = "manifest.json"
_PARTS = (".image.b2nd", ".label.b2nd", ".locations.npy")
_BLOCK_BYTES = 32 * 1024
_CHUNK_BYTES = 4 * 1024 * 1024
# Shorter rows take longer to copy out of a block than they save at the border of a patch.
_ROW = 32
# Each open case holds three files open; systems allow some 1000 per process.
_OPEN_CASES = 128
# What reading leaves mapped in a process: to map it again takes a while, but not that of reading much more than this.
_MAPPED_BYTES = 4 * 1024 * 1024


class Sliced(Protocol):
    """What is read where it is sliced, and whose pages can be given back."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def mapped_bytes(self) -> int: ...

    def __getitem__(self, key: Any) -> np.ndarray: ...

    def forget(self) -> None: ...


class StoredArray:
    """An array on disk that is unpacked where it is sliced, as numpy's: ``array[:, 3:9, ...]``.

    Args:
        array: what is stored.
        file: its mapped file.
        divisor: of what is stored, in float32; None where the values themselves are stored.
    """

    def __init__(self, array: blosc2.NDArray, file: mmap.mmap, divisor: int | None = None) -> None:
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.chunks: tuple[int, ...] = tuple(array.chunks)
        self.dtype = np.dtype(array.dtype if divisor is None else np.float32)
        self._array, self._file, self._divisor = array, file, divisor

    def __getitem__(self, key: Any) -> np.ndarray:
        stored = self._box(key) if _is_box(key, len(self.shape)) else self._array[key]
        if self._divisor is None:
            return np.asarray(stored)
        return np.asarray(np.divide(stored, np.float32(self._divisor), dtype=np.float32))

    def _box(self, parts: tuple[slice, ...]) -> np.ndarray:
        # What Blosc2's own slicing comes down to, after many questions that do not arise here.
        limits = [part.indices(length) for part, length in zip(parts, self.shape, strict=True)]
        start, stop = [first for first, _, _ in limits], [max(first, last) for first, last, _ in limits]
        out = np.empty([last - first for first, last in zip(start, stop, strict=True)], dtype=self._array.dtype)
        if out.size:
            self._array.get_slice_numpy(out, (start, stop))
        return out

    @property
    def mapped_bytes(self) -> int:
        """The size of the file: so much of it can be in the memory of this process at most."""
        return len(self._file)

    def forget(self) -> None:
        """Take the pages that were read out of this process; the system keeps them as long as it has room."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._file.madvise(mmap.MADV_DONTNEED)


def _is_box(key: Any, axes: int) -> bool:
    """Whether ``key`` is one slice without step per axis."""
    return (
        isinstance(key, tuple)
        and len(key) == axes
        and all(isinstance(part, slice) and part.step is None for part in key)
    )


@dataclass(frozen=True)
class StoredCase:
    """A case whose arrays are read piecewise: ``case.image[:, 3:9, ...]`` unpacks only what it needs."""

    id: str
    image: StoredArray
    label: Sliced
    properties: dict[str, Any]
    _locations: Path
    _rows: Mapping[str, Sequence[int]]

    def locations(self, head: int) -> np.ndarray:
        """Memory-mapped int32 (N, 3) voxels of a head; N is 0 for a head without voxels."""
        start, stop = self._rows.get(str(head), (0, 0))
        if start == stop:
            return np.empty((0, 3), dtype=np.int32)
        return self._all_locations[start:stop]

    @cached_property
    def _all_locations(self) -> np.ndarray:
        # A plain view: slicing numpy's memmap class costs ten times as much.
        return np.load(self._locations, mmap_mode="r", allow_pickle=False).view(np.ndarray)

    @property
    def mapped_bytes(self) -> int:
        """At most so much of the memory of this process holds pages of the files of image and label."""
        return self.image.mapped_bytes + self.label.mapped_bytes

    def forget(self) -> None:
        """Take what was read of image and label out of the memory of this process; they stay open."""
        self.image.forget()
        self.label.forget()

    @property
    def heads(self) -> tuple[int, ...]:
        """The heads that have voxels in this case."""
        return tuple(int(head) for head, (start, stop) in self._rows.items() if stop > start)


class CaseStore:
    """A folder of preprocessed cases. It keeps recently used cases open, and travels to workers as its path."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._open: OrderedDict[str, StoredCase] = OrderedDict()
        self._read: dict[str, StoredCase] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return CaseStore, (self.root,)

    def begin(self, content_hash: str) -> None:
        """Start or continue: a store that another hash made is emptied, and half-written files are removed."""
        self._open.clear()
        make_folder(self.root)
        manifest = self.root / _MANIFEST
        if self.content_hash() != content_hash:
            # The manifest goes first: killed between here and the end, this is done again.
            manifest.unlink(missing_ok=True)
            for pattern in (*(f"*{part}" for part in _PARTS), "*.json"):
                _remove(self.root, pattern)
            write_text(manifest, json.dumps({"version": _VERSION, "hash": content_hash}) + "\n")
        _remove(self.root, ".*.partial*")

    def content_hash(self) -> str | None:
        """The hash that the store was begun with; None if it was not, or by another version."""
        manifest = _read_json(self.root / _MANIFEST)
        return manifest.get("hash") if manifest.get("version") == _VERSION else None

    def write_case(
        self,
        id: str,  # noqa: A002 - the field's word
        image: np.ndarray,
        label: np.ndarray,
        properties: Mapping[str, Any],
        locations: Mapping[int, np.ndarray],
        patch_size: Sequence[int],
    ) -> None:
        """Write one case; several processes may write different cases of one store.

        Args:
            image: (channel, z, y, x), comes back as float32.
            label: (z, y, x) or (1, z, y, x) internal indices, stored as uint8, int8 or int16.
            properties: JSON values.
            locations: head -> (N, 3) voxels (z, y, x).
            patch_size: what training reads at once; two entries for slices along axis 0.

        Raises:
            ResourceError: the disk is full.
        """
        self._open.pop(id, None)
        self._path(id, ".json").unlink(missing_ok=True)
        label = label if label.ndim == 4 else label[np.newaxis]
        low, high = label.min(initial=0), label.max(initial=0)
        kinds = (np.uint8, np.int8, np.int16)
        kind = next(kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
        patch = (1,) * (3 - len(patch_size)) + tuple(patch_size)
        image = image.astype(np.float32, copy=False)
        levels = _levels(image)
        write_array(self._path(id, _PARTS[0]), image if levels is None else levels, patch)
        write_array(self._path(id, _PARTS[1]), label.astype(kind, copy=False), patch)
        rows: dict[str, list[int]] = {}
        start = 0
        for head, voxels in locations.items():
            rows[str(head)] = [start, start + len(voxels)]
            start += len(voxels)
        parts = [np.asarray(voxels, dtype=np.int32).reshape(-1, 3) for voxels in locations.values()]
        with atomic_path(self._path(id, _PARTS[2])) as temporary:
            np.save(temporary, np.concatenate(parts) if parts else np.empty((0, 3), np.int32), allow_pickle=False)
        description = {
            "version": _VERSION if levels is None else _BYTES_VERSION,
            "id": id,
            "shape": list(image.shape),
            "divisor": None if levels is None else _LEVELS,
            "properties": properties,
            "locations": rows,
            "bytes": {part: self._path(id, part).stat().st_size for part in _PARTS},
        }
        write_text(self._path(id, ".json"), json.dumps(description, indent=1, allow_nan=False) + "\n")

    def is_complete(self, id: str) -> bool:  # noqa: A002
        """Whether the case is there and its files have the sizes that its JSON tells."""
        return self._agrees(id, _read_json(self._path(id, ".json")))

    def ids(self) -> tuple[str, ...]:
        """The complete cases, sorted."""
        found = (path.name.removesuffix(".json") for path in self.root.glob("*.json") if path.name != _MANIFEST)
        return tuple(sorted(id_ for id_ in found if self.is_complete(id_)))

    def open(self, id: str) -> StoredCase:  # noqa: A002
        """Open a case lazily, or give the one that is open already.

        Raises:
            DatasetError: the case is missing or incomplete.
        """
        if id in self._open:
            self._open.move_to_end(id)
            return self._open[id]
        description = _read_json(self._path(id, ".json"))
        if not self._agrees(id, description):
            raise DatasetError(
                f"case {id} is missing or incomplete in {self.root}", hint="run autoseg_plan_and_preprocess again"
            )
        case = StoredCase(
            id=id,
            image=open_array(self._path(id, _PARTS[0]), divisor=description.get("divisor")),
            label=open_array(self._path(id, _PARTS[1])),
            properties=description["properties"],
            _locations=self._path(id, _PARTS[2]),
            _rows=description["locations"],
        )
        self._open[id] = case
        while len(self._open) > _OPEN_CASES:
            self._open.popitem(last=False)
        return case

    def was_read(self, case: StoredCase) -> None:
        """Note that a case was read; when those noted may fill too much of the memory, it is given back."""
        self._read[case.id] = case
        if sum(one.mapped_bytes for one in self._read.values()) > _MAPPED_BYTES:
            for one in self._read.values():
                one.forget()
            self._read = {}

    def _path(self, id_: str, ending: str) -> Path:
        return self.root / f"{id_}{ending}"

    def _agrees(self, id_: str, description: Mapping[str, Any]) -> bool:
        sizes = description.get("bytes")
        if description.get("version") not in (_VERSION, _BYTES_VERSION) or not isinstance(sizes, dict):
            return False
        try:
            return all(self._path(id_, part).stat().st_size == sizes.get(part) for part in _PARTS)
        except OSError:
            return False


def chunk_shapes(
    shape: Sequence[int], patch_size: Sequence[int], itemsize: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunks and blocks for reading patches at random places; shapes are (channel, z, y, x), patches (z, y, x).

    A block is unpacked as a whole and should fit the cache of a core; a chunk is found and read as a whole. Both
    keep channels apart and are as like the patch as they can be. A block starts as the patch and is halved along
    the axis on which it is largest, for its part of the patch, until it has 32 KiB; a chunk is a block that grows
    back by doubling, to one patch at most and to 4 MiB. The last axis is not halved below 32 voxels.
    """
    limit = [min(length, size) for length, size in zip(shape[1:], patch_size, strict=True)]
    block = list(limit)
    while int(np.prod(block)) * itemsize > _BLOCK_BYTES:
        axis = max(range(3), key=lambda axis: (axis < 2 or block[2] >= 2 * _ROW, block[axis], -axis))
        block[axis] = -(-block[axis] // 2)
    chunk = list(block)
    while True:
        growing = [axis for axis in range(3) if chunk[axis] < limit[axis]]
        fitting = [axis for axis in growing if 2 * int(np.prod(chunk)) * itemsize <= _CHUNK_BYTES]
        if not fitting:
            return (1, *chunk), (1, *block)
        axis = min(fitting, key=lambda axis: chunk[axis] / limit[axis])
        chunk[axis] = min(2 * chunk[axis], shape[1 + axis])


def write_array(path: Path, array: np.ndarray, patch: Sequence[int]) -> None:
    """Write an array (channel, z, y, x) in one piece, chunked for reading patches (z, y, x).

    Raises:
        ResourceError: the disk is full.
    """
    import blosc2

    chunks, blocks = chunk_shapes(array.shape, patch, array.dtype.itemsize)
    # Single bytes have nothing to shuffle, and to pass them through takes longer than to unpack them.
    shuffle = blosc2.Filter.SHUFFLE if array.dtype.itemsize > 1 else blosc2.Filter.NOFILTER
    compression = {"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": [shuffle], "nthreads": 1}
    with atomic_path(path) as temporary:
        blosc2.asarray(
            np.ascontiguousarray(array),
            urlpath=str(temporary),
            mode="w",
            chunks=chunks,
            blocks=blocks,
            cparams=compression,
        )


def open_array(path: Path, *, divisor: int | None = None) -> StoredArray:
    """An array that is unpacked where it is sliced; see ``StoredArray``."""
    import blosc2

    with path.open("rb") as stream:
        # Mapped files are shared among the workers of a data loader, and what is mapped here can be given back.
        file = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return StoredArray(blosc2.ndarray_from_cframe(file, copy=False), file, divisor)


def _levels(image: np.ndarray) -> np.ndarray | None:
    """The whole numbers 0 to 255 (uint8) that are exactly ``image`` when they are divided by 255; None if none are."""
    # Most images are told by a few of their voxels.
    for part in (image[..., :: max(1, image.shape[-1] // 4)], image):
        if not 0 <= part.min(initial=0) <= part.max(initial=0) <= 1:
            return None
        levels = np.rint(part * np.float32(_LEVELS)).astype(np.uint8)
        if not np.array_equal(np.divide(levels, np.float32(_LEVELS), dtype=np.float32), part):
            return None
    return levels


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is none or it cannot be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink(missing_ok=True)
