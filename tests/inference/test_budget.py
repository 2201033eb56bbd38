from __future__ import annotations

import pytest
import torch

from autoseg.errors import ResourceError
from autoseg.inference.budget import choose_sweep, window_bytes
from autoseg.inference.stitch import ring_bytes
from autoseg.parallel import resident_memory
from autoseg.schema.plan import Architecture, Configuration, Cost, Resampling, Topology

CPU = torch.device("cpu")


def _configuration(*patch: int, width: int = 4) -> Configuration:
    ndim = len(patch)
    return Configuration(
        name="x",
        ndim=ndim,
        spacing=(1.0,) * ndim,
        median_shape=patch,
        patch_size=patch,
        batch_size=2,
        normalization=(),
        resampling=Resampling(),
        architecture=Architecture(name="unet"),
        topology=Topology(strides=((1,) * ndim,), kernels=((3,) * ndim,), features=(width,)),
        batch_dice=False,
        cost=Cost(parameters=0, memory_bytes=0, flops=0),
    )


def _choose(shape: tuple[int, ...], configuration: Configuration, *, heads: int = 25, memory: int) -> object:
    return choose_sweep(shape, configuration, heads=heads, step=0.5, device=CPU, memory=memory)


def test_sums_are_float32_where_they_fit_and_float16_where_they_do_not() -> None:
    configuration = _configuration(64, 64, 64)
    shape = (400, 256, 256)
    base = resident_memory() + window_bytes(configuration, 25) + 400_000_000
    wide = _choose(shape, configuration, memory=base + 500_000_000)
    assert wide.dtype is torch.float32
    assert ring_bytes(shape, wide) == 64 * 256 * 256 * 26 * 4
    narrow = _choose(shape, configuration, memory=base + 300_000_000)
    assert narrow.dtype is torch.float16
    assert ring_bytes(shape, narrow) == 64 * 256 * 256 * (25 * 2 + 4)
    with pytest.raises(ResourceError) as caught:
        _choose(shape, configuration, memory=base + 100_000_000)
    assert "--memory" in caught.value.hint


def test_small_patches_share_a_batch_and_large_ones_do_not() -> None:
    assert _choose((64, 64, 64), _configuration(16, 16, 16), memory=10**13).per_batch > 8
    assert _choose((256, 256, 256), _configuration(128, 128, 128), memory=10**13).per_batch == 1


def test_slices_of_a_2d_configuration_are_windows_of_one_plane_and_share_batches() -> None:
    sweep = _choose((30, 64, 64), _configuration(64, 64), memory=10**13)
    assert sweep.patch == (1, 64, 64)
    assert sweep.per_batch > 1
