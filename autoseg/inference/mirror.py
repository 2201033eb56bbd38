"""Mirroring test-time augmentation: the network sees every mirror image, and the mean is taken after mirroring back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor


def mirrored_mean(
    forward: Callable[[Tensor], Tensor],
    x: Tensor,
    axes: Sequence[int],
    *,
    per_batch: int,
    watch: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Mean over all 2^n mirror images of a batch: float32, or as ``forward`` returns it where nothing is mirrored.

    Args:
        forward: (b, c, *spatial) to (b, heads, *spatial).
        x: windows (b, c, *spatial).
        axes: spatial axes that may be mirrored, 0 .. ndim - 1; without any, this is ``forward(x)``.
        per_batch: samples that may pass through the network at once; mirror images fill a batch together.
        watch: is shown what every mirror image gave, mirrored back.
    """
    if not axes:
        result = forward(x)
        if watch is not None:
            watch(result)
        return result
    subsets = [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]
    together = max(1, per_batch // x.shape[0])
    total = torch.zeros((), device=x.device)
    for first in range(0, len(subsets), together):
        dims = [tuple(axis + 2 for axis in chosen) for chosen in subsets[first : first + together]]
        logits = forward(torch.cat([x.flip(mirrored) for mirrored in dims]))
        for mirrored, part in zip(dims, logits.split(x.shape[0]), strict=True):
            upright = part.flip(mirrored)
            if watch is not None:
                watch(upright)
            total = total + upright.float()
    return total / len(subsets)
