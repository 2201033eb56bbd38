"""Boxes and masks of what is not zero."""

from __future__ import annotations

import numpy as np

from autoseg.ops.crop import crop, nonzero_box, nonzero_mask


def image_with(*voxels: tuple[int, int, int, int]) -> np.ndarray:
    image = np.zeros((2, 6, 7, 8), dtype=np.int16)
    for voxel in voxels:
        image[voxel] = -3
    return image


def test_the_box_holds_every_channel_and_nothing_else() -> None:
    image = image_with((0, 1, 2, 3), (1, 4, 2, 5))
    box = nonzero_box(image)
    assert box == ((1, 5), (2, 3), (3, 6))
    assert np.count_nonzero(crop(image, box)) == np.count_nonzero(image)
    assert crop(image[0], box).shape == (4, 1, 3)


def test_an_empty_image_keeps_its_full_box() -> None:
    assert nonzero_box(image_with()) == ((0, 6), (0, 7), (0, 8))


def test_a_crop_is_a_view() -> None:
    image = image_with((0, 0, 0, 0))
    crop(image, ((0, 1), (0, 1), (0, 1)))[0] = 9
    assert image[0, 0, 0, 0] == 9


def test_the_mask_joins_channels_and_fills_their_holes() -> None:
    image = np.zeros((2, 5, 5, 5))
    image[0, 1:4, 1:4, 1:3] = 1
    image[1, 1:4, 1:4, 3] = 1
    image[:, 2, 2, 2] = 0
    expected = np.zeros((5, 5, 5), dtype=bool)
    expected[1:4, 1:4, 1:4] = True
    np.testing.assert_array_equal(nonzero_mask(image), expected)
