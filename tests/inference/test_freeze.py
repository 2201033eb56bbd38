from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from autoseg.inference.ensemble import Ensemble, prepared
from autoseg.inference.freeze import FrozenInstanceNorm, freeze, take_off_head
from autoseg.inference.stitch import Sweep, stitch
from autoseg.nets import build_network
from autoseg.schema.plan import Architecture, Configuration, Cost, Resampling, Topology


def _topology(ndim: int) -> Topology:
    one, two, three = (1,) * ndim, (2,) * ndim, (3,) * ndim
    return Topology(strides=(one, two, two), kernels=(three,) * 3, features=(4, 8, 16))


def _configuration() -> Configuration:
    return Configuration(
        name="x",
        ndim=3,
        spacing=(1.0, 1.0, 1.0),
        median_shape=(16, 16, 16),
        patch_size=(16, 16, 16),
        batch_size=2,
        normalization=(),
        resampling=Resampling(),
        architecture=Architecture(name="unet"),
        topology=_topology(3),
        batch_dice=False,
        cost=Cost(parameters=0, memory_bytes=0, flops=0),
    )


def _network(name: str = "unet", *, ndim: int = 3, heads: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = build_network(
        Architecture(name=name),
        _topology(ndim),
        ndim=ndim,
        in_channels=2,
        num_heads=heads,
        patch_size=(16,) * ndim,
    )
    for parameter in made.parameters():
        # Fresh normalisations have weights of one, which hide mistakes.
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval().requires_grad_(False)


def _windows(ndim: int) -> torch.Tensor:
    layout = torch.channels_last if ndim == 2 else torch.channels_last_3d
    windows = torch.randn(3, 2, *(16,) * ndim, generator=torch.Generator().manual_seed(1))
    return windows.contiguous(memory_format=layout)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", ["unet", "resenc_unet", "attention_unet", "segresnet_vae"])
def test_a_frozen_network_gives_the_logits_of_the_trained_one(name: str, ndim: int) -> None:
    network, x = _network(name, ndim=ndim), _windows(ndim)
    with torch.inference_mode():
        expected = network(x)[0].clone()
        torch.testing.assert_close(freeze(network, None)(x)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["unet", "unetr"])
def test_weights_rounded_once_are_those_that_autocast_rounds_at_every_call(name: str) -> None:
    network, x = _network(name), _windows(3)
    with torch.inference_mode():
        full = network(x)[0].clone()
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)[0].float()
            frozen = freeze(network, torch.bfloat16)(x)[0].float()
    # Both round to 8 bits, in slightly different places.
    assert (frozen - full).abs().mean() < 1.5 * (half - full).abs().mean() + 1e-6


def test_what_others_read_is_not_overwritten() -> None:
    class PreActivated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.InstanceNorm3d(2, affine=True)
            self.conv = nn.Conv3d(2, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.conv(self.norm(x))

    torch.manual_seed(0)
    block, x = PreActivated().requires_grad_(False), _windows(3)
    expected, before = block(x), x.clone()
    frozen = freeze(block, None)
    assert isinstance(frozen.norm, FrozenInstanceNorm)
    torch.testing.assert_close(frozen(x), expected)
    torch.testing.assert_close(x, before)


@pytest.mark.parametrize("name", ["unet", "resenc_unet"])
def test_a_head_taken_off_makes_the_same_logits_of_the_features(name: str) -> None:
    network, x = _network(name, heads=9), _windows(3)
    with torch.inference_mode():
        expected = network(x)[0].clone()
        head = take_off_head(network, x)
        assert head is not None
        features = network(x)[0]
        assert features.shape[1] == 4
        torch.testing.assert_close(head(features), expected, rtol=1e-4, atol=1e-4)


def test_a_network_that_does_more_after_its_head_keeps_it() -> None:
    network = nn.Sequential(nn.Conv3d(2, 3, 1), nn.Softmax(dim=1))

    class Tupled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.inner(x),)

    with torch.inference_mode():
        assert take_off_head(Tupled(), _windows(3)) is None
    assert isinstance(network[0], nn.Conv3d)
    with torch.inference_mode():
        # Its logits are the mean over the heads of all levels.
        assert take_off_head(_network("unetpp", heads=9), _windows(3)) is None


@pytest.mark.parametrize("mirror_axes", [(), (0, 2)])
@pytest.mark.parametrize("folds", [1, 2])
def test_logits_of_stitched_features_are_the_stitched_logits(folds: int, mirror_axes: tuple[int, ...]) -> None:
    def networks() -> tuple[nn.Module, ...]:
        return tuple(_network(heads=9, seed=seed) for seed in range(folds))

    plain = Ensemble(networks=networks(), ndim=3, device=torch.device("cpu"), mirror_axes=mirror_axes)
    lean = prepared(replace(plain, networks=networks()), _configuration(), channels=2, heads=9)
    assert lean.features == 4 * folds
    image = np.random.default_rng(0).normal(size=(2, 20, 24, 30)).astype(np.float32)
    with torch.inference_mode():
        expected, found = (
            np.concatenate(
                list(
                    stitch(
                        image,
                        partial(ensemble.evaluate, per_batch=2),
                        Sweep(patch=(16, 16, 16), heads=9, features=ensemble.features, per_batch=2),
                        head=ensemble.head if ensemble.heads else None,
                    )
                ),
                axis=1,
            )
            for ensemble in (plain, lean)
        )
    assert found.shape == (9, 20, 24, 30)
    np.testing.assert_allclose(found, expected, atol=2e-4)
