from __future__ import annotations

import gzip
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from autoseg import records
from autoseg.errors import DatasetError, ModelFolderError, PartialError, ResourceError, SettingError
from autoseg.inference.predictor import Predictor
from autoseg.io.images import read_channels, read_label, write_image
from autoseg.io.volume import Geometry, Volume
from autoseg.pipeline.choose import choose_model
from autoseg.pipeline.predict import predict
from autoseg.schema.dataset import CurrentDataset
from autoseg.schema.folders import Workspace
from autoseg.schema.report import EvaluationReport, PredictionRun
from autoseg.schema.settings import PredictSettings

COSINES = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
GEOMETRY = Geometry((1.5, 1.0, 0.75), (10.0, -20.0, 5.5), COSINES, 3)


def _write_images(folder: Path, names: tuple[str, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        data = np.random.default_rng(seed).uniform(1, 9, (1, 18, 20, 17)).astype(np.float32)
        write_image(folder / name, Volume(data, GEOMETRY))


def _settings(tmp_path: Path, **changes: object) -> PredictSettings:
    base = PredictSettings(
        inputs=str(tmp_path / "in"), outputs=str(tmp_path / "out"), model=str(tmp_path / "model"), device="cpu"
    )
    return replace(base, **changes)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.nii.gz"))}


def test_every_image_gets_the_labels_of_the_predictor_in_its_own_geometry(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "model", folds=("0", "1"))
    _write_images(tmp_path / "in", ("a_0000.nii.gz", "b_0000.nii.gz", "c_0000.nii.gz"))
    report = predict(_settings(tmp_path))
    assert [path.name for path in report.written] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert report.folds == ("0", "1")
    predictor = Predictor.load(tmp_path / "model", device="cpu")
    for path in report.written:
        source = tmp_path / "in" / path.name.replace(".nii.gz", "_0000.nii.gz")
        expected = predictor.predict(read_channels([source]))
        np.testing.assert_array_equal(read_label(path).data[0], expected)
        image, label = sitk.ReadImage(str(source)), sitk.ReadImage(str(path))
        assert label.GetSize() == image.GetSize()
        np.testing.assert_allclose(label.GetSpacing(), image.GetSpacing(), atol=1e-5)
        np.testing.assert_allclose(label.GetOrigin(), image.GetOrigin(), atol=1e-5)
        np.testing.assert_allclose(label.GetDirection(), image.GetDirection(), atol=1e-5)


def test_the_facts_lie_beside_the_segmentations(write_model, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", mirror_axes=(1,))
    _write_images(tmp_path / "in", ("a_0000.nii.gz",))
    predict(_settings(tmp_path, tta=True, step_size=0.75))
    out = tmp_path / "out"
    assert json.loads((out / "plan.json").read_text()) == json.loads(model.plan.read_text())
    assert json.loads((out / "dataset.json").read_text()) == json.loads(model.dataset.read_text())
    run = records.load(PredictionRun, out / "predict.json")
    assert (run.configuration, run.mirror_axes, run.step_size) == ("3d_fullres", (1,), 0.75)
    assert sorted(path.name for path in out.iterdir()) == ["a.nii.gz", "dataset.json", "plan.json", "predict.json"]


def test_one_bad_image_among_many_is_listed_and_the_others_are_complete(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    names = tuple(f"{name}_0000.nii.gz" for name in "abcdef")
    _write_images(tmp_path / "in", names)
    broken = tmp_path / "in" / "b_0000.nii.gz"
    broken.write_bytes(broken.read_bytes()[:500])
    (tmp_path / "in" / "d_0000.nii.gz").write_bytes(gzip.compress(b"not an image"))
    write_image(tmp_path / "in" / "e_0000.nii.gz", Volume(np.full((1, 9, 9, 9), np.nan, np.float32), GEOMETRY))
    with pytest.raises(PartialError) as caught:
        predict(_settings(tmp_path))
    assert caught.value.exit_code == 6
    assert "3 of 6" in caught.value.message
    for name in "bde":
        assert f"- {name}: " in caught.value.message
    assert sorted(_bytes(tmp_path / "out")) == ["a.nii.gz", "c.nii.gz", "f.nii.gz"]


def test_wrong_channels_of_one_case_do_not_stop_the_others(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "model", channels=2)
    names = ("a_0000", "a_0001", "b_0000", "c_0000", "c_0001", "c_0002", "d_0001")
    _write_images(tmp_path / "in", tuple(f"{name}.nii.gz" for name in names))
    with pytest.raises(PartialError, match="3 of 4") as caught:
        predict(_settings(tmp_path))
    for name in ("b_0001", "c: the image has 3 channels", "d_0000"):
        assert name in caught.value.message
    assert list(_bytes(tmp_path / "out")) == ["a.nii.gz"]


def test_a_single_bad_image_is_its_own_error(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    _write_images(tmp_path / "in", ("a_0000.nii.gz",))
    (tmp_path / "in" / "a_0000.nii.gz").write_bytes(b"")
    with pytest.raises(DatasetError, match="a_0000"):
        predict(_settings(tmp_path))


def test_two_images_of_one_name_do_not_stop_the_others(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    _write_images(tmp_path / "in", ("a_0000.nii.gz", "b_0000.nii.gz", "b.nii.gz"))
    with pytest.raises(PartialError, match="1 of 2") as caught:
        predict(_settings(tmp_path))
    for name in ("b_0000.nii.gz", "b.nii.gz"):
        assert str(tmp_path / "in" / name) in caught.value.message
    assert list(_bytes(tmp_path / "out")) == ["a.nii.gz"]


def test_a_single_image_that_needs_too_much_memory_is_named(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    _write_images(tmp_path / "in", ("a_0000.nii.gz",))
    with pytest.raises(ResourceError, match=r"^a: "):
        predict(_settings(tmp_path, memory=1000))


def test_continue_redoes_what_is_missing_or_broken_and_nothing_else(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    _write_images(tmp_path / "in", ("a_0000.nii.gz", "b_0000.nii.gz", "c_0000.nii.gz"))
    predict(_settings(tmp_path))
    out = tmp_path / "out"
    whole = _bytes(out)
    (out / "a.nii.gz").unlink()
    (out / "b.nii.gz").write_bytes(whole["b.nii.gz"][:-20])
    os.utime(out / "c.nii.gz", (1, 1))
    report = predict(_settings(tmp_path, continue_=True))
    assert [path.name for path in report.written] == ["a.nii.gz", "b.nii.gz"]
    assert [path.name for path in report.skipped] == ["c.nii.gz"]
    assert (out / "c.nii.gz").stat().st_mtime == 1
    assert _bytes(out) == whole


def test_continue_does_not_mix_models_or_settings(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "model", folds=("0", "1"))
    _write_images(tmp_path / "in", ("a_0000.nii.gz", "b_0000.nii.gz"))
    predict(_settings(tmp_path, fold=("0",)))
    report = predict(_settings(tmp_path, continue_=True))
    assert len(report.written) == 2
    assert len(predict(_settings(tmp_path, continue_=True)).skipped) == 2
    assert len(predict(_settings(tmp_path, continue_=True, step_size=0.9)).written) == 2


def test_continue_wants_the_probabilities_too(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    _write_images(tmp_path / "in", ("a_0000.nii.gz", "b_0000.nii.gz"))
    predict(_settings(tmp_path))
    report = predict(_settings(tmp_path, continue_=True, save_probabilities=True))
    assert len(report.written) == 2
    path = tmp_path / "out" / "a.npz"
    with np.load(path, allow_pickle=False) as archive:
        probabilities = archive["probabilities"]
    assert probabilities.dtype == np.float16
    assert probabilities.shape == (3, 18, 20, 17)
    np.testing.assert_allclose(probabilities.astype(np.float32).sum(axis=0), 1, atol=5e-3)
    labels = read_label(tmp_path / "out" / "a.nii.gz").data[0]
    np.testing.assert_array_equal(
        np.array([0, 5, 9])[probabilities.argmax(axis=0)][_clear(probabilities)], labels[_clear(probabilities)]
    )
    path.write_bytes(path.read_bytes()[:100])
    report = predict(_settings(tmp_path, continue_=True, save_probabilities=True))
    assert [target.name for target in report.written] == ["a.nii.gz"]


def _clear(probabilities: np.ndarray) -> np.ndarray:
    """Where float16 leaves no doubt which class is largest."""
    ordered = np.sort(probabilities.astype(np.float32), axis=0)
    return ordered[-1] - ordered[-2] > 1e-2


def test_pictures_and_a_single_file(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "model", ndim=2, channels=3, file_ending=".png")
    folder = tmp_path / "in"
    folder.mkdir()
    data = np.random.default_rng(0).integers(1, 255, (3, 1, 40, 30), dtype=np.uint8)
    write_image(folder / "cat.png", Volume(data, Geometry.picture()))
    write_image(folder / "dog.png", Volume(data, Geometry.picture()))
    report = predict(_settings(tmp_path, inputs=str(folder / "dog.png")))
    assert [path.name for path in report.written] == ["dog.png"]
    assert read_label(report.written[0]).shape == (1, 40, 30)
    assert not (tmp_path / "out" / "cat.png").exists()


def test_images_are_never_overwritten(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    _write_images(tmp_path / "in", ("a.nii.gz",))
    before = _bytes(tmp_path / "in")
    with pytest.raises(SettingError, match="overwrite"):
        predict(_settings(tmp_path, outputs=str(tmp_path / "in")))
    assert _bytes(tmp_path / "in") == before


@pytest.mark.parametrize("name", ["a.nii.gz", "a.npz", "dataset.json", "plan.json"])
def test_what_no_prediction_wrote_is_never_replaced(write_model, tmp_path: Path, name: str) -> None:
    write_model(tmp_path / "model")
    _write_images(tmp_path / "in", ("a_0000.nii.gz",))
    labels = tmp_path / "labelsTr"
    labels.mkdir()
    (labels / name).write_bytes(b"a reference")
    with pytest.raises(SettingError, match=name) as caught:
        predict(_settings(tmp_path, outputs=str(labels)))
    assert str(labels) in caught.value.message
    assert "empty folder" in caught.value.hint
    assert {path.name: path.read_bytes() for path in labels.iterdir()} == {name: b"a reference"}


def _workspace(write_model, tmp_path: Path, scores: dict[str, float | None]) -> Workspace:
    """Model folders named in ``scores`` with one fold each and, unless None, that validation Dice."""
    workspace = Workspace(tmp_path / "work")
    for name, score in scores.items():
        ndim = 2 if name.endswith("2d") else 3
        folder = write_model(workspace.results / "Dataset007_Small" / name, ndim=ndim)
        if score is not None:
            report = EvaluationReport(foreground_dice=score, surface_tolerance_mm=2.0, mean=(), cases=())
            records.save(folder.fold(0).summary, report)
    workspace.preprocessed.mkdir(parents=True, exist_ok=True)
    (workspace.preprocessed / "Dataset007_Small").mkdir()
    records.save(workspace.current, CurrentDataset(dataset="Dataset007_Small"))
    return workspace


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({"unet_2d": 0.9, "unet_3d_fullres": 0.8}, "unet_2d"),
        ({"unet_2d": 0.7, "unet_3d_fullres": 0.8}, "unet_3d_fullres"),
        ({"unet_2d": 0.1, "unet_3d_fullres": None}, "unet_2d"),
        ({"other_3d_fullres": float("nan"), "unet_3d_fullres": 0.2}, "unet_3d_fullres"),
        ({"unet_3d_fullres": None}, "unet_3d_fullres"),
    ],
)
def test_without_a_model_the_best_trained_one_of_the_current_dataset_is_taken_and_named(
    write_model, tmp_path: Path, caplog: pytest.LogCaptureFixture, scores: dict[str, float | None], best: str
) -> None:
    workspace = _workspace(write_model, tmp_path, scores)
    with caplog.at_level(logging.INFO, logger="autoseg"):
        logging.getLogger("autoseg").propagate = True
        chosen = choose_model(_settings(tmp_path, model=None, workdir=str(workspace.root)))
    assert chosen.root.name == best
    assert best in caplog.text


def test_the_configuration_can_be_asked_for(write_model, tmp_path: Path) -> None:
    workspace = _workspace(write_model, tmp_path, {"unet_2d": 0.9, "unet_3d_fullres": 0.8})
    settings = _settings(tmp_path, model=None, workdir=str(workspace.root))
    assert choose_model(replace(settings, configuration="3d_fullres")).root.name == "unet_3d_fullres"
    with pytest.raises(ModelFolderError, match="3d_lowres") as caught:
        choose_model(replace(settings, configuration="3d_lowres"))
    assert "2d with unet, 3d_fullres with unet" in caught.value.hint
    with pytest.raises(SettingError, match="not 2d"):
        model = workspace.results / "Dataset007_Small" / "unet_3d_fullres"
        choose_model(replace(settings, model=str(model), configuration="2d"))


def test_without_any_trained_model_the_error_says_what_to_run(write_model, tmp_path: Path) -> None:
    workspace = _workspace(write_model, tmp_path, {})
    with pytest.raises(ModelFolderError) as caught:
        choose_model(_settings(tmp_path, model=None, workdir=str(workspace.root)))
    assert "autoseg_train" in caught.value.hint
    with pytest.raises(ModelFolderError, match="nowhere does not exist"):
        choose_model(_settings(tmp_path, model=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFolderError, match="empty is not a folder of a trained model"):
        choose_model(_settings(tmp_path, model=str(tmp_path / "empty")))


def test_an_empty_input_folder_is_a_clear_error(write_model, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "in").mkdir()
    with pytest.raises(DatasetError):
        predict(_settings(tmp_path))
    assert not (tmp_path / "out").exists()
