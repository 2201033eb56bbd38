"""How many windows at once, and where their sums gather, so that a prediction stays within memory."""

from __future__ import annotations

from dataclasses import replace

import torch

from autoseg.errors import ResourceError
from autoseg.inference.stitch import Sweep, ring_bytes
from autoseg.log import get_logger, size
from autoseg.parallel import available_memory, resident_memory
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Configuration

_LOG = get_logger(__name__)

# Without a request the process stays below this where it can, at the price of half precision in the sums.
COMFORTABLE_BYTES = 6_000_000_000
_FREE_SHARE = 0.7
_GPU_SHARE = 0.8
# Pieces on their way to the image grid, allocator slack and code that is loaded late.
_OVERHEAD_BYTES = 400_000_000

# Feature maps of the first stage's width that are alive at once in the last decoder step of a U-Net: skip,
# upsampled, both joined, convolved, normalised, and the coarser skips.
_LIVE_MAPS = 8
_LIVE_LOGITS = 3

# On a CPU batches only spare small patches the overhead of a call; on a GPU they fill the cores.
_CPU_BATCH_VOXELS = 2**18
_GPU_BATCH_VOXELS = 2**23
_MAX_BATCH = 64


def window_bytes(configuration: Configuration, heads: int) -> int:
    """Rough peak bytes of a float32 forward pass of one window."""
    voxels = _voxels(configuration.patch_size)
    return voxels * 4 * (_LIVE_MAPS * configuration.topology.features[0] + _LIVE_LOGITS * heads)


def choose_sweep(
    shape: Shape,
    configuration: Configuration,
    *,
    heads: int,
    step: float,
    device: torch.device,
    features: int | None = None,
    memory: int | None = None,
    extra_bytes: int = 0,
) -> Sweep:
    """Batch size, place and number type of the sums for an image of ``shape`` (z, y, x) at network resolution.

    Sums are float32 where that fits and float16 otherwise (weights are at most 1 and at least 1e-3, so that the
    relative error of a logit stays near 1e-3). On a GPU they lie on the GPU if it has room.

    Args:
        memory: bytes that the process (on a GPU: the GPU) may use; None takes 70% of what is free, and on a CPU
            prefers to stay below ``COMFORTABLE_BYTES``.
        extra_bytes: RAM that the caller will need besides.

    Raises:
        ResourceError: not even one window at a time fits.
    """
    patch = (1, *configuration.patch_size) if configuration.ndim == 2 else configuration.patch_size
    sweep = Sweep(patch=patch, heads=heads, features=features, step=step)
    one = window_bytes(configuration, sweep.channels)
    if device.type == "cuda":
        free = _free_on_gpu(device) if memory is None else min(memory, _free_on_gpu(device))
        batch = _batch(patch, _GPU_BATCH_VOXELS, free, one)
        while batch >= 1:
            candidate = replace(sweep, per_batch=batch, device=device)
            if ring_bytes(shape, candidate) + batch * one <= free:
                return candidate
            batch //= 2
        sweep = replace(sweep, per_batch=_batch(patch, _GPU_BATCH_VOXELS, free, one))
        return _on_cpu(shape, sweep, extra_bytes, memory=None)
    sweep = replace(sweep, per_batch=_batch(patch, _CPU_BATCH_VOXELS, available_memory(), one))
    return _on_cpu(shape, sweep, extra_bytes + sweep.per_batch * one, memory=memory)


def _on_cpu(shape: Shape, sweep: Sweep, besides: int, *, memory: int | None) -> Sweep:
    resident = resident_memory()
    limit = int(available_memory() * _FREE_SHARE) if memory is None else memory - resident
    comfortable = min(limit, COMFORTABLE_BYTES - resident) if memory is None else limit
    besides += _OVERHEAD_BYTES
    if ring_bytes(shape, sweep) + besides <= comfortable:
        return sweep
    narrow = replace(sweep, dtype=torch.float16)
    need = ring_bytes(shape, narrow) + besides
    if need <= limit:
        _LOG.info("memory: sums of windows are kept in float16, %s", size(ring_bytes(shape, narrow)))
        return narrow
    raise ResourceError(
        f"{sweep.heads} classes of {'x'.join(map(str, shape))} voxels need {size(need + resident)} of RAM, "
        f"and {size(max(0, limit + resident))} may be used",
        hint="close other programs, give more with --memory, or train with a coarser --spacing",
    )


def _batch(patch: Shape, voxels: int, free: int, one: int) -> int:
    return max(1, min(_MAX_BATCH, voxels // _voxels(patch), free // (2 * one)))


def _free_on_gpu(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    # What torch holds without using it can be used again.
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int((free + held) * _GPU_SHARE)


def _voxels(shape: Shape) -> int:
    result = 1
    for length in shape:
        result *= length
    return result
