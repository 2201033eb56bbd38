"""Hidden folders in which something is made whole and then renamed to its place.

Whoever works in one holds a lock on it: what has no lock is of a process that was killed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from autoseg import records

Settle = Callable[[Path], bool]
"""Is given a folder that nobody works in, may move something out of it, and says whether the rest can go."""


def _nothing_to_keep(folder: Path) -> bool:
    return True


@contextmanager
def staging(parent: Path, kind: str, settle: Settle = _nothing_to_keep) -> Iterator[Path]:
    """A new hidden folder in ``parent``, gone in the end; what killed processes left of this kind goes first.

    Raises:
        ResourceError, SettingError: ``parent`` cannot be made or written to.
    """
    sweep(parent, kind, settle)
    records.make_folder(parent)
    folder, lock = _fresh(parent, kind)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def sweep(parent: Path, kind: str, settle: Settle = _nothing_to_keep) -> None:
    """Remove the folders of ``staging`` in ``parent`` that nobody works in, after ``settle``."""
    for folder in sorted(parent.glob(f".{kind}-*")):
        lock = _lock(folder)
        if lock is None:
            continue
        try:
            if settle(folder):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _fresh(parent: Path, kind: str) -> tuple[Path, int | None]:
    while True:
        with records.writing(parent):
            folder = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=parent))
        lock = _lock(folder)
        # Between the two lines above, another process may have taken it for one that nobody works in.
        if folder.exists():
            return folder, lock


def _lock(folder: Path) -> int | None:
    """An open file with the lock, which ends with the process; None if another has it, or there are no locks here."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


__all__ = ["staging", "sweep"]
