"""Entropies and case scores against probabilities that are computed by hand, member by member."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import entropy
from skimage.transform import resize

from autoseg import records
from autoseg.inference.predictor import Predictor
from autoseg.inference.uncertainty import DoubtfulPredictor, infer_with_doubt, logit_planes, voxel_entropy
from autoseg.io.volume import Geometry, Volume
from autoseg.preprocessing.fields import restored_planes
from autoseg.preprocessing.trace import Trace
from autoseg.schema.dataset import DatasetSpec, Label, Labels
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Plan, Resampling
from tests.conftest import small_network


def image(shape: tuple[int, ...] = (16, 16, 16), spacing: tuple[float, ...] = (1.0, 1.0, 1.0), seed: int = 0) -> Volume:
    data = np.random.default_rng(seed).uniform(1, 9, (1, *shape)).astype(np.float32)
    return Volume(data, Geometry.upright(spacing))


def member_logits(folder: ModelFolder, volume: Volume, axes: tuple[int, ...] = ()) -> list[torch.Tensor]:
    """Logits (heads, z, y, x) of every fold and mirror image, for an image of exactly one window."""
    plan = records.load(Plan, folder.plan)
    x = torch.from_numpy(volume.data)[None]
    found = []
    for name in folder.finished_folds():
        network = small_network(plan, seed=0)
        network.load_state_dict(load_file(folder.fold(name).weights))
        network.eval()
        for count in range(len(axes) + 1):
            for chosen in combinations(axes, count):
                dims = [axis + 2 for axis in chosen]
                with torch.inference_mode():
                    found.append(network(x.flip(dims))[0].flip(dims)[0])
    return found


def sharpen(folder: ModelFolder, factor: float = 8.0) -> ModelFolder:
    """Larger logits, so that members differ in opinion and not only in doubt."""
    for name in folder.finished_folds():
        path = folder.fold(name).weights
        weights = load_file(path)
        configuration = records.load(Plan, folder.plan).configurations[0].name
        scaled = {key: value * factor if key.startswith("heads.") else value for key, value in weights.items()}
        save_file(scaled, path, {"configuration": configuration})
    return folder


@pytest.mark.parametrize(("folds", "axes"), [(("0",), ()), (("0", "1", "2"), ()), (("0", "1"), (0, 2))])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_entropy_is_that_of_the_mean_softmax_of_members(
    write_model, tmp_path: Path, folds: tuple[str, ...], axes: tuple[int, ...], temperature: float
) -> None:
    folder = sharpen(write_model(tmp_path / "model", folds=folds, mirror_axes=axes))
    volume = image()
    members = [torch.softmax(logits / temperature, dim=0).numpy() for logits in member_logits(folder, volume, axes)]
    expected = np.mean(members, axis=0)
    predictor = Predictor.load(folder.root, device="cpu", tta=bool(axes), exact=True)
    found = infer_with_doubt(predictor, predictor.prepare(volume), temperature=temperature, probabilities=True)
    np.testing.assert_allclose(found.probabilities, expected, atol=2e-3)
    np.testing.assert_allclose(found.doubt.entropy, entropy(expected, axis=0), atol=2e-3)
    np.testing.assert_array_equal(found.labels, predictor.segment(volume).labels)
    case = found.doubt.case
    decided = expected.argmax(axis=0)
    dice = []
    for head, item in zip((1, 2), case.labels, strict=True):
        inside = decided == head
        likely = expected[head][expected[head] >= 0.05].sum()
        dice.append(2 * expected[head][inside].sum() / (inside.sum() + likely))
        assert item.voxels == inside.sum()
        assert item.expected_voxels == pytest.approx(likely, rel=1e-3)
        assert item.expected_dice == pytest.approx(dice[-1], abs=1e-3)
    assert case.score == pytest.approx(1 - np.mean(dice), abs=1e-3)


def test_members_that_are_sure_of_different_labels_leave_ln_2(write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", folds=("0", "1"))
    for name, winner in (("0", 1), ("1", 2)):
        weights = load_file(folder.fold(name).weights)
        for key in weights:
            weights[key] = torch.zeros_like(weights[key]) if key.startswith("heads.") else weights[key]
        weights["heads.0.bias"][winner] = 50.0
        save_file(weights, folder.fold(name).weights, {"configuration": "3d_fullres"})
    predictor = DoubtfulPredictor(predictor=Predictor.load(folder.root, device="cpu", exact=True))
    doubt = predictor.segment(image()).doubt
    np.testing.assert_allclose(doubt.entropy, np.log(2), atol=1e-3)
    # Every voxel is one of two labels with a half each; ties are one label's.
    assert sorted(item.expected_voxels for item in doubt.case.labels) == pytest.approx([2048.0, 2048.0])


def test_regions_have_the_mean_of_binary_entropies(write_model, tmp_path: Path) -> None:
    folder = sharpen(write_model(tmp_path / "model", folds=("0", "1")))
    named = (("all", (1, 2, 3)), ("a", (2,)), ("b", (3,)))
    regions = Labels(
        foreground=tuple(Label(name=name, values=values) for name, values in named), regions_class_order=(1, 2, 3)
    )
    for kind, path in ((Plan, folder.plan), (DatasetSpec, folder.dataset)):
        records.save(path, replace(records.load(kind, path), labels=regions))
    volume = image(seed=3)
    expected = np.mean([torch.sigmoid(logits).numpy() for logits in member_logits(folder, volume)], axis=0)
    predictor = Predictor.load(folder.root, device="cpu", exact=True)
    found = infer_with_doubt(predictor, predictor.prepare(volume))
    binary = np.stack([entropy(np.stack([p, 1 - p]), axis=0) for p in expected])
    np.testing.assert_allclose(found.doubt.entropy, binary.mean(axis=0), atol=2e-3)
    on = expected > 0.5
    dice = [2 * p[m].sum() / (m.sum() + p[p >= 0.05].sum()) for p, m in zip(expected, on, strict=True)]
    assert [item.expected_dice for item in found.doubt.case.labels] == pytest.approx(dice, abs=2e-3)
    np.testing.assert_array_equal(found.labels, predictor.segment(volume).labels)


@pytest.mark.parametrize(("ndim", "shape", "spacing"), [(3, (9, 40, 31), (2, 0.5, 1)), (2, (4, 33, 20), (3, 1, 0.5))])
def test_labels_are_those_without_uncertainty(
    write_model, tmp_path: Path, ndim: int, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    folder = sharpen(write_model(tmp_path / "model", folds=("0", "1"), ndim=ndim, mirror_axes=(0,)))
    volume = image(shape, spacing)
    volume.data[:, :, :3] = 0
    predictor = Predictor.load(folder.root, device="cpu", tta=True)
    found = DoubtfulPredictor(predictor=predictor).segment(volume)
    np.testing.assert_array_equal(found.labels, predictor.segment(volume).labels)
    assert found.doubt.entropy.shape == shape
    assert not found.doubt.entropy[:, :3].any()
    assert found.doubt.entropy[:, 3:].min() >= 0
    assert found.doubt.entropy.max() <= np.log(3) + 1e-3


def test_many_classes_whose_heads_are_taken_off(write_model, tmp_path: Path) -> None:
    folder = sharpen(write_model(tmp_path / "model"))
    volume = image()
    many = Labels(foreground=tuple(Label(name=str(value), values=(value,)) for value in range(1, 9)))
    plan = replace(records.load(Plan, folder.plan), labels=many)
    records.save(folder.plan, plan)
    save_file(small_network(plan, seed=5).state_dict(), folder.fold(0).weights, {"configuration": "3d_fullres"})
    predictor = Predictor.load(folder.root, device="cpu", exact=True)
    assert predictor.ensemble.features is not None
    found = DoubtfulPredictor(predictor=predictor).segment(volume)
    expected = torch.softmax(member_logits(folder, volume)[0], dim=0).numpy()
    np.testing.assert_allclose(found.doubt.entropy, entropy(expected, axis=0), atol=2e-3)
    np.testing.assert_array_equal(found.labels, predictor.segment(volume).labels)


def test_logits_on_the_grid_of_the_image_decide_its_labels(write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", folds=("0", "1"))
    volume = image((14, 25, 18), (2.0, 1.0, 0.5))
    predictor = Predictor.load(folder.root, device="cpu", exact=True)
    logits = np.stack(list(logit_planes(predictor, predictor.prepare(volume))), axis=1)
    labels = np.array([0, 5, 9])[logits.argmax(axis=0)]
    assert (labels == predictor.predict(volume)).mean() > 0.9999


@pytest.mark.parametrize(
    ("before", "after"), [((5, 6, 7), (9, 13, 7)), ((9, 12, 8), (4, 12, 5)), ((3, 4, 5), (3, 4, 5))]
)
def test_planes_are_those_of_linear_resizing(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    field = np.random.default_rng(0).normal(size=(2, *before)).astype(np.float32)
    trace = Trace(
        shape=after,
        spacing=(1.0, 1.0, 1.0),
        transpose=(0, 1, 2),
        box=tuple((0, length) for length in after),
        cropped_shape=after,
        resampled_shape=before,
        target_spacing=(1.0, 1.0, 1.0),
        separate_axis=None,
    )
    pieces = (field[:, start : start + 2] for start in range(0, before[0], 2))
    found = np.stack(list(restored_planes(pieces, trace, resampling=Resampling())), axis=1)
    expected = np.stack([resize(part, after, order=1, mode="edge", anti_aliasing=False) for part in field])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_entropy_of_certain_and_even_probabilities() -> None:
    p = np.array([[1.0, 0.25, 0.0], [0.0, 0.25, 0.5], [0.0, 0.25, 0.5], [0.0, 0.25, 0.0]], np.float32)
    np.testing.assert_allclose(voxel_entropy(p, regions=False), [0, np.log(4), np.log(2)], atol=1e-6)
    np.testing.assert_allclose(voxel_entropy(p[1:3], regions=True)[2], np.log(2), atol=1e-6)
