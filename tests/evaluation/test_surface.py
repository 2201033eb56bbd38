from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the field's name
from scipy.ndimage import distance_transform_edt

from autoseg.evaluation.surface import assd, hd95, surface, surface_dice, surface_distances


def naive_surface(mask: np.ndarray) -> list[tuple[int, ...]]:
    """By the book: a voxel of the mask with a face neighbour that is not of the mask, or beyond the array."""
    found = []
    for voxel in map(tuple, np.argwhere(mask).tolist()):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            near = list(voxel)
            near[axis] += step
            beyond = not 0 <= near[axis] < mask.shape[axis]
            if mask.shape[axis] > 1 and (beyond or not mask[tuple(near)]):
                found.append(voxel)
                break
    return found


def naive_distances(source: np.ndarray, target: np.ndarray, spacing: tuple[float, ...]) -> list[float]:
    return [
        min(math.dist(np.multiply(a, spacing), np.multiply(b, spacing)) for b in naive_surface(target))
        for a in naive_surface(source)
    ]


def cuboid(shape: tuple[int, ...], start: tuple[int, ...], stop: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def ball(
    shape: tuple[int, int, int], centre_mm: tuple[float, ...], radius_mm: float, spacing: tuple[float, ...]
) -> np.ndarray:
    grid = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    return sum((axis - centre) ** 2 for axis, centre in zip(grid, centre_mm, strict=True)) <= radius_mm**2


@pytest.mark.parametrize("shape", [(6, 7, 8), (1, 12, 9), (12, 9), (1, 1, 9)])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_surface_and_distances_agree_with_brute_force(shape: tuple[int, ...], density: float) -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.random(shape) < density for _ in range(2))
    first.flat[0] = second.flat[-1] = True
    spacing = (2.5, 0.7, 1.1)[-len(shape) :]
    assert sorted(map(tuple, np.argwhere(surface(first)).tolist())) == sorted(naive_surface(first))
    forward, backward = surface_distances(first, second, spacing)
    np.testing.assert_allclose(sorted(forward), sorted(naive_distances(first, second, spacing)), atol=1e-12)
    np.testing.assert_allclose(sorted(backward), sorted(naive_distances(second, first, spacing)), atol=1e-12)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.9), (0.4, 2.0, 2.0), (50.0, 4.0, 4.0), (1, 1, 3.5)])
def test_near_and_far_voxels_have_the_distances_of_a_transform(spacing: tuple[float, float, float]) -> None:
    shape = (24, 40, 36)
    first = ball(shape, (12, 18, 18), 8.0, (1.0, 1.0, 1.0))
    second = np.roll(first, (1, -2, 3), axis=(0, 1, 2)) | cuboid(shape, (10, 16, 14), (13, 20, 28))
    # A false structure at the far end of the volume, and one voxel at its very corner.
    second[-3:, -4:, -5:] = second[0, 0, 0] = True
    surfaces = surface(first), surface(second)
    for found, source, target in zip(surface_distances(first, second, spacing), surfaces, surfaces[::-1], strict=True):
        np.testing.assert_allclose(found, distance_transform_edt(~target, sampling=spacing)[source], rtol=1e-12)


def test_cuboids_shifted_along_the_coarse_axis_are_one_slice_apart() -> None:
    spacing = (5.0, 1.0, 1.0)
    first = cuboid((10, 20, 20), (2, 4, 4), (6, 16, 16))
    second = cuboid((10, 20, 20), (3, 4, 4), (7, 16, 16))
    forward, backward = surface_distances(first, second, spacing)
    # The lowest slice (12 x 12) of the first lies 5 mm below the second's, or less far from the side walls: a voxel
    # at depth k inside the ring of the top face sees the wall of the second at k mm. All else of the first's wall is
    # shared, and its top face lies inside the second, k mm from the wall.
    depth = np.minimum.outer(*[np.minimum(np.arange(12), 11 - np.arange(12))] * 2)
    lowest, highest = np.full(144, 5.0), np.minimum(depth.ravel(), 5.0)
    shared = np.zeros(2 * 44)
    expected = np.sort(np.concatenate([lowest, highest, shared]))
    np.testing.assert_allclose(np.sort(forward), expected)
    np.testing.assert_allclose(np.sort(backward), expected)
    assert hd95(forward, backward) == 5.0
    assert assd(forward, backward) == pytest.approx(expected.mean())
    assert surface_dice(forward, backward, 2.0) == pytest.approx(np.mean(expected <= 2))
    assert surface_dice(forward, backward, 5.0) == 1.0


def test_concentric_balls_are_apart_by_the_difference_of_their_radii() -> None:
    spacing = (2.0, 1.0, 1.0)
    shape, centre = (31, 61, 61), (30.0, 30.0, 30.0)
    forward, backward = surface_distances(
        ball(shape, centre, 25.0, spacing), ball(shape, centre, 17.0, spacing), spacing
    )
    # A voxel surface lies within one voxel diagonal below the true radius.
    assert assd(forward, backward) == pytest.approx(8.0, abs=0.6)
    assert hd95(forward, backward) == pytest.approx(8.0, abs=1.5)
    assert surface_dice(forward, backward, 5.0) == 0.0
    assert surface_dice(forward, backward, 11.0) == 1.0


def test_simpleitk_contours_and_hausdorff_agree() -> None:
    spacing = (3.0, 0.8, 1.2)
    shape = (16, 40, 36)
    first, second = ball(shape, (20, 16, 20), 11.0, spacing), ball(shape, (26, 15, 18), 9.0, spacing)
    images = []
    for mask in (first, second):
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        image.SetSpacing(spacing[::-1])
        images.append(sitk.LabelContour(image, fullyConnected=False))
    forward, backward = surface_distances(first, second, spacing)
    oracle = sitk.HausdorffDistanceImageFilter()
    oracle.Execute(*images)
    assert max(forward.max(), backward.max()) == pytest.approx(oracle.GetHausdorffDistance(), rel=1e-5)
    # ITK averages the two directed means; our assd weighs every surface voxel of both the same.
    assert (forward.mean() + backward.mean()) / 2 == pytest.approx(oracle.GetAverageHausdorffDistance(), rel=1e-5)

    target = sitk.SignedMaurerDistanceMap(images[1], squaredDistance=False, useImageSpacing=True)
    distances = np.abs(sitk.GetArrayFromImage(target))[sitk.GetArrayFromImage(images[0]) > 0]
    np.testing.assert_allclose(np.sort(forward), np.sort(distances), rtol=1e-5, atol=1e-5)


def test_hd95_is_the_larger_of_two_directed_percentiles() -> None:
    forward = np.arange(101.0)
    backward = np.zeros(1000)
    assert hd95(forward, backward) == 95.0
    assert hd95(backward, forward) == 95.0


@pytest.mark.parametrize("count", [1, 2, 3, 20, 21, 22, 31, 1000])
def test_percentiles_are_those_of_numpy(count: int) -> None:
    forward, backward = np.random.default_rng(count).random((2, count))
    assert hd95(forward, backward) == max(np.percentile(forward, 95), np.percentile(backward, 95))


def test_a_distance_of_just_the_tolerance_is_within_it() -> None:
    first = cuboid((1, 8, 80), (0, 0, 10), (1, 8, 11))
    second = cuboid((1, 8, 80), (0, 0, 30), (1, 8, 31))
    forward, backward = surface_distances(first, second, (1.0, 0.1, 0.1))
    assert surface_dice(forward, backward, 2.0) == 1.0
    assert surface_dice(forward, backward, 1.99) == 0.0


def test_a_cut_by_ignored_voxels_is_no_surface() -> None:
    whole = cuboid((1, 20, 20), (0, 5, 5), (1, 15, 15))
    ignored = cuboid((1, 20, 20), (0, 10, 0), (1, 20, 20))
    contour = surface(whole & ~ignored, ignored)
    expected = surface(whole) & ~ignored
    np.testing.assert_array_equal(contour, expected)


def test_without_a_surface_distances_are_undefined_and_surface_dice_is_zero() -> None:
    mask = cuboid((4, 5, 6), (1, 1, 1), (3, 3, 3))
    forward, backward = surface_distances(mask, np.zeros_like(mask), (1, 1, 1))
    assert np.isnan(hd95(forward, backward))
    assert np.isnan(assd(forward, backward))
    assert surface_dice(forward, backward, 2.0) == 0.0
    nothing = surface_distances(np.zeros_like(mask), np.zeros_like(mask), (1, 1, 1))
    assert np.isnan(surface_dice(*nothing, 2.0))
