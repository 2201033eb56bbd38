"""Freed memory stays with the process while networks train on a CPU: every step asks for the same maps again."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

# glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULT_MMAP_MAX = 65536
_DEFAULT_TRIM_THRESHOLD = 128 * 1024
_NEVER = 2**31 - 1
# Holes between larger blocks cost more memory (half as much again at 536 MB) than the time that is saved is worth.
_LARGEST_BLOCK = 2**28


def largest_map(width: int, batch_size: int, patch_size: Sequence[int], precision: torch.dtype | None) -> int:
    """Bytes of the largest map of a U-Net of this first width: what its last step concatenates."""
    return 2 * width * batch_size * math.prod(patch_size) * (precision or torch.float32).itemsize


@contextmanager
def reused_heap(largest_block: float, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Large blocks come from the heap, and the heap does not shrink; afterwards everything free goes back.

    Without it glibc maps each feature map of a step afresh, and the kernel clears its pages: about a tenth of a step.
    Changes nothing where a step needs very large blocks, or with another C library.

    Args:
        largest_block: bytes of the largest feature map (``largest_map``).
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

    def keep(*_: object) -> None:
        tune(_MMAP_MAX, 0)
        tune(_TRIM_THRESHOLD, _NEVER)

    after_step = optimizer.register_step_post_hook(keep)
    try:
        yield
    finally:
        after_step.remove()
        tune(_MMAP_MAX, _DEFAULT_MMAP_MAX)
        tune(_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD)
        trim(0)
