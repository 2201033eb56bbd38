"""Rules on components against scipy, voxel by voxel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from autoseg import records
from autoseg.errors import RecordError
from autoseg.ops.postprocess import postprocess
from autoseg.schema.postprocessing import FILL_HOLES, KEEP_LARGEST, REMOVE_SMALL, PostProcessing, PostStep

CONNECTED = np.ones((3, 3, 3), dtype=int)


def step(rule: str, *values: int, **more: float) -> PostStep:
    return PostStep(rule=rule, label="a label", values=values, **more)


def blobs(seed: int, shape: tuple[int, int, int], density: float) -> np.ndarray:
    """Labels 0, 2, 7 and 9 in pieces of a few voxels."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 0.8)
    edges = np.quantile(field, [density, density + (1 - density) / 3, density + (1 - density) / 1.5])
    return np.array([0, 2, 7, 9], dtype=np.uint8)[np.digitize(field, edges)]


def components(mask: np.ndarray) -> list[np.ndarray]:
    numbered, count = ndimage.label(mask, structure=CONNECTED)
    return [numbered == number for number in range(1, count + 1)]


SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 1000), st.sampled_from([(2,), (7,), (2, 7), (2, 7, 9)]), st.floats(0.3, 0.8))
def test_the_largest_component_is_scipys(shape, seed: int, values: tuple[int, ...], density: float) -> None:
    labels = blobs(seed, shape, density)
    parts = components(np.isin(labels, values))
    largest = max((part.sum() for part in parts), default=0)
    expected = labels.copy()
    for part in parts:
        if part.sum() < largest:
            expected[part] = 0
    before = labels.copy()
    np.testing.assert_array_equal(postprocess(labels, [step(KEEP_LARGEST, *values)], voxel_size=1), expected)
    np.testing.assert_array_equal(labels, before)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 1000), st.floats(0.2, 3.0), st.integers(0, 20))
def test_small_components_are_measured_in_mm3(shape, seed: int, voxel_size: float, voxels: int) -> None:
    labels = blobs(seed, shape, 0.6)
    expected = labels.copy()
    for part in components(labels == 7):
        if part.sum() < voxels:
            expected[part] = 0
    # A bound between two counts, and one that is a count but for rounding.
    for minimum in (voxel_size * (voxels - 0.5), voxel_size * voxels * (1 + 1e-7)):
        made = postprocess(labels, [step(REMOVE_SMALL, 7, minimum_mm3=max(0.0, minimum))], voxel_size=voxel_size)
        np.testing.assert_array_equal(made, expected)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 1000), st.sampled_from([(7,), (2, 7)]))
def test_holes_are_scipys_and_other_labels_in_them_stay(shape, seed: int, values: tuple[int, ...]) -> None:
    labels = blobs(seed, shape, 0.25)
    mask = np.isin(labels, values)
    filled = ndimage.binary_fill_holes(mask) if shape[0] > 1 else ndimage.binary_fill_holes(mask[0])[None]
    expected = np.where(filled & (labels == 0), 7, labels)
    np.testing.assert_array_equal(postprocess(labels, [step(FILL_HOLES, *values, fill=7)], voxel_size=1), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_ring_in_one_plane_of_a_volume_is_open_to_the_planes_beside(axis: int, place: int) -> None:
    labels = np.zeros((7, 7, 7), dtype=np.uint8)
    plane = np.moveaxis(labels, axis, 0)[place]
    plane[1:6, 1:6] = 3
    plane[3, 3] = 0
    assert not (ndimage.binary_fill_holes(labels == 3) != (labels == 3)).any()
    np.testing.assert_array_equal(postprocess(labels, [step(FILL_HOLES, 3, fill=3)], voxel_size=1), labels)
    picture = plane[np.newaxis].copy()
    expected = 3 * ndimage.binary_fill_holes(picture[0] == 3)[np.newaxis]
    assert expected.sum() > picture.sum()
    np.testing.assert_array_equal(postprocess(picture, [step(FILL_HOLES, 3, fill=3)], voxel_size=1), expected)


@pytest.mark.parametrize("shape", [(9, 9, 9), (1, 9, 9)])
def test_a_hole_with_another_label_inside(shape: tuple[int, int, int]) -> None:
    labels = np.zeros(shape, dtype=np.uint8)
    shell = (slice(2, 7) if shape[0] > 1 else slice(0, 1), slice(2, 7), slice(2, 7))
    core = (slice(3, 6) if shape[0] > 1 else slice(0, 1), slice(3, 6), slice(3, 6))
    middle = (shape[0] // 2, 4, 4)
    labels[shell], labels[core], labels[middle] = 1, 0, 2
    made = postprocess(labels, [step(FILL_HOLES, 1, fill=1)], voxel_size=1)
    assert made[middle] == 2
    assert (made[core] == 1).sum() == made[core].size - 1
    assert made.sum() == labels.sum() + (labels[core] == 0).sum()


def test_steps_follow_each_other() -> None:
    labels = np.zeros((5, 12, 12), dtype=np.int32)
    labels[1:4, 1:6, 1:6] = 1
    labels[2, 3, 3] = 0
    labels[1:4, 8:10, 8:10] = 1
    labels[4, 0, 11] = 300
    chain = [step(FILL_HOLES, 1, fill=1), step(KEEP_LARGEST, 1), step(REMOVE_SMALL, 300, minimum_mm3=2)]
    expected = np.zeros_like(labels)
    expected[1:4, 1:6, 1:6] = 1
    made = postprocess(labels, chain, voxel_size=1)
    assert made.dtype == labels.dtype
    np.testing.assert_array_equal(made, expected)


def test_nothing_to_do_gives_the_same_map() -> None:
    empty = np.zeros((3, 4, 5), dtype=np.uint8)
    chain = [step(KEEP_LARGEST, 1, 2), step(REMOVE_SMALL, 1, minimum_mm3=9), step(FILL_HOLES, 2, fill=2)]
    np.testing.assert_array_equal(postprocess(empty, chain, voxel_size=0.5), empty)
    assert postprocess(empty, (), voxel_size=0.5) is empty


def test_a_region_may_be_filled_with_an_integer_that_the_map_could_not_hold() -> None:
    labels = np.zeros((1, 5, 5), dtype=np.uint8)
    labels[0, 1:4, 1:4] = 1
    labels[0, 2, 2] = 0
    assert postprocess(labels, [step(FILL_HOLES, 1, fill=300)], voxel_size=1)[0, 2, 2] == 300


def test_faulty_steps_are_named() -> None:
    with pytest.raises(RecordError, match="'smooth'"):
        step("smooth", 1)
    with pytest.raises(RecordError, match="nan"):
        step(REMOVE_SMALL, 1, minimum_mm3=float("nan"))
    written = records.to_json(PostProcessing(steps=(step(KEEP_LARGEST, 1),)))
    with pytest.raises(RecordError, match="smooth"):
        records.from_json(PostProcessing, written.replace(KEEP_LARGEST, "smooth"))
