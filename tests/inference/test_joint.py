"""Two models together: the mean of their probabilities on the image's grid, without volumes of them."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg import records
from autoseg.errors import DatasetError, ModelFolderError, ResourceError
from autoseg.inference.joint import JointPredictor
from autoseg.inference.predictor import Predictor
from autoseg.io.volume import Geometry, Volume
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Plan

SHAPE = (13, 22, 19)
GEOMETRY = Geometry.upright((2.0, 1.0, 1.5))


def image(shape: tuple[int, ...] = SHAPE, *, empty: int = 0) -> Volume:
    """Noise; ``empty`` planes of zeros on every side, which preprocessing crops."""
    data = np.zeros((1, *shape), dtype=np.float32)
    inside = tuple(slice(empty, length - empty) for length in shape)
    data[(0, *inside)] = np.random.default_rng(3).uniform(1, 9, [length - 2 * empty for length in shape])
    return Volume(data, GEOMETRY)


def change_plan(folder: ModelFolder, **changes: object) -> None:
    plan = records.load(Plan, folder.plan)
    records.save(folder.plan, replace(plan, **changes))


def load(*folders: ModelFolder, **more: object) -> tuple[Predictor, ...]:
    # Half precision would leave voxels in doubt that are none.
    return tuple(Predictor.load(folder.root, device="cpu", exact=True, **more) for folder in folders)


def expected(members: tuple[Predictor, ...], volume: Volume) -> np.ndarray:
    """The mean of what each model says by itself, float16 each."""
    found = [member.segment(volume, probabilities=True).probabilities for member in members]
    return np.mean([one.astype(np.float64) for one in found], axis=0)


def check(members: tuple[Predictor, ...], volume: Volume, *, regions: bool = False) -> None:
    mean = expected(members, volume)
    made = JointPredictor.together(members).segment(volume, probabilities=True)
    assert made.probabilities is not None
    assert made.probabilities.dtype == np.float16
    np.testing.assert_allclose(made.probabilities.astype(np.float64), mean, atol=2e-3)
    if regions:
        clear = (np.abs(mean - 0.5) > 2e-3).all(axis=0)
        decided = np.where(mean[1] > 0.5, 9, np.where(mean[0] > 0.5, 5, 0))
    else:
        ordered = np.sort(mean, axis=0)
        clear = ordered[-1] - ordered[-2] > 4e-3
        decided = np.array([0, 5, 9])[mean.argmax(axis=0)]
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(made.labels[clear], decided[clear])


def test_models_of_other_spacing_patch_and_dimension(write_model, tmp_path: Path) -> None:
    one = write_model(tmp_path / "a", folds=("0", "1"), spacing=1.0)
    two = write_model(tmp_path / "b", spacing=1.7, patch=8)
    flat = write_model(tmp_path / "c", ndim=2, spacing=1.3)
    check(load(one, two), image())
    check(load(two, flat, one, step_size=0.75), image())


@pytest.mark.parametrize("others", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0)])
def test_axes_in_another_order_and_crops(write_model, tmp_path: Path, others: tuple[int, int, int]) -> None:
    one, two = write_model(tmp_path / "a", spacing=1.5), write_model(tmp_path / "b", spacing=1.2)
    change_plan(one, transpose=(0, 2, 1))
    change_plan(two, transpose=others)
    check(load(one, two), image(empty=2))


def test_regions_are_on_where_the_mean_is_above_a_half(write_model, tmp_path: Path) -> None:
    labels = Labels(
        foreground=(
            Label(name="whole", values=(5, 9)),
            Label(name="core", values=(9,)),
            Label(name="rim", values=(5,)),
        ),
        regions_class_order=(5, 9, 5),
    )
    # As many heads as the networks of the fixture have.
    folders = [write_model(tmp_path / name, spacing=spacing) for name, spacing in (("a", 1.0), ("b", 1.6))]
    for folder in folders:
        change_plan(folder, labels=labels)
    members = load(*folders)
    volume = image(empty=2)
    mean = expected(members, volume)
    made = JointPredictor.together(members).segment(volume).labels
    decided = np.zeros(SHAPE, dtype=int)
    for head, value in zip(mean, (5, 9, 5), strict=True):
        decided[head > 0.5] = value
    clear = (np.abs(mean - 0.5) > 2e-3).all(axis=0)
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(made[clear], decided[clear])


def test_one_model_twice_is_that_model(write_model, tmp_path: Path) -> None:
    (member,) = load(write_model(tmp_path / "a", folds=("0", "1"), spacing=1.4))
    made = JointPredictor.together((member, member)).segment(image(empty=1)).labels
    agree = made == member.segment(image(empty=1)).labels
    assert agree.mean() > 0.9999


def test_no_volume_of_probabilities_is_in_memory(write_model, tmp_path: Path) -> None:
    one, two = write_model(tmp_path / "a", spacing=1.0), write_model(tmp_path / "b", ndim=2, spacing=1.0)
    joint = JointPredictor.together(load(one, two, step_size=1.0))

    def peak(depth: int) -> int:
        cases = joint.prepare(Volume(image((depth, 40, 40)).data, Geometry.upright((1.0, 1.0, 1.0))))
        tracemalloc.start()
        joint.infer(cases)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(20)
    more = peak(80) - peak(20)
    voxels = 60 * 40 * 40
    # A label map, and lists of windows; probabilities of three classes would be six bytes at least.
    assert more < 4 * voxels


def test_models_of_other_labels_are_refused(write_model, tmp_path: Path) -> None:
    one, two = write_model(tmp_path / "a"), write_model(tmp_path / "b")
    change_plan(two, labels=Labels(foreground=(Label(name="near", values=(5,)), Label(name="far", values=(8,)))))
    with pytest.raises(ModelFolderError, match="labels"):
        JointPredictor.together(load(one, two))


def test_too_little_memory_and_wrong_images(write_model, tmp_path: Path) -> None:
    one, two = write_model(tmp_path / "a"), write_model(tmp_path / "b", spacing=2.0)
    with pytest.raises(ResourceError):
        JointPredictor.together(load(one, two, memory=1000)).segment(image())
    with pytest.raises(DatasetError, match="2 channels"):
        JointPredictor.together(load(one, two)).segment(Volume(np.zeros((2, *SHAPE), np.float32), GEOMETRY))
