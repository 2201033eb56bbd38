"""What is drawn: probabilities, ranges, and how much of the image a transform needs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from autoseg.augment import Policy, Spatial, draw_intensity, draw_spatial, make_policy, rotation_matrix, source_extent
from autoseg.errors import SettingError
from autoseg.schema.plan import Architecture, Configuration, Cost, Resampling, Topology

POLICY = Policy(ndim=3, rotation=(30.0, 30.0, 30.0), dummy_2d=False, mirror_axes=(0, 2))
DRAWS = 4000


def configuration(patch: tuple[int, ...]) -> Configuration:
    ones = (1,) * len(patch)
    return Configuration(
        name="any",
        ndim=len(patch),
        spacing=tuple(1.0 for _ in patch),
        median_shape=patch,
        patch_size=patch,
        batch_size=2,
        normalization=(),
        resampling=Resampling(),
        architecture=Architecture(name="unet"),
        topology=Topology(strides=(ones,), kernels=(ones,), features=(8,)),
        batch_dice=False,
        cost=Cost(parameters=1, memory_bytes=1, flops=1),
    )


@pytest.mark.parametrize(
    ("patch", "rotation", "dummy_2d"),
    [
        ((40, 56, 40), (30.0, 30.0, 30.0), False),
        ((128, 128, 128), (30.0, 30.0, 30.0), False),
        ((56, 168, 100), (30.0, 30.0, 30.0), False),
        ((10, 256, 224), (180.0,), True),
        ((512, 512), (180.0,), False),
        ((96, 64), (180.0,), False),
        ((512, 256), (15.0,), False),
    ],
)
def test_rotation_follows_the_shape_of_the_patch(
    patch: tuple[int, ...], rotation: tuple[float, ...], dummy_2d: bool
) -> None:
    policy = make_policy(configuration(patch), mirror_axes=range(len(patch)))
    assert (policy.rotation, policy.dummy_2d) == (rotation, dummy_2d)
    assert (policy.ndim, policy.mirror_axes) == (len(patch), tuple(range(len(patch))))


def test_a_mirror_axis_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(SettingError, match="do not fit patches with 2 axes"):
        make_policy(configuration((64, 64)), mirror_axes=(0, 2))


def within_binomial_bounds(hits: float, trials: int, probability: float) -> bool:
    # Five standard deviations: a right program fails once in two million.
    return abs(hits - trials * probability) <= 5 * math.sqrt(trials * probability * (1 - probability))


def test_spatial_transforms_occur_as_often_as_stated() -> None:
    drawn = [draw_spatial(POLICY, np.random.default_rng([7, n])) for n in range(DRAWS)]
    scales = np.array([abs(np.linalg.det(one.matrix)) ** (1 / 3) for one in drawn])
    zoomed = np.abs(scales - 1) > 1e-9
    turned = [not np.allclose(one.matrix / scale, np.eye(3)) for one, scale in zip(drawn, scales, strict=True)]
    assert within_binomial_bounds(zoomed.sum(), DRAWS, 0.2)
    assert within_binomial_bounds(sum(turned), DRAWS, 0.2)
    assert within_binomial_bounds((zoomed & turned).sum(), DRAWS, 0.04)
    assert within_binomial_bounds(sum(one.identity for one in drawn), DRAWS, 0.64)
    for axis, probability in ((0, 0.5), (1, 0.0), (2, 0.5)):
        assert within_binomial_bounds(sum(axis in one.flips for one in drawn), DRAWS, probability)
    assert all(np.array_equal(one.matrix, np.eye(3)) for one in drawn if one.identity)
    assert 0.7 <= scales[zoomed].min() < 0.72
    assert 1.38 < scales[zoomed].max() <= 1.4


def test_in_plane_rotations_turn_all_the_way() -> None:
    policy = replace(POLICY, rotation=(180.0,), dummy_2d=True, p_rotation=1.0, p_scale=0.0)
    matrices = [draw_spatial(policy, np.random.default_rng([8, n])).matrix for n in range(500)]
    angles = np.degrees([math.atan2(matrix[1, 0], matrix[0, 0]) for matrix in matrices])
    assert angles.min() < -170
    assert angles.max() > 170


def test_intensity_transforms_occur_as_often_as_stated() -> None:
    channels = 3
    drawn = [draw_intensity(POLICY, np.random.default_rng([9, n]), channels) for n in range(DRAWS)]

    def often(values: list[np.ndarray], probability: float) -> bool:
        return within_binomial_bounds(sum(bool(value.any()) for value in values), DRAWS, probability)

    assert often([~np.isnan(np.atleast_1d(one.noise)) for one in drawn], 0.1)
    assert often([~np.isnan(one.brightness) for one in drawn], 0.15)
    assert often([~np.isnan(one.contrast) for one in drawn], 0.15)
    assert often([~np.isnan(one.inverted_gamma) for one in drawn], 0.1)
    assert often([~np.isnan(one.gamma) for one in drawn], 0.3)
    # Per channel half of the time, so that of three channels at least one is touched in 7 of 8.
    assert often([~np.isnan(one.blur) for one in drawn], 0.2 * 7 / 8)
    assert often([~np.isnan(one.low_resolution) for one in drawn], 0.25 * 7 / 8)
    for channel in range(channels):
        assert often([~np.isnan(one.blur[channel]) for one in drawn], 0.1)
        assert often([~np.isnan(one.low_resolution[channel : channel + 1]) for one in drawn], 0.125)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("brightness", 0.75, 1.25), ("contrast", 0.75, 1.25), ("gamma", 0.7, 1.5)]
)
def test_factors_fall_on_either_side_of_one_equally_often(name: str, low: float, high: float) -> None:
    always = replace(POLICY, p_brightness=1.0, p_contrast=1.0, p_gamma=1.0)
    values = np.array([getattr(draw_intensity(always, np.random.default_rng([n]), 1), name)[0] for n in range(DRAWS)])
    assert within_binomial_bounds((values < 1).sum(), DRAWS, 0.5)
    below, above = values[values < 1], values[values >= 1]
    assert (below.min() >= low) and (above.max() <= high)
    # Uniform on each side: the mean is the middle, with standard deviation width / sqrt(12 n).
    for side, middle, width in ((below, (low + 1) / 2, 1 - low), (above, (high + 1) / 2, high - 1)):
        assert abs(side.mean() - middle) < 5 * width / math.sqrt(12 * len(side))


def test_noise_blur_and_zoom_stay_in_their_ranges() -> None:
    always = replace(POLICY, p_noise=1.0, p_blur=1.0, p_blur_channel=1.0, p_low_resolution=1.0)
    drawn = [draw_intensity(always, np.random.default_rng([n]), 2) for n in range(500)]
    for values, low, high in (
        (np.array([one.noise for one in drawn]), 0.0, 0.1),
        (np.stack([one.blur for one in drawn]), 0.5, 1.0),
        (np.concatenate([one.low_resolution for one in drawn]), 0.5, 1.0),
    ):
        values = values[~np.isnan(values)]
        width = high - low
        assert low <= values.min() < low + 0.05 * width
        assert high - 0.05 * width < values.max() <= high
    assert len({one.noise_seed for one in drawn}) == len(drawn)


def test_the_same_generator_draws_the_same() -> None:
    for seed in range(20):
        first, second = (draw_spatial(POLICY, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(first.matrix, second.matrix)
        assert first.flips == second.flips


def test_rotation_matrices_rotate() -> None:
    for degrees in ([20.0, -30.0, 10.0], [75.0]):
        matrix = rotation_matrix(degrees)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-12)
        assert np.linalg.det(matrix) == pytest.approx(1)


def test_the_extent_of_nothing_and_of_right_angles_is_the_patch() -> None:
    identity = Spatial(matrix=np.eye(3), identity=True, flips=())
    assert source_extent(identity, (40, 56, 40)) == (40, 56, 40)
    assert source_extent(turned([0.0, 0.0, 180.0]), (40, 56, 40)) == (40, 56, 40)
    assert source_extent(turned([90.0]), (40, 60)) == (60, 60)
    # In-plane transforms of a 3D patch read no further slices.
    assert source_extent(turned([90.0]), (10, 40, 60)) == (10, 60, 60)


def turned(degrees: list[float], scale: float = 1.0) -> Spatial:
    return Spatial(matrix=rotation_matrix(degrees) * scale, identity=False, flips=())


@pytest.mark.parametrize("patch", [(40, 56, 40), (9, 16, 33), (12, 64, 64)])
def test_the_extent_covers_the_whole_transform_and_no_more(patch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    corners = np.stack(np.meshgrid(*[((size - 1) / 2, (1 - size) / 2) for size in patch], indexing="ij")).reshape(3, -1)
    for _ in range(100):
        spatial = turned(list(rng.uniform(-30, 30, 3)), rng.uniform(0.7, 1.4))
        extent = np.array(source_extent(spatial, patch))
        furthest = np.abs(spatial.matrix @ corners).max(axis=1)
        assert (furthest <= (extent - 1) / 2 + 1e-6).all()
        assert ((extent - patch) % 2 == 0).all()
        assert ((extent == patch) | (furthest > (extent - 3) / 2)).all()
