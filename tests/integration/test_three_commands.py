"""The commands of the README, on tiny datasets: everything is written, geometry is kept, scores add up."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the field's name

import autoseg
from autoseg.cli.main import main
from autoseg.schema.folders import ModelFolder, Workspace
from tests.synthetic import OBLIQUE, write_dataset, write_pictures

SHORT = ("--epochs", "1", "--iterations", "2", "--val-iterations", "1", "-w", "0", "--device", "cpu")


def three_commands(raw: Path, dataset: Path) -> Workspace:
    """The README's three commands and the evaluation, as typed, with a training of seconds."""
    workspace = Workspace(raw.parent)
    out, common = str(workspace.root / "out"), ("--workdir", str(workspace.root), "--quiet")
    for words in (
        ("plan_and_preprocess", "-d", dataset.name[7:10], "--memory", "1GB", "--device", "cpu", "-w", "0"),
        ("train", *SHORT),
        ("predict", "-i", str(dataset / "imagesTs"), "-o", out, "--device", "cpu"),
        ("evaluate", "-r", str(dataset / "labelsTs"), "-p", out, "-w", "0"),
    ):
        assert main([*words, *common]) == 0
    return workspace


@pytest.fixture(scope="module")
def oblique(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Path]:
    raw = tmp_path_factory.mktemp("oblique") / "raw"
    dataset = write_dataset(raw, direction=OBLIQUE, channels=("T1", "T2"), spacing=(2.5, 1.0, 0.9))
    return three_commands(raw, dataset), dataset


def test_five_folds_are_trained_and_the_model_is_whole(oblique: tuple[Workspace, Path]) -> None:
    workspace, dataset = oblique
    (root,) = (workspace.results / dataset.name).iterdir()
    model = ModelFolder(root)
    assert model.finished_folds() == ("0", "1", "2", "3", "4")
    for path in (model.plan, model.dataset, model.run, model.report):
        assert path.is_file()
    splits = json.loads((workspace.prepared(dataset.name).splits).read_text(encoding="utf-8"))
    held_out = sorted(case for fold in splits["folds"] for case in fold["val"])
    assert held_out == [f"case_{index:02d}" for index in range(6)]


def test_segmentations_lie_where_their_images_lie(oblique: tuple[Workspace, Path]) -> None:
    workspace, dataset = oblique
    names = sorted(path.name for path in (dataset / "labelsTs").iterdir())
    assert sorted(path.name for path in (workspace.root / "out").glob("*.nii.gz")) == names
    for name in names:
        made = sitk.ReadImage(str(workspace.root / "out" / name))
        image = sitk.ReadImage(str(dataset / "imagesTs" / name.replace(".nii.gz", "_0000.nii.gz")))
        assert made.GetSize() == image.GetSize()
        for corner in ((0, 0, 0), tuple(length - 1 for length in image.GetSize())):
            np.testing.assert_allclose(
                made.TransformIndexToPhysicalPoint(corner), image.TransformIndexToPhysicalPoint(corner), atol=1e-5
            )
        assert set(np.unique(sitk.GetArrayFromImage(made))) <= {0, 1, 2}


def test_scores_of_the_command_are_those_of_simpleitk(oblique: tuple[Workspace, Path]) -> None:
    workspace, dataset = oblique
    summary = json.loads((workspace.root / "out" / "summary.json").read_text(encoding="utf-8"))
    assert len(summary["cases"]) == 2
    for case in summary["cases"]:
        reference = sitk.ReadImage(str(dataset / "labelsTs" / f"{case['id']}.nii.gz"))
        made = sitk.ReadImage(str(workspace.root / "out" / f"{case['id']}.nii.gz"))
        measure = sitk.LabelOverlapMeasuresImageFilter()
        measure.Execute(reference, sitk.Cast(made, reference.GetPixelID()))
        for value, scores in enumerate(case["classes"], start=1):
            assert scores["dice"] == pytest.approx(measure.GetDiceCoefficient(value), abs=1e-9)


def test_the_predictor_gives_what_the_command_wrote(oblique: tuple[Workspace, Path]) -> None:
    workspace, dataset = oblique
    (root,) = (workspace.results / dataset.name).iterdir()
    files = [dataset / "imagesTs" / f"case_06_{channel:04d}.nii.gz" for channel in range(2)]
    made = autoseg.Predictor.load(root, device="cpu").predict_files(files)
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(workspace.root / "out" / "case_06.nii.gz")))
    np.testing.assert_array_equal(made.data[0], written)


def test_the_same_commands_again_change_nothing(oblique: tuple[Workspace, Path]) -> None:
    workspace, dataset = oblique
    weights = sorted(workspace.results.rglob("weights.safetensors"))
    stores = sorted(path for path in workspace.prepared(dataset.name).root.rglob("*") if path.suffix == ".b2nd")
    assert weights
    assert stores
    before = {path: path.stat().st_mtime_ns for path in (*weights, *stores)}
    common = ["--workdir", str(workspace.root), "--quiet"]
    assert main(["plan_and_preprocess", "-d", "7", "--memory", "1GB", "--device", "cpu", "-w", "0", *common]) == 0
    assert main(["train", *SHORT, *common]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("colour", [True, False])
def test_pictures(colour: bool, tmp_path: Path) -> None:
    dataset = write_pictures(tmp_path / "raw", colour=colour)
    workspace = three_commands(tmp_path / "raw", dataset)
    for label in (dataset / "labelsTs").iterdir():
        made = imageio.imread(workspace.root / "out" / label.name)
        assert made.shape == imageio.imread(label).shape
        assert set(np.unique(made)) <= {0, 1}
