"""Resizing against scipy, scikit-image and batchgenerators, which evaluate splines voxel by voxel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.transform import resize as skimage_resize

from autoseg.ops.resample import resize, resize_labels, resize_matrix, resize_planes, separate_axis, target_shape
from autoseg.ops.spline import bands

LENGTH = st.integers(1, 40)
SHAPE = st.tuples(*[st.integers(1, 18)] * 3)
QUICK = settings(max_examples=60, deadline=None, derandomize=True)


def reference(channel: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    return skimage_resize(channel.astype(np.float64), shape, order, mode="edge", anti_aliasing=False)


def reference_separate(channel: np.ndarray, shape: tuple[int, ...], order: int, axis: int, order_z: int) -> np.ndarray:
    """Slice by slice, then half-pixel-centred interpolation along the axis: what nnU-Net does."""
    plane = [length for other, length in enumerate(shape) if other != axis]
    slices = np.stack([reference(part, plane, order) for part in np.moveaxis(channel, axis, 0)], axis=axis)
    scale = slices.shape[axis] / shape[axis]
    grid = np.indices(shape).astype(float)
    grid[axis] = (grid[axis] + 0.5) * scale - 0.5
    return ndimage.map_coordinates(slices, grid, order=order_z, mode="nearest")


@QUICK
@given(n_in=LENGTH, n_out=LENGTH, order=st.integers(0, 5), seed=st.integers(0, 99))
def test_the_matrix_is_scipys_zoom(n_in: int, n_out: int, order: int, seed: int) -> None:
    signal = np.random.default_rng(seed).standard_normal(n_in)
    expected = ndimage.zoom(signal, n_out / n_in, order=order, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(resize_matrix(n_in, n_out, order) @ signal, expected, atol=1e-11)


def test_a_matrix_keeps_constants_and_cannot_be_changed() -> None:
    matrix = resize_matrix(300, 211, 3)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-11)
    with pytest.raises(ValueError, match="read-only"):
        matrix[0, 0] = 2


def test_bands_leave_out_only_what_float32_cannot_hold() -> None:
    dense = np.zeros((512, 300))
    for band in bands(300, 512, 3):
        dense[band.start : band.stop, band.first : band.last] = band.weights
    np.testing.assert_allclose(dense, resize_matrix(300, 512, 3), atol=1e-7)
    assert sum(band.weights.size for band in bands(300, 512, 3)) < 0.3 * dense.size


@pytest.mark.parametrize(("n_in", "n_out", "order"), [(0, 3, 1), (3, 0, 1), (3, 3, 6)])
def test_impossible_matrices_are_refused(n_in: int, n_out: int, order: int) -> None:
    with pytest.raises(ValueError, match="cannot resize"):
        resize_matrix(n_in, n_out, order)


@pytest.mark.parametrize("device", [None, "cpu"])
@QUICK
@given(old=SHAPE, new=SHAPE, order=st.sampled_from([0, 1, 2, 3]), seed=st.integers(0, 99))
def test_resize_equals_scikit_image(
    device: str | None, old: tuple[int, ...], new: tuple[int, ...], order: int, seed: int
) -> None:
    image = np.random.default_rng(seed).standard_normal((2, *old)).astype(np.float32) * 50
    resized = resize(image, new, order=order, device=device)
    assert resized.dtype == np.float32
    for channel, result in zip(image, resized, strict=True):
        scale = np.abs(channel).max()
        np.testing.assert_allclose(result / scale, reference(channel, new, order) / scale, atol=1e-5)


@pytest.mark.parametrize("new", [(71, 90, 133), (97, 64, 101)])
def test_resize_equals_scikit_image_over_several_bands(new: tuple[int, ...]) -> None:
    image = np.random.default_rng(5).integers(-1024, 3000, (1, 83, 77, 150)).astype(np.int16)
    result = resize(image, new, order=3)[0]
    np.testing.assert_allclose(result / 3000, reference(image[0], new, 3) / 3000, atol=1e-5)
    assert image.min() <= result.min() and result.max() <= image.max()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("order_z", "length"), [(0, 4), (0, 19), (1, 5), (3, 13), (0, 9)])
def test_a_separate_axis_is_resized_apart(axis: int, order_z: int, length: int) -> None:
    old, new = [11, 11, 11], [17, 17, 17]
    old[axis], new[axis] = 9, length
    image = np.random.default_rng(axis).standard_normal((1, *old)).astype(np.float32)
    result = resize(image, new, order=3, separate_axis=axis, order_z=order_z)[0]
    np.testing.assert_allclose(result, reference_separate(image[0], tuple(new), 3, axis, order_z), atol=2e-5)


def test_an_image_of_the_right_shape_stays_as_it_is() -> None:
    image = np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4)
    np.testing.assert_array_equal(resize(image, (2, 3, 4), order=3), image)


@pytest.mark.parametrize("kind", [np.int16, np.float64])
@pytest.mark.parametrize("depth", [1, 3, 4, 13])
def test_planes_that_keep_their_number_share_one_range(depth: int, kind: type) -> None:
    image = (np.random.default_rng(depth).standard_normal((1, depth, 20, 21)) * 500).astype(kind)
    result = resize(image[:, ::-1], (depth, 31, 17), order=3)[0]
    np.testing.assert_allclose(result / 500, reference(image[0, ::-1], (depth, 31, 17), 3) / 500, atol=1e-5)


@pytest.mark.parametrize("depth", [2, 29])
def test_planes_are_asked_for_a_few_at_a_time(depth: int) -> None:
    image = np.random.default_rng(0).standard_normal((11, 9, 8)).astype(np.float32)
    asked = []

    def planes(start: int, stop: int) -> np.ndarray:
        asked.append(stop - start)
        return image[start:stop].copy()

    out = np.empty((depth, 12, 13), dtype=np.float32)
    resize_planes(planes, image.shape, out, order=3, separate_axis=0, order_z=0)
    np.testing.assert_allclose(out, reference_separate(image, out.shape, 3, 0, 0), atol=2e-5)
    assert max(asked) < len(image)


def test_resize_wants_channels_first() -> None:
    with pytest.raises(ValueError, match="four axes"):
        resize(np.zeros((4, 4, 4)), (2, 2, 2), order=1)


def indicator_scores(labels: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    values = np.unique(labels)
    return values, np.stack([reference(labels == value, shape, 1) for value in values])


@QUICK
@given(old=SHAPE, new=SHAPE, seed=st.integers(0, 999), kind=st.sampled_from([np.uint8, np.int16, np.int32]))
def test_labels_go_to_the_largest_indicator(old: tuple[int, ...], new: tuple[int, ...], seed: int, kind: type) -> None:
    """Ties (within rounding) go to the nearest voxel's label, or else to the smallest of the tied."""
    labels = np.random.default_rng(seed).integers(0, 5, old).astype(kind) * 7
    result = resize_labels(labels, new)
    assert result.dtype == kind
    values, scores = indicator_scores(labels, new)
    tied = scores > scores.max(axis=0) - 1e-9
    nearest = reference(labels, new, 0)
    smallest = values[tied.argmax(axis=0)]
    nearest_ties = (tied & (values[:, None, None, None] == nearest)).any(axis=0)
    np.testing.assert_array_equal(result, np.where(nearest_ties, nearest, smallest))


def test_labels_agree_with_the_peers_own_resampling() -> None:
    resize_segmentation = pytest.importorskip("batchgenerators.augmentations.utils").resize_segmentation
    field = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((20, 32, 28)), 2)
    labels = np.digitize(field, np.quantile(field, [0.3, 0.6, 0.8, 0.95])).astype(np.int16)
    for shape in [(27, 41, 45), (13, 40, 20), (40, 64, 56)]:
        ours, theirs = resize_labels(labels, shape), resize_segmentation(labels, shape, 1)
        different = ours != theirs
        scores = np.sort(indicator_scores(labels, shape)[1], axis=0)
        # The peer compares sums in float64, so that rounding decides some ties that are exact on paper.
        assert (scores[-1] - scores[-2])[different].max(initial=0) < 1e-9
        assert different.mean() < 2e-3


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("length", [3, 15])
def test_labels_with_a_separate_axis_copy_the_nearest_slice(axis: int, length: int) -> None:
    labels = np.random.default_rng(3).integers(0, 4, (7, 7, 7)).astype(np.uint8)
    new = [12, 12, 12]
    new[axis] = length
    result = resize_labels(labels, new, separate_axis=axis)
    nearest = np.floor((np.arange(length) + 0.5) * 7 / length).astype(int)
    for index, source in enumerate(nearest):
        plane = np.take(labels, [source], axis=axis)
        expected = resize_labels(plane, tuple(1 if other == axis else 12 for other in range(3)))
        np.testing.assert_array_equal(np.take(result, [index], axis=axis), expected)


def test_many_labels_survive_a_change_of_resolution() -> None:
    blocks = np.kron(np.arange(1, 126).reshape(5, 5, 5), np.ones((4, 4, 4), dtype=np.int64)).astype(np.uint8)
    upsampled = resize_labels(blocks, (40, 40, 40))
    np.testing.assert_array_equal(upsampled, np.kron(blocks, np.ones((2, 2, 2), dtype=np.uint8)))


@pytest.mark.parametrize("new", [(30, 9, 11), (7, 40, 33), (14, 16, 50)])
def test_a_label_far_from_the_border_is_where_the_largest_indicator_is(new: tuple[int, ...]) -> None:
    labels = np.zeros((14, 16, 18), dtype=np.int16)
    labels[5:9, 2:3, 11:16] = np.random.default_rng(0).integers(-1, 3, (4, 1, 5))
    values, scores = indicator_scores(labels, new)
    clear = np.sort(scores, axis=0)[-1] - np.sort(scores, axis=0)[-2] > 1e-9
    result = resize_labels(labels, new)
    np.testing.assert_array_equal(result[clear], values[scores.argmax(axis=0)][clear])


def test_labels_of_higher_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="order 0 and 1"):
        resize_labels(np.zeros((3, 3, 3), dtype=np.uint8), (4, 4, 4), order=3)


@pytest.mark.parametrize(
    ("current", "target", "expected"),
    [
        ((1, 1, 1), (1, 1, 1), None),
        ((5, 1, 1), (1, 1, 1), 0),
        ((1, 1, 3.01), (1, 1, 1), 2),
        ((3, 1, 1), (3, 1, 1), None),
        ((1, 1, 1), (1, 5, 1), 1),
        ((5, 1, 1), (1, 1, 9), 0),
        ((5, 5, 1), (1, 9, 1), None),
        ((0.24, 1.25, 1.25), (0.24, 1.25, 1.25), None),
    ],
)
def test_the_coarsest_axis_is_apart_when_it_is_alone(
    current: tuple[float, ...], target: tuple[float, ...], expected: int | None
) -> None:
    assert separate_axis(current, target) == expected


def test_the_threshold_of_anisotropy_can_be_moved() -> None:
    assert separate_axis((2.5, 1, 1), (1, 1, 1), threshold=2.0) == 0
    assert separate_axis((5, 1, 1), (1, 1, 1), threshold=6.0) is None


def test_target_shapes_round_half_to_even_and_never_vanish() -> None:
    assert target_shape((10, 5, 100), (1, 1, 0.7), (1, 2, 1)) == (10, 2, 70)
    assert target_shape((1, 3, 3), (0.1, 1, 1), (5, 1, 1)) == (1, 3, 3)
