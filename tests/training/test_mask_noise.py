"""Faults of masks: the operators against scipy, labels against brute force, and how often each fault happens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage

from autoseg.training.mask_noise import change_mask, closed, dilate, disturb_labels, erode, opened, remove_component

RADII = (1.0, 1.5, 2.0, 3.3, 5.0, 7.9)


def ball(radius: float) -> np.ndarray:
    reach = int(radius)
    offsets = np.indices((2 * reach + 1,) * 3) - reach
    return (offsets**2).sum(0) <= radius**2


def scipy_dilated(mask: np.ndarray, radius: float) -> np.ndarray:
    return ndimage.binary_dilation(mask, ball(radius))


def scipy_eroded(mask: np.ndarray, radius: float) -> np.ndarray:
    # What lies beyond the border is not known to be something else.
    return ndimage.binary_erosion(mask, ball(radius), border_value=1)


def scipy_opened(mask: np.ndarray, radius: float) -> np.ndarray:
    return scipy_dilated(scipy_eroded(mask, radius), radius)


def scipy_closed(mask: np.ndarray, radius: float) -> np.ndarray:
    return scipy_eroded(scipy_dilated(mask, radius), radius)


OPERATORS = [(dilate, scipy_dilated), (erode, scipy_eroded), (opened, scipy_opened), (closed, scipy_closed)]


def blobs(seed: int, shape: tuple[int, int, int] = (15, 22, 18)) -> np.ndarray:
    """A label map of 0, 1 and 2 whose parts have all sizes and touch borders and each other."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.0)
    return np.digitize(noise / noise.std(), [0.3, 1.0]).astype(np.int16)


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize(("ours", "theirs"), OPERATORS)
def test_operators_are_those_of_scipy_with_a_ball(
    ours: Callable[[torch.Tensor, float], torch.Tensor],
    theirs: Callable[[np.ndarray, float], np.ndarray],
    radius: float,
) -> None:
    mask = blobs(3) > 0
    np.testing.assert_array_equal(ours(torch.from_numpy(mask), radius).numpy(), theirs(mask, radius))


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize(("ours", "theirs"), OPERATORS)
def test_a_label_takes_voxels_from_others_and_gives_to_the_background(
    ours: Callable[[torch.Tensor, float], torch.Tensor],
    theirs: Callable[[np.ndarray, float], np.ndarray],
    radius: float,
) -> None:
    before = np.zeros((40, 30, 34), np.int16)
    before[12:24, 9:28, 0:15] = blobs(5)[:12, :19, :15]
    after = torch.from_numpy(before.copy())
    change_mask(after, 2, ours, radius)
    mask = theirs(before == 2, radius)
    expected = np.where(mask, 2, np.where(before == 2, 0, before))
    np.testing.assert_array_equal(after.numpy(), expected)


def test_a_label_that_is_not_there_changes_nothing() -> None:
    label = torch.from_numpy(blobs(1))
    before = label.clone()
    change_mask(label, 7, dilate, 4.0)
    remove_component(label, 7, np.random.default_rng(0))
    assert torch.equal(label, before)


def test_one_component_vanishes_and_large_ones_never_do() -> None:
    label = np.zeros((20, 20, 20), np.int16)
    label[:, :, :4] = 1  # 20% of the patch
    label[2:5, 2:5, 10:13] = 1
    label[5, 5, 13] = 1  # joined by a corner
    label[15:17, 15:17, 15:17] = 1
    label[10, 10, 10] = 2
    numbered, count = ndimage.label(label == 1, np.ones((3, 3, 3)))
    assert count == 3
    gone = set()
    for seed in range(30):
        after = torch.from_numpy(label.copy())
        remove_component(after, 1, np.random.default_rng(seed))
        changed = after.numpy() != label
        assert set(after.numpy()[changed]) == {0}
        (number,) = set(numbered[changed])
        np.testing.assert_array_equal(changed, numbered == number)
        gone.add(int(number))
    assert gone == {2, 3}


def test_faults_are_as_frequent_as_the_recipe_says() -> None:
    # A lone voxel grows under dilation, is lost by erosion, opening and removal, and survives closing. So it stays with
    # (1 - 0.4 * 0.5 * 3/4) * (1 - 0.2 * 0.5), and grows without being removed with 0.4 * 0.5 * 1/4 * (1 - 0.2 * 0.5).
    label = np.zeros((21, 21, 21), np.int16)
    label[10, 10, 10] = 1
    draws = 3000
    sizes = np.array(
        [
            int((disturb_labels(torch.from_numpy(label.copy()), [1], np.random.default_rng(seed)) == 1).sum())
            for seed in range(draws)
        ]
    )
    assert (sizes == 1).mean() == pytest.approx(0.765, abs=4 * np.sqrt(0.765 * 0.235 / draws))
    # Balls of 2145 voxels or more are 15% of 9261 and more, and stay: radii above 7.3 here.
    assert (sizes > 1).mean() == pytest.approx(0.045, abs=4 * np.sqrt(0.045 * 0.955 / draws) + 0.005 * 0.1)


def test_the_generator_decides_everything() -> None:
    label = blobs(2)
    first, again, other = (
        np.stack([disturb_labels(torch.from_numpy(label.copy()), [1, 2], np.random.default_rng(s)) for s in seeds])
        for seeds in (range(20), range(20), range(20, 40))
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
