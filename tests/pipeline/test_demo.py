"""The generated dataset is honest: no threshold solves it, cases differ in every way, and it is reproducible."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the field's name
from scipy import ndimage

from autoseg.cli.main import run
from autoseg.errors import DatasetError, SettingError
from autoseg.pipeline.demo import EXPECTED_DICE, demo
from autoseg.pipeline.phantom import LABELS, NAME, PhantomCase, make_case, write_dataset
from autoseg.schema.settings import DemoSettings


@pytest.fixture(scope="module")
def drawn() -> list[PhantomCase]:
    return [make_case(0, index) for index in range(8)]


def test_the_same_seed_gives_the_same_case_and_another_does_not() -> None:
    first, again, other = make_case(3, 1), make_case(3, 1), make_case(4, 1)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label, again.label)
    assert first.geometry == again.geometry != other.geometry


def test_no_two_cases_are_alike(drawn: list[PhantomCase]) -> None:
    assert len({case.image.tobytes() for case in drawn}) == len(drawn)
    assert len({case.label.tobytes() for case in drawn}) == len(drawn)
    assert len({case.geometry.spacing for case in drawn}) == len(drawn)
    assert len({case.image.shape for case in drawn}) > len(drawn) // 2


def test_slices_are_thick_and_oblique(drawn: list[PhantomCase]) -> None:
    for case in drawn:
        z, y, x = case.geometry.spacing
        assert z > 1.4 * y == 1.4 * x
        direction = np.reshape(case.geometry.direction, (3, 3))
        np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(direction) == pytest.approx(1.0)
        assert np.abs(direction - np.eye(3)).max() > 0.01


def test_every_label_is_one_visible_structure_and_the_lobes_touch(drawn: list[PhantomCase]) -> None:
    for case in drawn:
        counts = np.bincount(case.label.ravel(), minlength=4)
        assert len(counts) == len(LABELS)
        assert counts[1:].min() > 50
        assert counts[1:].sum() < 0.2 * case.label.size
        assert (ndimage.binary_dilation(case.label == 1) & (case.label == 2)).any()
        assert (ndimage.binary_dilation(case.label == 2) & (case.label == 3)).any()


def test_no_threshold_finds_a_label(drawn: list[PhantomCase]) -> None:
    # The best of all intensity windows for each label, found by looking at the references of all cases.
    scaled = [(case.image[0] - case.image.mean()) / case.image.std() for case in drawn]
    edges = np.quantile(np.concatenate([image.ravel() for image in scaled]), np.linspace(0, 1, 60))
    for value in (1, 2, 3):
        dice = [_window_dice(image, case.label == value, edges) for image, case in zip(scaled, drawn, strict=True)]
        assert np.mean(dice, axis=0).max() < EXPECTED_DICE - 0.1


def test_thresholds_fail_even_if_every_case_has_its_own(drawn: list[PhantomCase]) -> None:
    best = [
        _window_dice(case.image[0], case.label == value, np.quantile(case.image, np.linspace(0, 1, 60))).max()
        for case in drawn
        for value in (1, 2, 3)
    ]
    assert np.mean(best) < EXPECTED_DICE - 0.15


def _window_dice(image: np.ndarray, target: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Dice of ``low <= image < high`` with the target for every pair of edges."""
    inside = np.insert(np.histogram(image[target], edges)[0].cumsum(), 0, 0)
    total = np.insert(np.histogram(image, edges)[0].cumsum(), 0, 0)
    low, high = np.triu_indices(len(edges), 1)
    return 2 * (inside[high] - inside[low]) / (total[high] - total[low] + target.sum())


def test_the_folder_is_a_dataset_with_held_out_cases_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / NAME
    write_dataset(folder, cases=3, test_cases=2, seed=1)
    manifest = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert manifest["numTraining"] == 3
    assert manifest["labels"] == LABELS
    names = {part: sorted(path.name for path in (folder / part).iterdir()) for part in ("imagesTr", "imagesTs")}
    assert names["imagesTr"] == [f"case_{index:03d}_0000.nii.gz" for index in range(3)]
    assert names["imagesTs"] == [f"case_{index:03d}_0000.nii.gz" for index in (3, 4)]

    case = make_case(1, 4)
    image = sitk.ReadImage(str(folder / "imagesTs" / "case_004_0000.nii.gz"))
    label = sitk.ReadImage(str(folder / "labelsTs" / "case_004.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), case.image[0])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), case.label)
    np.testing.assert_allclose(image.GetSpacing(), case.geometry.spacing[::-1], rtol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), case.geometry.origin, atol=1e-4)
    np.testing.assert_allclose(label.GetDirection(), case.geometry.direction, atol=1e-6)


def test_a_complete_dataset_is_kept_and_another_is_not_touched(tmp_path: Path) -> None:
    folder = tmp_path / NAME
    write_dataset(folder, cases=1, test_cases=1, seed=1)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_dataset(folder, cases=1, test_cases=1, seed=1)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(DatasetError, match="holds another dataset"):
        write_dataset(folder, cases=1, test_cases=1, seed=2)


def test_data_only_runs_no_command(tmp_path: Path) -> None:
    typed: list[object] = []
    settings = DemoSettings(workdir=str(tmp_path), cases=5, test_cases=1, data_only=True, quiet=True)
    assert demo(settings, run=typed.append) is None
    assert typed == []
    assert (tmp_path / "raw" / NAME / "dataset.json").is_file()


def test_too_few_cases_for_five_folds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="too few"):
        demo(DemoSettings(workdir=str(tmp_path), cases=4), run=run)


@pytest.mark.slow
def test_the_whole_demo_reaches_its_score(tmp_path: Path) -> None:
    dice = demo(DemoSettings(workdir=str(tmp_path)), run=run)
    assert dice is not None
    assert dice >= EXPECTED_DICE
    assert (tmp_path / "predictions" / NAME / "picture.png").is_file()
