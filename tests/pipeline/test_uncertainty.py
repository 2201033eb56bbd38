"""``autoseg_predict --uncertainty`` and ``autoseg_calibrate``: what is written, kept, and refused."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from safetensors.torch import load_file, save_file

import autoseg
from autoseg import records
from autoseg.errors import DatasetError, ModelFolderError, PartialError, SettingError
from autoseg.inference.predictor import Predictor
from autoseg.inference.uncertainty import DoubtfulPredictor
from autoseg.io.images import read_channels
from autoseg.pipeline.calibrate import calibrate
from autoseg.pipeline.predict import predict
from autoseg.schema.calibration import CalibrateSettings, Calibration, UncertaintyReport
from autoseg.schema.dataset import CaseFiles, CurrentDataset, DatasetSpec
from autoseg.schema.folders import ModelFolder, Workspace
from autoseg.schema.report import Interval
from autoseg.schema.selection import Candidate, Selection
from autoseg.schema.settings import PredictSettings
from autoseg.schema.splits import Fold, Splits
from tests.synthetic import write_dataset, write_volume


def write_images(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        data = np.random.default_rng(seed).uniform(1, 9, (18, 20, 17)).astype(np.float32)
        write_volume(folder / f"{name}_0000.nii.gz", data, spacing=(2.0, 1.0, 1.0), origin=(5, -3, 2))


def settings(tmp_path: Path, **changes: object) -> PredictSettings:
    base = PredictSettings(
        inputs=str(tmp_path / "in"), outputs=str(tmp_path / "out"), model=str(tmp_path / "model"), device="cpu"
    )
    return replace(base, **{"uncertainty": True, **changes})


def test_entropies_lie_in_a_folder_of_their_own_on_the_grid_of_the_image(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "model", folds=("0", "1"))
    write_images(tmp_path / "in", "a", "b", "c")
    plain = predict(settings(tmp_path, uncertainty=False, outputs=str(tmp_path / "plain"))).written
    predict(settings(tmp_path))
    out = tmp_path / "out"
    for path in plain:
        assert (out / path.name).read_bytes() == path.read_bytes()
    predictor = DoubtfulPredictor(predictor=Predictor.load(tmp_path / "model", device="cpu"))
    report = records.load(UncertaintyReport, out / "uncertainty.json")
    scores = {case.id: case.doubt.score for case in report.cases}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    for name in "abc":
        source = tmp_path / "in" / f"{name}_0000.nii.gz"
        expected = predictor.segment(read_channels([source])).doubt
        image, entropy = sitk.ReadImage(str(source)), sitk.ReadImage(str(out / "uncertainty" / f"{name}.nii.gz"))
        assert entropy.GetPixelID() == sitk.sitkFloat32
        assert (entropy.GetSize(), entropy.GetOrigin()) == (image.GetSize(), image.GetOrigin())
        np.testing.assert_allclose(entropy.GetSpacing(), image.GetSpacing(), atol=1e-6)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(entropy), expected.entropy.astype(np.float32))
        assert scores[name] == expected.case.score
    with (out / "uncertainty.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == list(scores)
    assert [float(row["score"]) for row in rows] == pytest.approx(list(scores.values()), abs=1e-5)
    assert "expected_dice near" in rows[0]


def test_continue_does_what_is_missing_and_one_bad_image_stops_nothing(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_images(tmp_path / "in", "a", "b", "c")
    (tmp_path / "in" / "bad_0000.nii.gz").write_bytes(b"no image")
    with pytest.raises(PartialError, match="1 of 4"):
        predict(settings(tmp_path))
    out = tmp_path / "out"
    assert [len(json.loads((out / "uncertainty.json").read_text())["cases"])] == [3]
    (tmp_path / "in" / "bad_0000.nii.gz").unlink()
    (out / "uncertainty" / "a.nii.gz").write_bytes(b"")
    (out / "uncertainty" / "b.scores.json").unlink()
    report = predict(settings(tmp_path, continue_=True))
    assert [path.name for path in report.written] == ["a.nii.gz", "b.nii.gz"]
    assert [path.name for path in report.skipped] == ["c.nii.gz"]
    assert predict(settings(tmp_path, continue_=True)).written == ()
    # A segmentation that another run replaces takes its doubt along.
    predict(settings(tmp_path, uncertainty=False))
    assert not (out / "uncertainty" / "a.nii.gz").exists()
    assert not (out / "uncertainty.json").exists()


def test_files_that_no_prediction_wrote_stay(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_images(tmp_path / "in", "a")
    (tmp_path / "out" / "uncertainty").mkdir(parents=True)
    mine = [tmp_path / "out" / "uncertainty.csv", tmp_path / "out" / "uncertainty" / "a.nii.gz"]
    for path in mine:
        path.write_text("mine")
    with pytest.raises(SettingError, match="that no prediction wrote"):
        predict(settings(tmp_path))
    assert [path.read_text() for path in mine] == ["mine", "mine"]


def test_a_picture_has_its_entropies_as_tiff(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "model", ndim=2, file_ending=".png")
    (tmp_path / "in").mkdir()
    imageio.imwrite(tmp_path / "in" / "a_0000.png", np.random.default_rng(0).integers(0, 255, (30, 40), np.uint8))
    predict(settings(tmp_path))
    assert imageio.imread(tmp_path / "out" / "a.png").shape == (30, 40)
    entropy = imageio.imread(tmp_path / "out" / "uncertainty" / "a.tif")
    assert entropy.shape == (30, 40)
    assert entropy.dtype == np.float32
    assert 0 <= entropy.min() <= entropy.max() <= np.log(3) + 1e-3


@pytest.mark.parametrize("ending", [".tif", ".tiff"])
def test_a_3d_tiff_keeps_the_spacing_of_its_entropies_beside_its_scores(
    write_model, tmp_path: Path, ending: str
) -> None:
    write_model(tmp_path / "model", file_ending=ending)
    (tmp_path / "in").mkdir()
    image = np.random.default_rng(0).uniform(1, 9, (18, 20, 17)).astype(np.float32)
    tifffile.imwrite(tmp_path / "in" / f"a_0000{ending}", image, metadata={"axes": "ZYX"})
    (tmp_path / "in" / "a.json").write_text(json.dumps({"spacing": [2.0, 1.5, 1.0]}))
    predict(settings(tmp_path))
    folder = tmp_path / "out" / "uncertainty"
    assert tifffile.imread(folder / f"a{ending}").shape == image.shape
    # The sidecar that nnU-Net's reader of TIFF looks for.
    assert json.loads((folder / "a.json").read_text())["spacing"] == pytest.approx([2.0, 1.5, 1.0])
    entropy = read_channels([folder / f"a{ending}"])
    assert entropy.geometry.spacing == pytest.approx((2.0, 1.5, 1.0))
    assert entropy.data.min() >= 0 < entropy.data.max() <= np.log(3) + 1e-3
    score = json.loads((folder / "a.scores.json").read_text())["score"]
    assert json.loads((tmp_path / "out" / "uncertainty.json").read_text())["cases"][0]["doubt"]["score"] == score
    assert predict(settings(tmp_path, continue_=True)).written == ()
    predict(settings(tmp_path, uncertainty=False))
    assert list(folder.iterdir()) == []


@pytest.fixture
def pair(write_model, tmp_path: Path) -> tuple[Workspace, list[ModelFolder]]:
    """Two models that were selected to decide together."""
    workspace = Workspace(tmp_path / "work")
    folder = workspace.selection("Dataset007_Small")
    models = [
        write_model(folder.root / "one", folds=("0", "1"), mirror_axes=(0,)),
        write_model(folder.root / "two", spacing=1.6, patch=8),
    ]
    records.save(workspace.current, CurrentDataset(dataset="Dataset007_Small"))
    (workspace.preprocessed / "Dataset007_Small").mkdir(parents=True)
    nothing = Interval(mean=0.5, low=0.4, high=0.6)
    candidate = Candidate(models=("one", "two"), dice=nothing, dice_after=nothing, difference=nothing)
    selection = Selection(
        dataset="Dataset007_Small",
        models=("one", "two"),
        postprocessing=(),
        cases=9,
        candidates=(candidate,),
        left_out={},
        verdict="",
    )
    records.save(folder.file, selection)
    return workspace, models


def calibrated(model: ModelFolder, temperature: float) -> None:
    weights = {
        name: hashlib.sha256(model.fold(name).weights.read_bytes()).hexdigest() for name in model.finished_folds()
    }
    figures = {"nll_before": 1.0, "nll_after": 1.0, "ece_before": 0.0, "ece_after": 0.0, "cases": 1, "voxels": 1}
    found = Calibration(temperature=temperature, weights=weights, **figures)
    records.save(model.root / "calibration.json", found)


def test_a_selected_pair_has_the_doubt_of_both_at_their_own_temperatures(
    pair: tuple[Workspace, list[ModelFolder]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workspace, models = pair
    calibrated(models[1], 2.5)
    write_images(tmp_path / "in", "a", "b")
    run = settings(tmp_path, model=None, workdir=str(workspace.root))
    plain = predict(replace(run, uncertainty=False, outputs=str(tmp_path / "plain"))).written
    with caplog.at_level(logging.INFO, logger="autoseg"):
        predict(run)
    assert "one at temperature 1.000, two at temperature 2.500" in caplog.text
    out = tmp_path / "out"
    for path in plain:
        assert (out / path.name).read_bytes() == path.read_bytes()
    report = records.load(UncertaintyReport, out / "uncertainty.json")
    assert report.temperatures == {"one": 1.0, "two": 2.5}
    assert np.isnan(report.temperature)
    assert [case.doubt.score for case in report.cases] == sorted((c.doubt.score for c in report.cases), reverse=True)
    members = [
        DoubtfulPredictor(predictor=Predictor.load(model.root, device="cpu"), temperature=temperature)
        for model, temperature in zip(models, (1.0, 2.5), strict=True)
    ]
    for name in "ab":
        volume = read_channels([tmp_path / "in" / f"{name}_0000.nii.gz"])
        each = [member.segment(volume, probabilities=True).probabilities for member in members]
        mean = np.mean([one.astype(np.float64) for one in each], axis=0)
        expected = -(mean * np.log(mean)).sum(axis=0)
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "uncertainty" / f"{name}.nii.gz")))
        np.testing.assert_allclose(found, expected, atol=4e-3)


def test_a_member_that_was_trained_again_counts_as_not_calibrated(
    pair: tuple[Workspace, list[ModelFolder]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workspace, models = pair
    for model, temperature in zip(models, (1.5, 2.5), strict=True):
        calibrated(model, temperature)
    weights = models[0].fold("1").weights
    changed = {name: tensor * 1.01 for name, tensor in load_file(weights).items()}
    save_file(changed, weights, {"configuration": "3d_fullres"})
    write_images(tmp_path / "in", "a")
    predict(settings(tmp_path, model=None, workdir=str(workspace.root)))
    report = records.load(UncertaintyReport, tmp_path / "out" / "uncertainty.json")
    assert report.temperatures == {"one": 1.0, "two": 2.5}
    assert "one/calibration.json is of other weights of fold 1: calibrate again" in caplog.text


def test_continue_knows_the_temperatures_of_both(pair: tuple[Workspace, list[ModelFolder]], tmp_path: Path) -> None:
    workspace, models = pair
    write_images(tmp_path / "in", "a", "b")
    run = settings(tmp_path, model=None, workdir=str(workspace.root))
    predict(run)
    (tmp_path / "out" / "uncertainty" / "b.scores.json").unlink()
    run = replace(run, continue_=True)
    assert [path.name for path in predict(run).written] == ["b.nii.gz"]
    assert predict(run).written == ()
    calibrated(models[0], 1.5)
    assert len(predict(run).written) == 2
    assert predict(run).written == ()


def test_the_python_api_has_it_too(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_images(tmp_path / "in", "a")
    autoseg.predict(settings(tmp_path))
    assert (tmp_path / "out" / "uncertainty.json").exists()


SHORT = {"epochs": 1, "iterations": 12, "val_iterations": 1, "workers": 0, "device": "cpu", "fold": ("0", "1")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    root = tmp_path_factory.mktemp("work")
    write_dataset(root / "raw", cases=6, test_cases=2)
    autoseg.plan_and_preprocess(dataset="7", workdir=str(root), workers=0, device="cpu", memory="2GB")
    model: ModelFolder = autoseg.train(dataset="7", workdir=str(root), folds=3, validate=False, **SHORT)
    return model


def entropies(out: Path) -> dict[str, float]:
    """Mean entropy of every case."""
    files = sorted((out / "uncertainty").glob("*.nii.gz"))
    return {path.name: float(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).mean()) for path in files}


def test_the_temperature_is_fitted_on_held_out_cases_and_used(
    trained: ModelFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workdir = trained.root.parents[2]
    images = workdir / "raw" / "Dataset007_Tiny" / "imagesTs"
    run = settings(tmp_path, model=str(trained.root), inputs=str(images))
    predict(run)
    before = entropies(tmp_path / "out")
    labels = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.nii.gz")}
    found = calibrate(CalibrateSettings(model=str(trained.root), device="cpu"))
    assert records.load(Calibration, trained.root / "calibration.json") == found
    assert found.cases == 4
    assert found.nll_after < found.nll_before
    assert found.temperature != pytest.approx(1, abs=1e-3)
    assert set(found.weights) == {"0", "1"}
    with caplog.at_level(logging.INFO, logger="autoseg"):
        predict(replace(run, continue_=True))
    assert f"temperature {found.temperature:.3f}" in caplog.text
    after = records.load(UncertaintyReport, tmp_path / "out" / "uncertainty.json")
    assert after.temperature == found.temperature
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.nii.gz")} == labels
    later, sharper = entropies(tmp_path / "out"), found.temperature < 1
    assert all((later[name] < before[name]) == sharper for name in before)


def test_logits_that_are_three_times_as_large_have_three_times_the_temperature(
    trained: ModelFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = ModelFolder(tmp_path / "model")
    shutil.copytree(trained.root, copy.root)
    first = calibrate(CalibrateSettings(model=str(copy.root), fold=("0",), device="cpu"))
    weights = load_file(copy.fold(0).weights)
    scaled = {name: value * 3 if name.startswith("heads.") else value for name, value in weights.items()}
    save_file(scaled, copy.fold(0).weights, {"configuration": "3d_fullres"})
    images = trained.root.parents[2] / "raw" / "Dataset007_Tiny" / "imagesTs"
    with caplog.at_level(logging.WARNING, logger="autoseg"):
        predict(settings(tmp_path, inputs=str(images), fold=("0",)))
    assert "other weights of fold 0: calibrate again" in caplog.text
    second = calibrate(CalibrateSettings(model=str(copy.root), fold=("0",), device="cpu"))
    assert second.temperature == pytest.approx(3 * first.temperature, rel=0.02)
    assert second.ece_after == pytest.approx(first.ece_after, abs=0.01)


def test_partly_annotated_cases_are_left_out_of_the_fit(
    trained: ModelFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In them only voxels of annotated labels are certain, all of them foreground: the fit would be another one."""
    copy = ModelFolder(tmp_path / "model")
    shutil.copytree(trained.root, copy.root)
    run = CalibrateSettings(model=str(copy.root), fold=("0",), device="cpu")
    splits = records.load(Splits, copy.splits)
    partial, whole = splits.folds[0].val
    alone = replace(splits.folds[0], val=(whole,))
    records.save(copy.splits, replace(splits, folds=(alone, *splits.folds[1:])))
    expected = calibrate(run)
    records.save(copy.splits, splits)

    def drawn(case: CaseFiles, names: tuple[str, ...]) -> str:
        """The label file of somebody who looked for these only."""
        image = sitk.ReadImage(case.label)
        kept = sitk.GetArrayFromImage(image)
        kept[~np.isin(kept, [{"ball": 1, "box": 2}[name] for name in names])] = 0
        path = tmp_path / f"{case.id}_{'_'.join(names)}.nii.gz"
        written = sitk.GetImageFromArray(kept)
        written.CopyInformation(image)
        sitk.WriteImage(written, path)
        return str(path)

    def annotate(*names: str, of: tuple[str, ...]) -> None:
        spec = records.load(DatasetSpec, trained.dataset)
        cases = tuple(
            replace(case, annotated=names, label=drawn(case, names)) if case.id in of else case for case in spec.cases
        )
        records.save(copy.dataset, replace(spec, cases=cases, labels=replace(spec.labels, partial=(names,))))

    annotate("ball", of=(partial,))
    with caplog.at_level(logging.INFO, logger="autoseg"):
        found = calibrate(run)
    assert "left out: 1 of 2 held-out cases, in which not every label was annotated" in caplog.text
    assert found.cases == 1
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-6)
    annotate("ball", "box", of=(partial, whole))
    assert calibrate(run).cases == 2
    annotate("ball", of=(partial, whole))
    with pytest.raises(DatasetError, match="none of the 2 held-out cases has every label annotated"):
        calibrate(run)


def test_what_cannot_be_calibrated_is_one_sentence(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "all", folds=("all",))
    with pytest.raises(SettingError, match="trained on every case"):
        calibrate(CalibrateSettings(model=str(tmp_path / "all")))
    write_model(tmp_path / "model")
    with pytest.raises(ModelFolderError, match="which cases were held out"):
        calibrate(CalibrateSettings(model=str(tmp_path / "model")))
    with pytest.raises(ModelFolderError, match="no trained fold 4"):
        calibrate(CalibrateSettings(model=str(tmp_path / "model"), fold=("4",)))
    other = write_model(tmp_path / "other", folds=("4",))
    records.save(other.splits, Splits(seed=0, folds=(Fold(train=("a",), val=("b",)),) * 3))
    with pytest.raises(ModelFolderError, match="held out by fold 4"):
        calibrate(CalibrateSettings(model=str(other.root)))
