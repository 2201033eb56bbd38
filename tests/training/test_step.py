"""A batch holds the samples, cut and mirrored, with its channels where the network wants them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from autoseg.augment import Policy, Spatial, cut
from autoseg.training.data import Sample
from autoseg.training.sampling import VALIDATION, Stream
from autoseg.training.step import Kitchen, make_batch

MIRRORED = [(), (0,), (1,), (0, 1)]


def kitchen_of(patch: tuple[int, ...], masked: tuple[int, ...] = ()) -> Kitchen:
    return Kitchen(
        device=torch.device("cpu"),
        precision=None,
        patch_size=patch,
        masked_channels=masked,
        policy=None,
        stream=Stream(seed=0, fold="0", kind=VALIDATION),
    )


def sample_of(channels: int, patch: tuple[int, ...], flips: tuple[int, ...]) -> Sample:
    rng = np.random.default_rng(sum(flips))
    spatial = Spatial(matrix=np.eye(len(patch)), flips=flips, identity=True)
    image = rng.standard_normal((channels, *patch)).astype(np.float32)
    return Sample(image=image, label=rng.integers(-1, 4, (1, *patch)).astype(np.int16), spatial=spatial)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", [(6, 8), (4, 6, 8)])
def test_every_channel_and_the_target_are_mirrored_alike(channels: int, patch: tuple[int, ...]) -> None:
    samples = [sample_of(channels, patch, flips) for flips in MIRRORED]
    image, target = make_batch(samples, kitchen_of(patch), step=0)
    assert image.is_contiguous(memory_format=kitchen_of(patch).memory_format)
    for sample, flips, mine, label in zip(samples, MIRRORED, image, target, strict=True):
        axes = [axis + 1 for axis in flips]
        np.testing.assert_array_equal(mine.numpy(), np.flip(sample.image, axes))
        np.testing.assert_array_equal(label.numpy(), np.flip(sample.label, axes).clip(0))


class OneByOne(Sequence[Sample]):
    """Samples that are made when they are asked for, and that count how many of them there are at most."""

    def __init__(self, count: int) -> None:
        self.count, self.most = count, 0
        self._made: list[weakref.ref[np.ndarray]] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        sample = sample_of(2, (6, 8), MIRRORED[index])
        self._made.append(weakref.ref(sample.image))
        self.most = max(self.most, sum(one() is not None for one in self._made))
        return sample


def test_a_batch_never_holds_two_samples() -> None:
    samples = OneByOne(len(MIRRORED))
    image, _ = make_batch(samples, kitchen_of((6, 8)), step=0)
    assert samples.most == 1
    again, _ = make_batch([sample_of(2, (6, 8), flips) for flips in MIRRORED], kitchen_of((6, 8)), step=0)
    assert torch.equal(image, again)


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_labels_of_bytes_become_the_same_target(kind: type) -> None:
    sample = sample_of(2, (6, 8), (1,))
    sample = replace(sample, label=np.maximum(sample.label, 0))
    _, expected = make_batch([sample], kitchen_of((6, 8)), step=0)
    image, target = make_batch([replace(sample, label=sample.label.astype(kind))], kitchen_of((6, 8), (0,)), step=0)
    assert target.dtype == torch.int16
    assert torch.equal(target, expected)
    np.testing.assert_array_equal(image[0].numpy(), np.flip(sample.image, 2))


def test_outside_the_mask_masked_channels_are_zero_and_others_are_not() -> None:
    sample = sample_of(2, (4, 6, 8), (0,))
    image, _ = make_batch([sample], kitchen_of((4, 6, 8), masked=(1,)), step=0)
    outside = np.flip(sample.label[0] < 0, 0)
    expected = np.flip(sample.image, 1)
    np.testing.assert_array_equal(image[0, 0].numpy(), expected[0])
    np.testing.assert_array_equal(image[0, 1].numpy(), np.where(outside, 0, expected[1]))


def turned(axes: int, degrees: float, flips: tuple[int, ...]) -> Spatial:
    """A rotation in the plane of the last two axes, of ``axes`` that turn."""
    angle = np.deg2rad(degrees)
    matrix = np.eye(axes)
    matrix[-2:, -2:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return Spatial(matrix=matrix, flips=flips, identity=False)


@pytest.mark.parametrize("flips", MIRRORED)
def test_patches_that_turn_within_slices_are_mirrored_along_all_axes(flips: tuple[int, ...]) -> None:
    patch, spatial = (4, 8, 8), turned(2, 20.0, flips)
    sample = replace(sample_of(2, (4, 14, 14), ()), spatial=spatial)
    image, target = make_batch([sample], kitchen_of(patch), step=0)
    # Without flips and by hand: mirroring comes last.
    plain, label, _ = cut(
        torch.from_numpy(sample.image), torch.from_numpy(sample.label), replace(spatial, flips=()), patch, outside=-1
    )
    axes = [axis + 1 for axis in flips]
    np.testing.assert_allclose(image[0].numpy(), np.flip(plain.numpy(), axes), atol=1e-5)
    assert (target[0].numpy() == np.flip(label.numpy(), axes).clip(0)).mean() > 0.99


def test_beyond_the_image_masked_channels_are_exactly_zero() -> None:
    rng = np.random.default_rng(0)
    image = (5 + rng.standard_normal((2, 8, 8))).astype(np.float32)
    label = np.ones((1, 8, 8), dtype=np.int16)
    # Half of the patch lies beyond the border.
    sample = Sample(image=image, label=label, spatial=turned(2, 10.0, ()), centre=(3.5, 0.0))
    policy = Policy(ndim=2, rotation=(180.0,), dummy_2d=False, mirror_axes=(), p_noise=1.0)
    kitchen = replace(kitchen_of((8, 8), masked=(0,)), policy=policy)
    batch, _ = make_batch([sample], kitchen, step=0)
    outside = batch[0, 0].numpy() == 0
    assert 0.3 < outside.mean() < 0.7
    assert (batch[0, 1].numpy()[outside] != 0).mean() > 0.9
