"""Label maps of one kind for many cases, compressed, each readable piecewise: one Blosc2 array per case.

A map appears under its name when it is complete, so a killed run leaves nothing that is taken for whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from autoseg.io.store import StoredArray, open_array, write_array
from autoseg.records import make_folder, remove_partial, write_text

_MANIFEST = "manifest.json"
_ENDING = ".labels.b2nd"
_VERSION = 1


class LabelMaps:
    """A folder of label maps (1, z, y, x), one byte per voxel up to 256 labels."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def begin(self, content_hash: str) -> None:
        """Start or go on: maps that another hash made are removed, half-written ones too."""
        make_folder(self.root)
        if not self._is_of(content_hash):
            # The manifest goes first: killed between here and the end, this is done again.
            (self.root / _MANIFEST).unlink(missing_ok=True)
            for path in self.root.glob(f"*{_ENDING}"):
                path.unlink()
            write_text(self.root / _MANIFEST, _manifest(content_hash))
        remove_partial(self.root)

    def missing(self, cases: Iterable[str], content_hash: str) -> tuple[str, ...]:
        """The cases, in order, that have no map of this hash yet."""
        begun = self._is_of(content_hash)
        return tuple(case for case in sorted(cases) if not begun or not self.path(case).exists())

    def _is_of(self, content_hash: str) -> bool:
        try:
            return (self.root / _MANIFEST).read_text(encoding="utf-8") == _manifest(content_hash)
        except OSError:
            return False

    def path(self, case: str) -> Path:
        return self.root / f"{case}{_ENDING}"

    def write(self, case: str, label: np.ndarray, patch_size: Sequence[int]) -> None:
        """Store a map (z, y, x) of integers from 0; ``patch_size`` is what training reads at once.

        Raises:
            ResourceError: the disk is full.
        """
        kind = np.uint8 if label.max(initial=0) < 256 else np.uint16
        write_array(self.path(case), label[np.newaxis].astype(kind, copy=False), patch_size)


def _manifest(content_hash: str) -> str:
    return json.dumps({"version": _VERSION, "hash": content_hash}) + "\n"


def open_label_map(path: Path | str) -> StoredArray:
    """A stored map (1, z, y, x), read where it is sliced."""
    return open_array(Path(path))
