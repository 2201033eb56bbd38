"""The doubt of several models together, against probabilities that are computed by hand or one model at a time."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import entropy

from autoseg import records
from autoseg.inference.joint import JointPredictor
from autoseg.inference.joint_uncertainty import DoubtfulJointPredictor
from autoseg.inference.predictor import Predictor, Segmentation
from autoseg.inference.uncertainty import infer_with_doubt
from autoseg.io.volume import Geometry, Volume
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Plan
from tests.conftest import small_network
from tests.inference.test_uncertainty import image, member_logits, sharpen


def load(*folders: ModelFolder, tta: bool = False) -> tuple[Predictor, ...]:
    return tuple(Predictor.load(folder.root, device="cpu", exact=True, tta=tta) for folder in folders)


def together(members: tuple[Predictor, ...], temperatures: tuple[float, ...]) -> DoubtfulJointPredictor:
    named = {str(index): temperature for index, temperature in enumerate(temperatures)}
    return DoubtfulJointPredictor(predictor=JointPredictor.together(members), temperatures=named)


def expected_score(probabilities: np.ndarray, on: np.ndarray) -> float:
    """1 less the mean expected Dice of foreground heads."""
    dice = [2 * p[m].sum() / (m.sum() + p[p >= 0.05].sum()) for p, m in zip(probabilities, on, strict=True)]
    return 1 - float(np.mean(dice))


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (1.5, 3.0)])
def test_models_count_alike_whatever_their_folds(
    write_model, tmp_path: Path, temperatures: tuple[float, float]
) -> None:
    one = sharpen(write_model(tmp_path / "a", folds=("0", "1"), mirror_axes=(0,)))
    two = sharpen(write_model(tmp_path / "b", folds=("2",), mirror_axes=(0,)))
    volume = image()
    each = []
    for folder, temperature in zip((one, two), temperatures, strict=True):
        members = [torch.softmax(logits / temperature, 0).numpy() for logits in member_logits(folder, volume, (0,))]
        each.append(np.mean(members, axis=0))
    mean = np.mean(each, axis=0)
    joint = together(load(one, two, tta=True), temperatures)
    found = joint.segment(volume, probabilities=True)
    np.testing.assert_allclose(found.probabilities, mean, atol=2e-3)
    np.testing.assert_allclose(found.doubt.entropy, entropy(mean, axis=0), atol=2e-3)
    decided = mean.argmax(axis=0)
    score = expected_score(mean[1:], np.stack([decided == head for head in (1, 2)]))
    assert found.doubt.case.score == pytest.approx(score, abs=2e-3)
    assert found.doubt.case.temperatures == {"0": temperatures[0], "1": temperatures[1]}
    np.testing.assert_array_equal(found.labels, joint.predictor.segment(volume).labels)


def check(members: tuple[Predictor, ...], volume: Volume, temperatures: tuple[float, ...]) -> Segmentation:
    """Against the mean of what each model says by itself."""
    each = [
        infer_with_doubt(member, member.prepare(volume), temperature=temperature, probabilities=True).probabilities
        for member, temperature in zip(members, temperatures, strict=True)
    ]
    mean = np.mean([one.astype(np.float64) for one in each], axis=0)
    joint = together(members, temperatures)
    found = joint.segment(volume, probabilities=True)
    np.testing.assert_allclose(found.probabilities.astype(np.float64), mean, atol=2e-3)
    np.testing.assert_array_equal(found.labels, joint.predictor.segment(volume).labels)
    if members[0].plan.labels.has_regions:
        np.testing.assert_allclose(found.doubt.entropy, (entropy([mean, 1 - mean], axis=0)).mean(axis=0), atol=4e-3)
        assert found.doubt.case.score == pytest.approx(expected_score(mean, mean > 0.5), abs=4e-3)
    else:
        np.testing.assert_allclose(found.doubt.entropy, entropy(mean, axis=0), atol=4e-3)
    return found


def test_models_of_other_grids_and_dimensions(write_model, tmp_path: Path) -> None:
    one = sharpen(write_model(tmp_path / "a", folds=("0", "1")))
    two = sharpen(write_model(tmp_path / "b", spacing=1.7, patch=8))
    flat = sharpen(write_model(tmp_path / "c", ndim=2, spacing=1.3))
    check(load(one, two, flat), image((13, 22, 19), (2.0, 1.0, 1.5)), (1.0, 2.0, 0.7))


def test_axes_in_another_order_and_an_image_with_empty_margins(write_model, tmp_path: Path) -> None:
    one = sharpen(write_model(tmp_path / "a", spacing=1.5))
    two = sharpen(write_model(tmp_path / "b", spacing=1.2))
    for folder, transpose in ((one, (0, 2, 1)), (two, (2, 0, 1))):
        records.save(folder.plan, replace(records.load(Plan, folder.plan), transpose=transpose))
    volume = image((13, 22, 19), (2.0, 1.0, 1.5))
    for axis in (1, 2, 3):
        np.moveaxis(volume.data, axis, 0)[:2] = 0
    found = check(load(one, two), volume, (1.0, 2.0))
    assert not found.doubt.entropy[:2].any()
    assert found.doubt.entropy[2:, 2:, 2:].min() > 0


def test_regions_and_heads_that_are_taken_off(write_model, tmp_path: Path) -> None:
    named = (("all", (1, 2, 3)), ("a", (2,)), ("b", (3,)))
    regions = Labels(
        foreground=tuple(Label(name=name, values=values) for name, values in named), regions_class_order=(1, 2, 3)
    )
    many = Labels(foreground=tuple(Label(name=str(value), values=(value,)) for value in range(1, 9)))
    for number, labels in enumerate((regions, many)):
        models = []
        for seed, name in enumerate(("a", "b")):
            folder = write_model(tmp_path / str(number) / name, spacing=1.0 + 0.5 * seed)
            plan = replace(records.load(Plan, folder.plan), labels=labels)
            records.save(folder.plan, plan)
            save_file(small_network(plan, seed).state_dict(), folder.fold(0).weights, {"configuration": "3d_fullres"})
            models.append(sharpen(folder))
        members = load(*models)
        assert (members[0].ensemble.features is not None) == (labels is many)
        check(members, image((16, 18, 17)), (1.0, 1.4))


def test_no_volume_of_probabilities_is_in_memory(write_model, tmp_path: Path) -> None:
    members = load(write_model(tmp_path / "a", spacing=1.0), write_model(tmp_path / "b", ndim=2, spacing=1.0))
    joint = together(tuple(replace(member, step_size=1.0) for member in members), (1.0, 1.0))

    def peak(depth: int) -> int:
        data = np.random.default_rng(0).uniform(1, 9, (1, depth, 40, 40)).astype(np.float32)
        cases = joint.predictor.prepare(Volume(data, Geometry.upright((1.0, 1.0, 1.0))))
        tracemalloc.start()
        joint.infer(cases)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(20)
    more = peak(80) - peak(20)
    # A label map and entropies, four bytes; probabilities of three classes would be six more at least.
    assert more < 6 * 60 * 40 * 40
