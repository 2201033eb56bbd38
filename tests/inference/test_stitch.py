from __future__ import annotations

import numpy as np
import pytest
import torch

from autoseg.errors import DivergenceError
from autoseg.inference.mirror import mirrored_mean
from autoseg.inference.stitch import Sweep, ring_bytes, stitch
from autoseg.inference.tiles import gaussian_window, tile_starts

SHAPES = [(20, 17, 23), (8, 8, 8), (5, 30, 3), (1, 40, 40), (33, 7, 9)]


def _image(shape: tuple[int, ...], channels: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 5, (channels, *shape)).astype(np.float32)


def _stitched(image: np.ndarray, evaluate, sweep: Sweep) -> np.ndarray:
    return np.concatenate(list(stitch(image, evaluate, sweep)), axis=1)


def _dense(image: np.ndarray, evaluate, patch: tuple[int, ...], step: float) -> np.ndarray:
    """The definition: pad, evaluate every window alone, sum and divide in float64 over the whole volume."""
    from acvl_utils.cropping_and_padding.padding import pad_nd_image

    padded, inside = pad_nd_image(image, patch, return_slicer=True)
    starts = [tile_starts(n, p, step) for n, p in zip(padded.shape[1:], patch, strict=True)]
    if patch[0] == 1:
        starts[0] = tuple(range(padded.shape[1]))
    window = gaussian_window(patch).astype(np.float64)
    sums, weights = 0, np.zeros(padded.shape[1:])
    for z in starts[0]:
        for y in starts[1]:
            for x in starts[2]:
                place = (slice(z, z + patch[0]), slice(y, y + patch[1]), slice(x, x + patch[2]))
                logits = evaluate(torch.from_numpy(padded[(slice(None), *place)].copy())[None])[0].double().numpy()
                if np.isscalar(sums):
                    sums = np.zeros((len(logits), *padded.shape[1:]))
                sums[(slice(None), *place)] += logits * window
                weights[place] += window
    return (sums / weights)[(slice(None), *inside[1:])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("per_batch", [1, 4, 64])
@pytest.mark.parametrize("patch", [(8, 8, 8), (1, 16, 8), (12, 4, 16)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_network_that_passes_its_input_through_gives_the_input_back(
    shape: tuple[int, ...], patch: tuple[int, ...], per_batch: int, dtype: torch.dtype
) -> None:
    image = _image(shape)
    sweep = Sweep(patch=patch, heads=2, per_batch=per_batch, dtype=dtype)
    result = _stitched(image, torch.clone, sweep)
    assert result.dtype == np.float32
    assert result.shape == image.shape
    # A voxel gathers up to 27 windows; each addition in half precision rounds by at most 2^-11 of the sum.
    tolerance = 1e-5 if dtype is torch.float32 else 27 * 2**-11 * np.abs(image).max()
    np.testing.assert_allclose(result, image, rtol=0, atol=tolerance)


def test_a_constant_network_gives_the_constant_everywhere() -> None:
    def evaluate(batch: torch.Tensor) -> torch.Tensor:
        logits = torch.tensor([1.5, -2.0, 7.0]).reshape(1, 3, 1, 1, 1)
        return logits.expand(len(batch), 3, *batch.shape[2:]).clone()

    result = _stitched(_image((19, 21, 18)), evaluate, Sweep(patch=(8, 8, 8), heads=3))
    np.testing.assert_allclose(result, np.broadcast_to([[[[1.5]]], [[[-2.0]]], [[[7.0]]]], result.shape), atol=1e-5)


@pytest.mark.parametrize("step", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("patch", [(8, 6, 10), (1, 12, 8)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_network_that_knows_its_place_agrees_with_the_dense_definition(
    shape: tuple[int, ...], patch: tuple[int, ...], step: float
) -> None:
    torch.manual_seed(0)
    field = torch.randn(3, *patch)

    def evaluate(batch: torch.Tensor) -> torch.Tensor:
        # Different at every voxel of the window and nonlinear in its mean, so that every window matters.
        return batch[:, :1] * field + torch.sin(batch.mean(dim=(1, 2, 3, 4), keepdim=True) * 10)

    image = _image(shape)
    result = _stitched(image, evaluate, Sweep(patch=patch, heads=3, step=step, per_batch=5))
    np.testing.assert_allclose(result, _dense(image, evaluate, patch, step), atol=2e-4)


def test_accumulators_follow_the_patch_and_not_the_length() -> None:
    sweep = Sweep(patch=(16, 16, 16), heads=4)
    short, long = ring_bytes((32, 64, 64), sweep), ring_bytes((4000, 64, 64), sweep)
    assert short == long == 16 * 64 * 64 * (4 * 4 + 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_an_error(value: float) -> None:
    def evaluate(batch: torch.Tensor) -> torch.Tensor:
        logits = batch.clone()
        logits[0, 0, 3, 3, 3] = value
        return logits

    with pytest.raises(DivergenceError, match="NaN or infinite"):
        _stitched(_image((8, 8, 8)), evaluate, Sweep(patch=(8, 8, 8), heads=2))


@pytest.mark.parametrize("per_batch", [1, 4, 100])
@pytest.mark.parametrize("axes", [(), (1,), (0, 2), (0, 1, 2)])
def test_mirrored_mean_of_a_skewed_network_becomes_equivariant(axes: tuple[int, ...], per_batch: int) -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv3d(2, 3, 3, padding=1)
    x = torch.randn(3, 2, 6, 7, 8)
    with torch.no_grad():
        plain = mirrored_mean(network, x, axes, per_batch=per_batch)
        for axis in axes:
            flipped = mirrored_mean(network, x.flip(axis + 2), axes, per_batch=per_batch)
            torch.testing.assert_close(flipped.flip(axis + 2), plain)
            assert not torch.allclose(network(x.flip(axis + 2)).flip(axis + 2), network(x), atol=1e-3)


@pytest.mark.parametrize("per_batch", [1, 3, 8])
def test_mirroring_leaves_a_symmetric_network_as_it_is(per_batch: int) -> None:
    x = torch.randn(2, 1, 6, 4, 8, generator=torch.Generator().manual_seed(0))

    def blur(batch: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool3d(batch, 3, stride=1, padding=1)

    torch.testing.assert_close(mirrored_mean(blur, x, (0, 1, 2), per_batch=per_batch), blur(x))


def test_mirroring_passes_no_more_than_a_batch_at_once() -> None:
    seen: list[int] = []

    def forward(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return batch

    mirrored_mean(forward, torch.zeros(2, 1, 4, 4, 4), (0, 1, 2), per_batch=5)
    assert sum(seen) == 16
    assert max(seen) <= 5
