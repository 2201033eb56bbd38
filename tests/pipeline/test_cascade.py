"""A cascade with one command: folds of the first stage, what they say of held-out cases, the second stage."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage.transform import resize

from autoseg import records
from autoseg.cli.main import main
from autoseg.errors import ModelFolderError, SettingError
from autoseg.inference.cascade import numbered
from autoseg.inference.predictor import Predictor
from autoseg.inference.stitch import Sweep, stitch
from autoseg.io.images import read_channels, read_label
from autoseg.io.label_maps import open_label_map
from autoseg.io.store import CaseStore
from autoseg.pipeline.cascade import train_first_stage
from autoseg.pipeline.export import export
from autoseg.pipeline.held_out import held_out_predictor
from autoseg.pipeline.install import install
from autoseg.pipeline.joint import train_any
from autoseg.pipeline.race import race
from autoseg.pipeline.set_up import Training, set_up
from autoseg.pipeline.train import train
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.folders import ModelFolder, Workspace
from autoseg.schema.report import FoldRun, PredictionRun, RunReport
from autoseg.schema.settings import RaceSettings, TrainSettings
from autoseg.schema.splits import Splits
from autoseg.schema.tools import ExportSettings, InstallSettings
from autoseg.training.checkpoint import load_weights, weights_hash
from tests.integration.test_kill import finish, kill_at
from tests.synthetic import write_dataset

NAME, LOW, SECOND = "Dataset007_Tiny", "3d_lowres", "3d_cascade_fullres"
PREPARE = ("-c", LOW, SECOND, "--patch-size", "16,16,16", "--memory", "200MB", "--batch-size", "2", "-w", "0")
SHORT = ("--folds", "2", "--epochs", "1", "--iterations", "2", "--val-iterations", "1", "-w", "0")


def run(workdir: Path, *words: str) -> int:
    return main([*words, "--workdir", str(workdir), "--device", "cpu", "--quiet"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("cascade")
    dataset = write_dataset(workdir / "raw", cases=4, test_cases=1, shape=(36, 36, 36), spacing=(1.0, 1.0, 1.0))
    assert run(workdir, "plan_and_preprocess", "-d", "7", *PREPARE) == 0
    assert run(workdir, "train", "-c", SECOND, *SHORT) == 0
    assert run(workdir, "predict", "-c", SECOND, "-i", str(dataset / "imagesTs"), "-o", str(workdir / "out")) == 0
    return workdir


def models(workdir: Path) -> tuple[ModelFolder, ModelFolder]:
    workspace = Workspace(workdir)
    return workspace.model(NAME, LOW, "unet"), workspace.model(NAME, SECOND, "unet")


def settings(workdir: Path, **changes: object) -> TrainSettings:
    words = {"dataset": ("7",), "configuration": SECOND, "folds": 2, "epochs": 1, "iterations": 2, "val_iterations": 1}
    return TrainSettings(**{**words, "workdir": str(workdir), "workers": 0, "device": "cpu", **changes})  # type: ignore[arg-type]


def maps(second: ModelFolder) -> dict[str, Path]:
    """Stored segmentations by case."""
    return {path.name.split(".")[0]: path for path in second.previous_stage.glob("fold_*/*.labels.b2nd")}


def test_both_stages_have_their_folds_and_know_each_other(trained: Path) -> None:
    low, second = models(trained)
    for model in (low, second):
        assert model.finished_folds() == ("0", "1")
        assert all(records.load(FoldRun, model.fold(fold).run).status == "validated" for fold in "01")
    named = records.load(RunReport, second.run).settings["previous_model"]
    assert named == "../unet_3d_lowres"
    assert "previous_model" not in records.load(RunReport, low.run).settings
    # Full-resolution images are stored once, under the name of the configuration that has them too.
    assert sorted(path.name for path in Workspace(trained).prepared(NAME).root.iterdir() if path.is_dir()) == [
        "3d_fullres",
        "3d_lowres",
    ]


def test_each_case_is_segmented_by_the_fold_that_held_it_out(trained: Path) -> None:
    _, second = models(trained)
    splits = records.load(Splits, second.splits)
    stored = maps(second)
    assert sorted(stored) == [f"case_{index:02d}" for index in range(4)]
    for case, path in stored.items():
        fold = splits.folds[int(path.parent.name.removeprefix("fold_"))]
        assert case in fold.val
        assert case not in fold.train
    assert not list(second.root.rglob("*.partial*"))


def test_what_is_stored_is_the_first_stage_resized_to_full_resolution(trained: Path) -> None:
    low, second = models(trained)
    folder = Workspace(trained).prepared(NAME)
    coarse, fine = CaseStore(folder.store(LOW)), CaseStore(folder.store("3d_fullres"))
    for case, path in maps(second).items():
        predictor = Predictor.load(low.root, folds=(path.parent.name.removeprefix("fold_"),), device="cpu")
        image = np.asarray(coarse.open(case).image[:])
        sweep = Sweep(patch=predictor.configuration.patch_size, heads=3)
        with torch.inference_mode():
            pieces = stitch(image, lambda windows: predictor.ensemble.evaluate(windows, per_batch=1), sweep)  # noqa: B023
            logits = np.concatenate(list(pieces), axis=1)
        shape = fine.open(case).image.shape[1:]
        finer = np.stack([resize(one, shape, order=1, mode="edge", anti_aliasing=False) for one in logits])
        found = open_label_map(path)
        assert found.dtype == np.uint8
        assert found.shape == (1, *shape)
        ranked = np.sort(finer, axis=0)
        clear = ranked[-1] - ranked[-2] > 1e-3
        np.testing.assert_array_equal(found[0][clear], finer.argmax(0)[clear])
        assert clear.mean() > 0.99
        assert len(np.unique(found[0])) > 1


def test_validation_refines_what_was_said_of_held_out_cases(trained: Path) -> None:
    _, second = models(trained)
    case, path = next(iter(maps(second).items()))
    fold = path.parent.name.removeprefix("fold_")
    predictor = Predictor.load(second.root, folds=(fold,), device="cpu", stages=False)
    prepared = predictor.prepare(read_channels([trained / "raw" / NAME / "imagesTr" / f"{case}_0000.nii.gz"]))
    before = open_label_map(path)[0]
    expected = predictor.infer(prepared, previous=before).labels
    scored = read_label(second.fold(fold).validation / f"{case}.nii.gz").data[0]
    np.testing.assert_array_equal(scored, expected)
    assert (predictor.infer(prepared, previous=np.zeros_like(before)).labels != expected).any()


def test_prediction_runs_the_first_stage_and_then_the_second(trained: Path) -> None:
    low, second = models(trained)
    first = Predictor.load(low.root, device="cpu")
    refine = Predictor.load(second.root, device="cpu", stages=False)
    volume = read_channels([trained / "raw" / NAME / "imagesTs" / "case_04_0000.nii.gz"])
    # Images of the dataset have their own spacing at full resolution, so that its grid is the image's.
    prepared = refine.prepare(volume)
    assert prepared.trace.resampled_shape == volume.data.shape[1:]
    expected = refine.infer(prepared, previous=first.predict(volume)).labels
    np.testing.assert_array_equal(read_label(trained / "out" / "case_04.nii.gz").data[0], expected)
    weights = records.load(PredictionRun, trained / "out" / "predict.json").weights
    assert set(weights) == {"0", "1", "unet_3d_lowres/0", "unet_3d_lowres/1"}


def test_what_is_missing_is_done_again_and_gives_the_same(trained: Path, tmp_path: Path) -> None:
    for part in ("preprocessed", "results"):
        shutil.copytree(trained / part, tmp_path / part)
    (tmp_path / "raw").symlink_to(trained / "raw")
    low, second = models(tmp_path)
    before = {path.name: path.read_bytes() for path in maps(second).values()}
    weights = load_weights(second.fold(1).weights)
    kept = low.fold(1).weights.stat().st_mtime_ns
    # As a kill leaves it: a fold of each stage and half of the segmentations are not there yet.
    shutil.rmtree(low.fold(0).root)
    shutil.rmtree(second.fold(1).root)
    next(iter(maps(second).values())).unlink()
    assert run(tmp_path, "train", "-d", "7", "-c", SECOND, *SHORT, "--no-validate") == 0
    assert low.fold(1).weights.stat().st_mtime_ns == kept
    assert {path.name: path.read_bytes() for path in maps(second).values()} == before
    again = load_weights(second.fold(1).weights)
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def copied(trained: Path, tmp_path: Path) -> tuple[ModelFolder, ModelFolder]:
    for part in ("preprocessed", "results"):
        shutil.copytree(trained / part, tmp_path / part)
    (tmp_path / "raw").symlink_to(trained / "raw")
    return models(tmp_path)


def mark(model: ModelFolder, fold: str, **changes: object) -> None:
    path = model.fold(fold).run
    records.save(path, replace(records.load(FoldRun, path), **changes))  # type: ignore[arg-type]


def test_a_fold_that_was_killed_before_its_validation_gets_it_unless_another_command_trained_it(
    trained: Path, tmp_path: Path
) -> None:
    low, _ = copied(trained, tmp_path)
    weights = [weights_hash(low.fold(fold).weights) for fold in "01"]
    # Fold 0 is as a kill between weights and record leaves it; fold 1 was trained by other settings.
    mark(low, "0", status="training")
    mark(low, "1", status="trained", signature="of another learning rate")
    for fold in "01":
        shutil.rmtree(low.fold(fold).validation)
    train_any(settings(tmp_path))
    assert records.load(FoldRun, low.fold(0).run).status == "validated"
    assert low.fold(0).summary.exists()
    assert records.load(FoldRun, low.fold(1).run).status == "trained"
    assert not low.fold(1).summary.exists()
    assert [weights_hash(low.fold(fold).weights) for fold in "01"] == weights


def test_another_first_stage_is_refused_before_anything_is_segmented(trained: Path, tmp_path: Path) -> None:
    low, second = copied(trained, tmp_path)
    stored = {path: path.stat().st_mtime_ns for path in second.previous_stage.rglob("*")}
    weights = load_weights(low.fold(0).weights)
    save_file({name: value + 1 for name, value in weights.items()}, low.fold(0).weights)
    with pytest.raises(SettingError, match=r"fold 0, 1 in .* was trained after another first stage") as caught:
        train_any(settings(tmp_path))
    assert "remove that folder" in caught.value.hint
    assert {path: path.stat().st_mtime_ns for path in second.previous_stage.rglob("*")} == stored


def test_files_of_a_process_that_writes_stay_where_nothing_is_missing(trained: Path, tmp_path: Path) -> None:
    _, second = copied(trained, tmp_path)
    half = second.previous_stage / "fold_0" / ".x.labels.b2nd.y.partial.b2nd"
    half.write_bytes(b"half")
    train_any(settings(tmp_path, fold=("1",)))
    assert half.exists()


def test_a_first_stage_that_is_there_leaves_the_whole_time_to_the_second(trained: Path, tmp_path: Path) -> None:
    copied(trained, tmp_path)
    second = set_up(settings(tmp_path, time_budget=60.0), first_stage=train_first_stage)
    assert second.earlier is not None
    assert (second.earlier.seconds, second.settings.time_budget) == (0.0, 60.0)


def test_other_processes_wait_until_the_first_has_preprocessed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(trained, tmp_path)
    manifest = Workspace(tmp_path).prepared(NAME).store(LOW) / "manifest.json"
    text = manifest.read_text()
    manifest.write_text("{}")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    done: list[Training] = []
    # A daemon, so that one that waits for ever fails the test and does not hang it.
    other = Thread(target=lambda: done.append(set_up(settings(tmp_path), first_stage=train_first_stage)), daemon=True)
    other.start()
    other.join(timeout=1.5)
    assert other.is_alive()
    manifest.write_text(text)
    other.join(timeout=20)
    assert [one.earlier is not None for one in done] == [True]


def test_clean_makes_the_store_again_that_the_second_stage_reads(trained: Path, tmp_path: Path) -> None:
    copied(trained, tmp_path)
    folder = Workspace(tmp_path).prepared(NAME)
    shared = folder.store("3d_fullres") / "case_00.image.b2nd"
    before = shared.stat().st_mtime_ns
    assert run(tmp_path, "preprocess", "-d", "7", "-c", SECOND, "--clean", "-w", "0") == 0
    assert shared.stat().st_mtime_ns > before
    assert not folder.store(SECOND).exists()


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_models(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "preprocessed", tmp_path / "preprocessed")
    (tmp_path / "raw").symlink_to(trained / "raw")
    words = ("train", "-d", "7", "-c", SECOND, *SHORT, "--device", "cpu")
    whole = tmp_path / "whole"
    shutil.copytree(trained / "preprocessed", whole / "preprocessed")
    (whole / "raw").symlink_to(trained / "raw")
    seconds = finish(words, whole)
    for part in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        kill_at(words, tmp_path, part * seconds)
    finish(words, tmp_path)
    for model, other in zip(models(whole), models(tmp_path), strict=True):
        assert other.finished_folds() == ("0", "1")
        for fold in "01":
            weights, again = load_weights(model.fold(fold).weights), load_weights(other.fold(fold).weights)
            assert all(torch.equal(weights[name], again[name]) for name in weights)
    _, second = models(tmp_path)
    stored = {name: path.read_bytes() for name, path in maps(models(whole)[1]).items()}
    assert {name: path.read_bytes() for name, path in maps(second).items()} == stored
    assert not list(tmp_path.rglob("*.partial*"))


@pytest.mark.slow
def test_a_time_budget_is_shared_by_the_folds_of_both_stages(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "preprocessed", tmp_path / "preprocessed")
    (tmp_path / "raw").symlink_to(trained / "raw")
    words = ("train", "-d", "7", "-c", SECOND, "--folds", "2", "-f", "0", "--time-budget", "30s", "-w", "0")
    assert run(tmp_path, *words) == 0
    low, second = models(tmp_path)
    runs = [records.load(FoldRun, model.fold(fold).run) for model, fold in ((low, 0), (low, 1), (second, 0))]
    assert [one.budget for one in runs] == pytest.approx([20.0, 20.0, 10.0])
    assert all(one.status == "validated" and one.steps > 0 for one in runs)
    stamps = [path.stat().st_mtime_ns for path in low.root.rglob("weights.safetensors")]
    assert run(tmp_path, *words) == 0
    assert [path.stat().st_mtime_ns for path in low.root.rglob("weights.safetensors")] == stamps
    again = records.load(FoldRun, second.fold(0).run)
    assert (again.budget, again.round, again.before) == (30.0, 1, runs[2].seconds)


def test_a_model_without_its_first_stage_says_so(trained: Path, tmp_path: Path) -> None:
    _, second = models(trained)
    shutil.copytree(second.root, tmp_path / "alone")
    with pytest.raises(ModelFolderError, match="3d_lowres, and that model is not in") as caught:
        Predictor.load(tmp_path / "alone", device="cpu")
    assert "side by side" in caught.value.hint
    run_report = json.loads((tmp_path / "alone" / "run.json").read_text())
    del run_report["settings"]["previous_model"]
    (tmp_path / "alone" / "run.json").write_text(json.dumps(run_report))
    with pytest.raises(ModelFolderError, match="names no model"):
        Predictor.load(tmp_path / "alone", device="cpu")


def test_the_first_stage_must_fit(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(Workspace(trained).results, tmp_path / "results")
    low, second = models(tmp_path)
    plan = json.loads(low.plan.read_text())
    plan["labels"]["foreground"][0]["name"] = "sphere"
    low.plan.write_text(json.dumps(plan))
    with pytest.raises(ModelFolderError, match="does not fit that of 3d_cascade_fullres: other labels"):
        Predictor.load(second.root, device="cpu")


def test_folds_must_be_those_of_the_first_stage_and_hold_every_case_out(trained: Path, tmp_path: Path) -> None:
    for part in ("preprocessed", "results"):
        shutil.copytree(trained / part, tmp_path / part)
    low, second = models(tmp_path)
    shutil.rmtree(second.root)
    with pytest.raises(SettingError, match="other folds") as caught:
        train_any(settings(tmp_path, folds=4))
    assert str(low.root) in caught.value.message
    one = [{"train": ["case_00", "case_01"], "val": ["case_02", "case_03"]}]
    (tmp_path / "one.json").write_text(json.dumps(one))
    with pytest.raises(SettingError, match="too good to learn from") as caught:
        train_any(settings(tmp_path, splits=str(tmp_path / "one.json")))
    assert "- case_00\n  - case_01" in caught.value.message
    assert not second.root.exists()


def test_what_is_shared_segments_as_what_was_trained(trained: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "x.zip")
    export(ExportSettings(workdir=str(trained), dataset="7", configuration=SECOND, output=path))
    there = install(InstallSettings(file=path, workdir=str(tmp_path / "work"))).model
    assert (there.finished_folds(), there.first_stage.finished_folds()) == (("0", "1"), ("0", "1"))
    images = str(trained / "raw" / NAME / "imagesTs")
    assert run(tmp_path / "work", "predict", "-m", str(there.root), "-i", images, "-o", str(tmp_path / "out")) == 0
    assert (tmp_path / "out" / "case_04.nii.gz").read_bytes() == (trained / "out" / "case_04.nii.gz").read_bytes()


def test_only_training_of_one_dataset_does_both_stages(trained: Path) -> None:
    with pytest.raises(SettingError, match="refines predictions of 3d_lowres"):
        train(settings(trained))
    with pytest.raises(SettingError, match="refines predictions of 3d_lowres"):
        race(
            RaceSettings(
                workdir=str(trained),
                dataset="7",
                configuration=SECOND,
                arch=("unet", "vnet"),
                time_budget=60.0,
                device="cpu",
            )
        )


def test_integers_become_positions_and_regions_keep_their_order() -> None:
    plain = Labels(foreground=(Label(name="a", values=(7,)), Label(name="b", values=(3,))), ignore=9)
    assert [label.values for label in numbered(plain).foreground] == [(2,), (1,)]
    regions = Labels(
        foreground=(Label(name="whole", values=(3, 7)), Label(name="core", values=(7,))), regions_class_order=(3, 7)
    )
    assert numbered(regions).regions_class_order == (1, 2)
    with pytest.raises(SettingError, match="writes 5"):
        numbered(Labels(foreground=regions.foreground, regions_class_order=(3, 5)))


def test_the_hashes_in_use_are_of_the_weights(trained: Path) -> None:
    low, _ = models(trained)
    found = records.load(PredictionRun, trained / "out" / "predict.json").weights["unet_3d_lowres/0"]
    assert found == hashlib.sha256(low.fold(0).weights.read_bytes()).hexdigest()


def test_a_fold_judges_held_out_cases_with_the_same_fold_of_the_first_stage(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(Workspace(trained).results, tmp_path / "results")
    low, second = models(tmp_path)
    predictor = held_out_predictor(second, "1", device="cpu")
    assert predictor.first is not None
    assert (predictor.folds, predictor.first.folds) == (("1",), ("1",))
    assert held_out_predictor(low, "0", device="cpu").first is None
    case, path = next((case, path) for case, path in maps(second).items() if path.parent.name == "fold_1")
    volume = read_channels([trained / "raw" / NAME / "imagesTr" / f"{case}_0000.nii.gz"])
    prepared = predictor.prepare(volume)
    np.testing.assert_array_equal(predictor.network_image(prepared)[-1], open_label_map(path)[0])
    swapped = records.load(Splits, low.splits)
    records.save(low.splits, Splits(seed=swapped.seed, folds=swapped.folds[::-1]))
    with pytest.raises(ModelFolderError, match="other cases"):
        held_out_predictor(second, "1", device="cpu")
