"""Freed memory stays with the process while networks train on a CPU: every step asks for the same maps again."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULT_MMAP_MAX = 65536
_DEFAULT_TRIM_THRESHOLD = 128 * 1024
_NEVER = 2**31 - 1
# Holes between larger blocks cost more memory (half as much again at 536 MB) than the time that is saved is worth.
_LARGEST_BLOCK = 2**28


@contextmanager
def reused_heap(largest_block: float, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Large blocks come from the heap, and the heap does not shrink; afterwards everything free goes back.

    Without it glibc maps each feature map of a step afresh, and the kernel clears its pages: about a tenth of a step.
    Changes nothing where a step needs very large blocks, or with another C library.

    Args:
        largest_block: bytes of the largest feature map.
        optimizer: begins after its first step. What it then keeps for good would lie among the maps' places.
    """
    if largest_block > _LARGEST_BLOCK:
        yield
        return
    try:
        library = ctypes.CDLL(None)
        tune, trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError, TypeError):
        yield
        return

    begun = False

    def begin(*_: object) -> None:
        nonlocal begun
        if not begun:
            tune(_MMAP_MAX, 0)
            tune(_TRIM_THRESHOLD, _NEVER)
        begun = True

    after_step = optimizer.register_step_post_hook(begin)
    try:
        yield
    finally:
        after_step.remove()
        tune(_MMAP_MAX, _DEFAULT_MMAP_MAX)
        tune(_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD)
        trim(0)
