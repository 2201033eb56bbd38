"""How fast a folder takes and gives data."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from autoseg.schema.health import DiskFacts

_BLOCK = 4 << 20
_BYTES = 128 << 20
_LONGEST_SECONDS = 3.0


def disk_facts(folder: Path) -> DiskFacts:
    """Free space and speed at ``folder``, or at the nearest folder above it that exists; nothing stays behind.

    At most 128 MiB are written, a tenth of what is free, and for no longer than three seconds.
    """
    there = folder
    while not there.is_dir() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    try:
        write, read = _speed(there, min(_BYTES, free // 10 // _BLOCK * _BLOCK))
    except OSError as error:
        problem = f"{there}: {error.strerror or error}"
        return DiskFacts(folder=str(folder), free_bytes=free, write_rate=0.0, read_rate=0.0, problem=problem)
    return DiskFacts(folder=str(folder), free_bytes=free, write_rate=write, read_rate=read)


def _speed(folder: Path, limit: int) -> tuple[float, float]:
    # Random bytes: a file system that compresses would show the speed of its compressor.
    block = os.urandom(_BLOCK)
    with tempfile.TemporaryFile(dir=folder) as file:
        written, started = 0, time.perf_counter()
        while written < limit and time.perf_counter() - started < _LONGEST_SECONDS:
            written += file.write(block)
            file.flush()
        os.fsync(file.fileno())
        write_seconds = time.perf_counter() - started
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        started = time.perf_counter()
        while file.read(_BLOCK):
            pass
        read_seconds = time.perf_counter() - started
    return written / max(write_seconds, 1e-9), written / max(read_seconds, 1e-9)
