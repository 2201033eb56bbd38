"""Rotation, zoom and mirroring against numpy and scipy; image and label together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from autoseg.augment import Spatial, cut, rotation_matrix, source_extent


def make(degrees: list[float], scale: float = 1.0, flips: tuple[int, ...] = ()) -> Spatial:
    return Spatial(matrix=rotation_matrix(degrees) * scale, identity=False, flips=flips)


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, (0, *(1.5,) * (len(shape) - 1))).astype(np.float32)


def blobs(shape: tuple[int, ...], count: int, seed: int = 0) -> np.ndarray:
    """(1, *shape) int16 with labels 0 .. count - 1 in connected patches."""
    scores = smooth((count, *shape), seed)
    return scores.argmax(0)[None].astype(np.int16)


def mirrored_cut(
    image: torch.Tensor, label: torch.Tensor, spatial: Spatial, patch: tuple[int, ...], **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    image, label, flips = cut(image, label, spatial, patch, **options)
    axes = [axis + 1 for axis in flips]
    return image.flip(axes), label.flip(axes)


def apply(image: np.ndarray, label: np.ndarray, spatial: Spatial, patch: tuple[int, ...], **options: Any) -> tuple:
    pair = mirrored_cut(torch.from_numpy(image), torch.from_numpy(label), spatial, patch, **options)
    return tuple(tensor.numpy() for tensor in pair)


def scipy_affine(volume: np.ndarray, matrix: np.ndarray, patch: tuple[int, ...]) -> np.ndarray:
    """Linear interpolation about the centres, the outside 0 (faded over one voxel, as for a zero-padded image)."""
    padded = np.pad(volume.astype(np.float64), 2)
    offset = (np.array(padded.shape) - 1) / 2 - matrix @ ((np.array(patch) - 1) / 2)
    return ndimage.affine_transform(padded, matrix, offset, patch, order=1, mode="constant")


@pytest.mark.parametrize(("about", "plane"), [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_right_angles_equal_rot90(about: int, plane: tuple[int, int], turns: int) -> None:
    shape = [8, 12, 16]
    shape[plane[0]] = shape[plane[1]]
    image, label = smooth((2, *shape)), blobs(tuple(shape), 4)
    degrees = [0.0, 0.0, 0.0]
    degrees[about] = 90.0 * turns
    out_image, out_label = apply(image, label, make(degrees), tuple(shape))
    axes = (plane[0] + 1, plane[1] + 1)
    np.testing.assert_allclose(out_image, np.rot90(image, -turns, axes), atol=1e-5)
    assert np.array_equal(out_label, np.rot90(label, -turns, axes))


def test_right_angles_in_2d_and_between_unlike_sides() -> None:
    image, label = smooth((1, 20, 30)), blobs((20, 30), 3)
    out_image, out_label = apply(image, label, make([90.0]), (30, 20))
    np.testing.assert_allclose(out_image, np.rot90(image, -1, (1, 2)), atol=1e-5)
    assert np.array_equal(out_label, np.rot90(label, -1, (1, 2)))


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("degrees", [[0.0, 0.0, 0.0], [25.0, -10.0, 30.0]])
def test_3d_equals_scipy(scale: float, degrees: list[float]) -> None:
    image, label = smooth((2, 24, 20, 22)), blobs((24, 20, 22), 4)
    spatial, patch = make(degrees, scale), (16, 18, 14)
    out_image, out_label = apply(image, label, spatial, patch)
    for channel in range(2):
        expected = scipy_affine(image[channel], spatial.matrix, patch)
        np.testing.assert_allclose(out_image[channel], expected, atol=1e-4)
    scores = np.stack([scipy_affine(label[0] == value, spatial.matrix, patch) for value in range(4)])
    scores[0] += 1 - scores.sum(0)
    top = np.sort(scores, axis=0)
    clear = top[-1] - top[-2] > 1e-4
    assert clear.mean() > 0.99
    assert np.array_equal(out_label[0][clear], scores.argmax(0)[clear])


def test_2d_equals_scipy() -> None:
    image, label = smooth((1, 60, 50)), blobs((60, 50), 2)
    spatial = make([133.0], 1.2)
    out_image, out_label = apply(image, label, spatial, (32, 40))
    np.testing.assert_allclose(out_image[0], scipy_affine(image[0], spatial.matrix, (32, 40)), atol=1e-4)
    score = scipy_affine(label[0], spatial.matrix, (32, 40))
    clear = np.abs(score - 0.5) > 1e-4
    assert np.array_equal(out_label[0][clear], (score > 0.5)[clear])


def test_in_plane_transforms_of_3d_patches_work_slice_by_slice() -> None:
    image, label = smooth((2, 5, 30, 28)), blobs((5, 30, 28), 3)
    spatial, patch = make([40.0], 1.1), (5, 20, 18)
    out_image, out_label = apply(image, label, spatial, patch)
    for z in range(5):
        slice_image, slice_label = apply(image[:, z].copy(), label[:, z].copy(), spatial, patch[1:])
        np.testing.assert_allclose(out_image[:, z], slice_image, atol=1e-6)
        assert np.array_equal(out_label[:, z], slice_label)


@pytest.mark.parametrize(
    ("degrees", "patch"), [([28.0, -30.0, 15.0], (12, 16, 9)), ([171.0], (20, 14)), ([60.0], (6, 24, 24))]
)
@pytest.mark.parametrize("scale", [0.7, 1.4])
def test_no_border_where_the_source_extent_has_data(degrees: list[float], patch: tuple[int, ...], scale: float) -> None:
    spatial = make(degrees, scale)
    extent = source_extent(spatial, patch)
    image, label = np.full((1, *extent), 3.0, np.float32), np.full((1, *extent), 2, np.int16)
    out_image, out_label = apply(image, label, spatial, patch)
    np.testing.assert_allclose(out_image, 3.0, atol=1e-4)
    assert (out_label == 2).all()


def test_image_and_label_stay_aligned() -> None:
    rng = np.random.default_rng(0)
    patch = (14, 18, 12)
    for _ in range(20):
        flips = tuple(axis for axis in range(3) if rng.random() < 0.5)
        spatial = make(list(rng.uniform(-30, 30, 3)), rng.uniform(0.7, 1.4), flips)
        label = blobs(source_extent(spatial, patch), 2, int(rng.integers(1000)))
        image, moved = apply(label.astype(np.float32), label, spatial, patch)
        clear = np.abs(image - 0.5) > 1e-4
        assert clear.mean() > 0.95
        assert np.array_equal(moved[clear], (image > 0.5)[clear])


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.int64])
def test_labels_keep_type_and_gain_no_value(kind: type) -> None:
    label = (blobs((20, 20, 20), 3) * 40).astype(kind)
    for degrees in ([10.0, 20.0, 30.0], [-5.0, 0.0, 0.0]):
        _, moved = apply(smooth((1, 20, 20, 20)), label, make(degrees, 1.3), (20, 20, 20))
        assert moved.dtype == kind
        assert set(np.unique(moved)) <= {0, 40, 80}


def test_the_outside_is_what_was_asked_for() -> None:
    label = np.full((1, 10, 10), 2, np.int16)
    image = np.ones((1, 10, 10), np.float32)
    for outside in (0, -1):
        _, moved = apply(image, label, make([0.0], 3.0), (10, 10), outside=outside)
        assert moved[0, 0, 0] == outside
        assert moved[0, 5, 5] == 2
        assert set(np.unique(moved)) == {outside, 2}


@pytest.mark.parametrize(
    ("shape", "patch", "degrees"), [((20, 18, 22), (12, 14, 10), [25.0, -10.0, 30.0]), ((40, 44), (30, 28), [77.0])]
)
@pytest.mark.parametrize("channels", [1, 8])
def test_a_patch_around_any_place_equals_one_around_the_middle_of_what_is_padded(
    shape: tuple[int, ...], patch: tuple[int, ...], degrees: list[float], channels: int
) -> None:
    image, label = smooth((channels, *shape)), blobs(shape, 4)
    centre = [3.5, 7.0, 12.5][: len(shape)]
    margin = 40
    pad = [(margin + size - 1 - round(2 * place), margin) for size, place in zip(shape, centre, strict=True)]
    whole_image, whole_label = np.pad(image, [(0, 0), *pad]), np.pad(label, [(0, 0), *pad], constant_values=-1)
    spatial = make(degrees, 1.3)
    out_image, out_label = apply(image, label, spatial, patch, centre=centre, outside=-1)
    expected_image, expected_label = apply(whole_image, whole_label, spatial, patch)
    assert (expected_label == -1).any()
    np.testing.assert_allclose(out_image, expected_image, atol=1e-4)
    assert (out_label == expected_label).mean() > 0.999


@pytest.mark.parametrize("kind", [np.int8, np.int16])
@pytest.mark.parametrize(
    ("shape", "patch", "degrees"), [((20, 18, 22), (12, 14, 10), [25.0, -10.0, 30.0]), ((40, 44), (30, 28), [77.0])]
)
@pytest.mark.parametrize("channels", [1, 8])
def test_a_voxel_of_the_outside_around_the_image_stands_for_all_of_it(
    shape: tuple[int, ...], patch: tuple[int, ...], degrees: list[float], channels: int, kind: type
) -> None:
    image, label = smooth((channels, *shape)), blobs(shape, 4).astype(kind)
    centre = np.array([3.5, 7.0, 12.5][: len(shape)])
    expected = apply(image, label, make(degrees, 1.3), patch, centre=centre, outside=-1)
    border = [(0, 0), *[(1, 1)] * len(shape)]
    framed = np.pad(image, border), np.pad(label, border, constant_values=-1)
    found = apply(*framed, make(degrees, 1.3), patch, centre=centre + 1, padded=True)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    assert (found[1] == -1).any()
    assert (found[1] == expected[1]).mean() > 0.999


def test_an_unsigned_label_is_given_a_sign_for_a_negative_outside() -> None:
    label = np.full((1, 10, 10), 200, np.uint8)
    _, moved = apply(np.ones((1, 10, 10), np.float32), label, make([0.0], 3.0), (10, 10), outside=-1)
    assert (moved[0, 0, 0], moved[0, 5, 5]) == (-1, 200)


@pytest.mark.parametrize("voxels_at_once", [1, 3 * 16**2, 2**20])
def test_patches_that_are_made_in_parts_come_out_the_same(voxels_at_once: int) -> None:
    image, label = smooth((1, 18, 18, 18)), blobs((18, 18, 18), 6) - 1
    together = apply(image, label, make([20.0, 10.0, -15.0]), (16, 16, 16))
    in_parts = apply(image, label, make([20.0, 10.0, -15.0]), (16, 16, 16), voxels_at_once=voxels_at_once)
    np.testing.assert_allclose(together[0], in_parts[0], atol=1e-6)
    assert np.array_equal(together[1], in_parts[1])


@pytest.mark.parametrize(
    ("shape", "patch", "degrees"), [((24, 20, 22), (16, 18, 14), [25.0, -10.0, 30.0]), ((40, 44), (30, 28), [77.0])]
)
def test_labels_equal_scipy_where_every_cell_has_many(
    shape: tuple[int, ...], patch: tuple[int, ...], degrees: list[float]
) -> None:
    label = np.random.default_rng(0).integers(-1, 9, (1, *shape)).astype(np.int16)
    spatial = make(degrees, 0.9)
    _, moved = apply(np.zeros(label.shape, np.float32), label, spatial, patch, outside=-1)
    scores = np.stack([scipy_affine(label[0] == value, spatial.matrix, patch) for value in range(-1, 9)])
    scores[0] += 1 - scores.sum(0)
    top = np.sort(scores, axis=0)
    clear = top[-1] - top[-2] > 1e-4
    assert clear.mean() > 0.99
    assert np.array_equal(moved[0][clear], scores.argmax(0)[clear] - 1)


def test_of_labels_that_share_a_voxel_evenly_the_lowest_wins() -> None:
    label = np.array([[[7, 3], [3, 7]]], np.int16)
    centre = Spatial(matrix=np.eye(2), identity=False, flips=())
    _, moved = apply(np.zeros((1, 2, 2), np.float32), label, centre, (1, 1))
    assert moved.tolist() == [[[3]]]


def test_a_patch_larger_than_what_is_interpolated_at_once_equals_scipy() -> None:
    image, label = smooth((1, 52, 60, 56)), blobs((52, 60, 56), 5)
    spatial, patch = make([12.0, -20.0, 8.0], 0.8), (44, 50, 46)
    out_image, out_label = apply(image, label, spatial, patch)
    np.testing.assert_allclose(out_image[0], scipy_affine(image[0], spatial.matrix, patch), atol=1e-4)
    scores = np.stack([scipy_affine(label[0] == value, spatial.matrix, patch) for value in range(5)])
    scores[0] += 1 - scores.sum(0)
    assert (out_label[0] == scores.argmax(0)).mean() > 0.9999


@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_mirroring_flips_only_its_axes(flips: tuple[int, ...]) -> None:
    image, label = smooth((2, 6, 8, 10)), blobs((6, 8, 10), 3)
    spatial = Spatial(matrix=np.eye(3), identity=True, flips=flips)
    out_image, out_label = apply(image, label, spatial, (4, 8, 6))
    axes = tuple(axis + 1 for axis in flips)
    assert np.array_equal(out_image, np.flip(image[:, 1:5, :, 2:8], axes))
    assert np.array_equal(out_label, np.flip(label[:, 1:5, :, 2:8], axes))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    image, label = torch.from_numpy(smooth((2, 24, 20, 22))), torch.from_numpy(blobs((24, 20, 22), 4))
    for spatial in (make([20.0, 10.0, -15.0], 1.2, (0, 2)), make([70.0], 0.8)):
        on_cpu = mirrored_cut(image, label, spatial, (24, 16, 16))
        on_gpu = mirrored_cut(image.cuda(), label.cuda(), spatial, (24, 16, 16))
        torch.testing.assert_close(on_gpu[0].cpu(), on_cpu[0], rtol=0, atol=1e-4)
        assert (on_gpu[1].cpu() == on_cpu[1]).float().mean() > 0.999
