"""How many patches a training step sees."""

from __future__ import annotations

import math
from collections.abc import Callable

from autoseg.schema.fingerprint import Shape

MINIMUM = 2
# A batch of nnU-Net's reference plans, by number of axes: 2D patches leave room for more than two of them.
REFERENCE = {2: 12, 3: 2}
# A batch never sees more of the dataset than this share.
DATASET_SHARE = 0.05
# On a CPU a step has to see this many voxels for stable gradients, and more only costs time.
CPU_VOXELS = 2**17


def dataset_limit(patch: Shape, dataset_voxels: float) -> int:
    """The largest batch whose voxels are 5% of the dataset's; at least two."""
    return max(MINIMUM, round(DATASET_SHARE * dataset_voxels / math.prod(patch)))


def cpu_batch(patch: Shape) -> int:
    """The smallest batch of at least two whose voxels reach ``CPU_VOXELS``."""
    return max(MINIMUM, math.ceil(CPU_VOXELS / math.prod(patch)))


def largest_batch(memory: Callable[[int], int], budget: int, limit: int, *, known: int = 2 * MINIMUM) -> int:
    """The largest batch up to ``limit`` that fits; two where two do not fit either (the caller checks).

    Memory grows linearly with the batch: two values say where the budget ends, and a third one checks it.

    Args:
        known: a batch of more than two whose memory was asked for before, and so costs nothing.
    """
    if limit <= MINIMUM:
        return MINIMUM
    least = memory(MINIMUM)
    slope = max(1.0, (memory(known) - least) / (known - MINIMUM))
    batch = min(limit, max(MINIMUM, MINIMUM + int((budget - least) / slope)))
    while batch > MINIMUM and memory(batch) > budget:
        batch -= 1
    return batch
