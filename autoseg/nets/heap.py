"""Freed memory stays with the process while networks train on a CPU: every step asks for the same maps again."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULT_MMAP_MAX = 65536
_DEFAULT_TRIM_THRESHOLD = 128 * 1024
_NEVER = 2**31 - 1


@contextmanager
def reused_heap() -> Iterator[None]:
    """Large blocks come from the heap, and the heap does not shrink; afterwards everything free goes back.

    Without it glibc maps each map of a step afresh, and the kernel clears its pages: about a tenth of a step. Changes
    nothing with another C library.
    """
    try:
        library = ctypes.CDLL(None)
        tune, trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError, TypeError):
        yield
        return
    tune(_MMAP_MAX, 0)
    tune(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        tune(_MMAP_MAX, _DEFAULT_MMAP_MAX)
        tune(_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD)
        trim(0)
