"""Components and holes against scipy.ndimage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from autoseg.ops.components import (
    count_class_components,
    count_components,
    fill_holes,
    label_components,
    largest_component,
    remove_small,
)

FULL = np.ones((3, 3, 3))


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    density = draw(st.sampled_from([0.0, 0.1, 0.3, 0.6, 0.9, 1.0]))
    return np.random.default_rng(draw(st.integers(0, 9999))).random(shape) < density


@settings(max_examples=100, deadline=None, derandomize=True)
@given(mask=masks())
def test_components_holes_and_sizes_agree_with_scipy(mask: np.ndarray) -> None:
    expected, count = ndimage.label(mask, FULL)
    labels, found = label_components(mask)
    assert found == count == count_components(mask)
    pairs = {(a, b) for a, b in zip(labels.ravel().tolist(), expected.ravel().tolist(), strict=True)}
    assert len(pairs) == len(np.unique(expected))
    sizes = np.bincount(expected.ravel())
    sizes[0] = 0
    np.testing.assert_array_equal(largest_component(mask), mask & (sizes[expected] == sizes.max()))
    np.testing.assert_array_equal(remove_small(mask, 4), mask & (sizes[expected] >= 4))
    np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 3, 1), (3, 1, 1), (5, 1, 7), (1, 1, 1)])
def test_masks_of_one_voxel_thickness_are_fine(shape: tuple[int, int, int]) -> None:
    mask = np.indices(shape).sum(0) % 2 == 0
    assert count_components(mask) == ndimage.label(mask, FULL)[1]
    assert remove_small(mask, 1).shape == largest_component(mask).shape == shape


@pytest.mark.parametrize("kind", [bool, np.uint8])
def test_a_transposed_mask_of_any_dtype_is_fine(kind: type) -> None:
    mask = np.zeros((4, 5, 6), dtype=kind)
    mask[0, 0, 0] = mask[3, 4, 4:] = 1
    assert count_components(mask.T) == 2
    assert largest_component(mask.T).sum() == 2
    assert largest_component(mask.T).dtype == bool
    assert remove_small(mask.T, 2).dtype == bool


def test_corners_connect() -> None:
    mask = np.zeros((2, 2, 2), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert count_components(mask) == 1


def test_filling_leaves_the_mask_that_came_in() -> None:
    shell = np.ones((5, 5, 5), dtype=bool)
    shell[2, 2, 2] = False
    assert fill_holes(shell).all()
    assert not shell[2, 2, 2]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(mask=masks(), classes=st.integers(1, 4))
def test_classes_counted_in_one_pass_are_those_counted_one_by_one(mask: np.ndarray, classes: int) -> None:
    label = (mask * np.random.default_rng(0).integers(1, classes + 2, mask.shape)).astype(np.uint8)
    found = count_class_components(label, classes)
    assert len(found) == classes + 1
    for value in range(1, classes + 1):
        assert found[value] == (int((label == value).sum()), ndimage.label(label == value, FULL)[1])


def test_a_read_only_label_map_is_counted_and_stays_as_it_is() -> None:
    label = np.zeros((1, 6, 6), np.uint8)
    label[0, 1, 1] = label[0, 4, 4] = 1
    label.flags.writeable = False
    assert count_class_components(label, 1) == [(0, 0), (2, 2)]
    assert count_components(label > 0) == 2
