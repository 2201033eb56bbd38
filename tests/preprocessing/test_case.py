"""One case through preprocessing and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from skimage.transform import resize as skimage_resize

from autoseg.io.volume import Geometry, Volume
from autoseg.preprocessing import ANNOTATED, class_locations, preprocess_case, restore_labels
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.plan import Architecture, Configuration, Cost, Normalization, Plan, Resampling, Topology

LABELS = Labels(foreground=(Label(name="a", values=(4,)), Label(name="b", values=(9,)), Label(name="c", values=(7,))))
OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


def make_plan(
    spacing: tuple[float, ...],
    *,
    transpose: tuple[int, ...] = (0, 1, 2),
    schemes: tuple[str, ...] = ("none",),
    resampling: Resampling | None = None,
) -> Plan:
    ndim = len(spacing)
    ones = (1,) * ndim
    configuration = Configuration(
        name="x",
        ndim=ndim,
        spacing=spacing,
        median_shape=(8,) * ndim,
        patch_size=(8,) * ndim,
        batch_size=2,
        normalization=tuple(Normalization(scheme=scheme) for scheme in schemes),
        resampling=resampling or Resampling(),
        architecture=Architecture(name="unet"),
        topology=Topology(strides=(ones,), kernels=(ones,), features=(8,)),
        batch_dice=False,
        cost=Cost(parameters=1, memory_bytes=1, flops=1),
    )
    return Plan(
        dataset="Dataset001_X",
        device="cpu",
        memory_bytes=1,
        transpose=transpose,
        channels=("MRI",) * len(schemes),
        labels=LABELS,
        configurations=(configuration,),
    )


def volume(data: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Volume:
    return Volume(data, Geometry(spacing, (3.0, -2.0, 7.5), OBLIQUE, 3))


def phantom(shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image with an empty border and a label of three classes inside it."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5)
    label = np.digitize(field, np.quantile(field, [0.55, 0.7, 0.85])).astype(np.uint8)
    image = (1000 + 4000 * field).astype(np.int16)
    border = np.ones(shape, dtype=bool)
    border[1:-2, 3:-1, 2:-4] = False
    image[border] = label[border] = 0
    return image[None], label


def one_hot(label: np.ndarray, heads: int) -> np.ndarray:
    return (np.arange(heads)[:, None, None, None] == label).astype(np.float32)


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_a_label_comes_back_exactly_when_nothing_is_resampled(transpose: tuple[int, ...]) -> None:
    image, label = phantom((13, 17, 19))
    plan = make_plan((1.0, 1.0, 1.0), transpose=transpose)
    case = preprocess_case(volume(image), label, plan=plan, configuration=plan.configurations[0], id="p1")
    assert case.label is not None and case.id == "p1" and case.mask is None
    assert case.image.shape[1:] == tuple(np.array([10, 13, 13])[list(transpose)])
    back = restore_labels(one_hot(case.label, 4), case.trace, labels=LABELS, resampling=Resampling())
    np.testing.assert_array_equal(back, np.array([0, 4, 7, 9])[label])


def test_a_smooth_label_survives_a_finer_grid_and_back() -> None:
    grid = np.indices((20, 24, 28)) - np.array([10, 12, 14])[:, None, None, None]
    label = (np.sqrt((grid**2).sum(axis=0)) < 7).astype(np.uint8)
    plan = make_plan((0.7, 0.6, 0.55))
    case = preprocess_case(volume(np.ones((1, 20, 24, 28))), label, plan=plan, configuration=plan.configurations[0])
    assert case.label is not None and case.trace.resampled_shape == (29, 40, 51)
    back = restore_labels(one_hot(case.label, 4), case.trace, labels=LABELS, resampling=Resampling()) > 0
    assert 2 * (back & (label > 0)).sum() / (back.sum() + label.sum()) > 0.97


def test_the_image_is_cropped_then_normalised_then_resampled() -> None:
    image, _ = phantom((12, 20, 22))
    plan = make_plan((1.2, 0.8, 1.5), schemes=("zscore",))
    case = preprocess_case(volume(image), None, plan=plan, configuration=plan.configurations[0])
    cropped = image[0, 1:-2, 3:-1, 2:-4].astype(np.float64)
    assert case.trace.box == ((1, 10), (3, 19), (2, 18))
    normalised = (cropped - cropped.mean()) / cropped.std()
    expected = skimage_resize(normalised, (8, 20, 11), 3, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(case.image[0], expected, atol=1e-5)
    assert case.image.dtype == np.float32 and case.label is None


def test_thick_slices_are_resampled_apart_whatever_their_axis() -> None:
    image, label = phantom((20, 9, 22))
    plan = make_plan((2.0, 0.8, 1.0), transpose=(1, 0, 2))
    case = preprocess_case(volume(image, (1.0, 4.0, 1.0)), label, plan=plan, configuration=plan.configurations[0])
    assert case.trace.separate_axis == 0
    assert case.trace.resampled_shape == (2 * case.trace.cropped_shape[0], 21, 16)
    assert case.label is not None
    np.testing.assert_array_equal(case.image[0, 0::2], case.image[0, 1::2])
    np.testing.assert_array_equal(case.label[0::2], case.label[1::2])


def test_a_2d_configuration_leaves_the_slices_where_they_are() -> None:
    image, label = phantom((12, 20, 22))
    plan = make_plan((0.5, 2.0))
    case = preprocess_case(volume(image, (2.5, 1.0, 1.0)), label, plan=plan, configuration=plan.configurations[0])
    assert case.trace.target_spacing == (2.5, 0.5, 2.0)
    assert case.image.shape == (1, 9, 32, 8)


def test_a_picture_goes_there_and_back() -> None:
    label = np.kron(np.arange(4).reshape(2, 2), np.ones((9, 8))).astype(np.uint8)[None]
    image = Volume(np.full((3, 1, 18, 16), 200, dtype=np.uint8), Geometry.picture())
    plan = make_plan((1.0, 1.0), schemes=("rgb_0_1",) * 3)
    case = preprocess_case(image, label, plan=plan, configuration=plan.configurations[0])
    np.testing.assert_allclose(case.image, 200 / 255, rtol=1e-6)
    assert case.label is not None
    back = restore_labels(one_hot(case.label, 4), case.trace, labels=LABELS, resampling=Resampling())
    np.testing.assert_array_equal(back, np.array([0, 4, 7, 9])[label])


def test_masked_channels_hand_out_the_mask_at_network_resolution() -> None:
    grid = np.indices((24, 24, 24)) - 11.5
    ball = np.sqrt((grid**2).sum(axis=0)) < 10
    image = np.where(ball, np.random.default_rng(0).integers(50, 90, ball.shape), 0)[None]
    image[0, 12, 12, 12] = 0
    plan = make_plan((0.5, 0.5, 0.5), schemes=("zscore_masked",))
    case = preprocess_case(volume(image), None, plan=plan, configuration=plan.configurations[0])
    assert case.mask is not None and case.mask.dtype == bool and case.mask.shape == case.image.shape[1:]
    assert case.mask.mean() == pytest.approx(np.pi / 6, abs=0.02)
    assert case.mask[tuple(length // 2 for length in case.mask.shape)]
    assert np.abs(case.image[0, :4, :4, :4]).max() < 1e-3


def test_neither_geometry_nor_arrays_of_the_input_are_touched() -> None:
    image, label = phantom((10, 12, 14))
    source = volume(image.copy(), (0.9, 0.7, 0.7))
    geometry = replace(source.geometry)
    plan = make_plan((1.0, 1.0, 1.0), schemes=("zscore",))
    before = label.copy()
    case = preprocess_case(source, label, plan=plan, configuration=plan.configurations[0])
    assert source.geometry == geometry
    np.testing.assert_array_equal(source.data, image)
    np.testing.assert_array_equal(label, before)
    assert case.trace.shape == (10, 12, 14) and case.trace.spacing == (0.9, 0.7, 0.7)


def test_an_empty_image_is_kept_whole() -> None:
    plan = make_plan((1.0, 1.0, 1.0), schemes=("zscore",))
    empty = volume(np.zeros((1, 4, 5, 6)))
    case = preprocess_case(empty, None, plan=plan, configuration=plan.configurations[0])
    assert case.image.shape == (1, 4, 5, 6) and not case.image.any()


def test_a_label_of_another_shape_is_refused() -> None:
    plan = make_plan((1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="label is"):
        preprocess_case(
            volume(np.ones((1, 4, 5, 6))), np.zeros((4, 5, 5)), plan=plan, configuration=plan.configurations[0]
        )


def test_locations_lie_in_their_class_and_are_as_many_as_the_rule_says() -> None:
    label = np.zeros((30, 40, 50), dtype=np.int16)
    label[5:15, 5:15, 5:15] = 1
    label[20:22, 0:2, 0:2] = 2
    found = class_locations(label, LABELS, seed=0, maximum=300, minimum_fraction=0.5)
    # Leaves are 0, 4, 7, 9: a is index 1, c is index 2, b does not occur.
    assert sorted(found) == [0, 2]
    assert found[0].shape == (500, 3) and found[2].shape == (8, 3) and found[0].dtype == np.int32
    assert (label[tuple(found[0].T)] == 1).all() and (label[tuple(found[2].T)] == 2).all()
    assert len(np.unique(found[0], axis=0)) == 500
    assert len(class_locations(label, LABELS, seed=0, maximum=300)[0]) == 300


def test_locations_depend_on_the_seed_alone() -> None:
    label = (np.random.default_rng(0).random((20, 20, 20)) < 0.5).astype(np.uint8)
    first, again, other = (class_locations(label, LABELS, seed=seed, maximum=100)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    # Uniform over the volume: the mean of 100 draws of a coordinate lies near the middle.
    assert np.abs(first.mean(axis=0) - 9.5).max() < 2.5


def test_regions_and_ignored_voxels_have_locations_of_their_own() -> None:
    labels = Labels(
        foreground=(Label(name="whole", values=(1, 2)), Label(name="core", values=(2,))),
        ignore=3,
        regions_class_order=(1, 2),
    )
    label = np.array([[[0, 1, 2, 3, -1]]], dtype=np.int16)
    found = class_locations(label, labels, seed=0)
    assert {key: sorted(places[:, 2].tolist()) for key, places in found.items()} == {
        0: [1, 2],
        1: [2],
        ANNOTATED: [0, 1, 2],
    }
    assert class_locations(np.full((1, 2, 2), 3), labels, seed=0) == {}
