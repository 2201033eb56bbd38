"""``autoseg_train --init``: models are found, the table is kept, and sentences say what does not fit."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

import autoseg
from autoseg import records
from autoseg.errors import ModelFolderError, SettingError
from autoseg.pipeline.initial import read_source
from autoseg.schema.folders import ModelFolder
from autoseg.schema.report import RunReport
from autoseg.training.checkpoint import load_weights
from tests.synthetic import write_dataset, write_manifest

SHORT = {"epochs": 1, "iterations": 2, "val_iterations": 1, "workers": 0, "device": "cpu", "validate": False}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset 7 has a model (ball, box); 8 is like it, with labels box, core and ball."""
    root = tmp_path_factory.mktemp("work")
    write_dataset(root / "raw", cases=4, test_cases=0)
    other = write_dataset(root / "raw", name="Dataset008_Other", cases=4, test_cases=0, seed=5)
    labels = {"background": 0, "box": 2, "core": 3, "ball": 1}
    write_manifest(other, channels=("MRI",), labels=labels, cases=4, ending=".nii.gz")
    autoseg.plan_and_preprocess(dataset="7", workdir=str(root), workers=0, device="cpu", memory="2GB")
    autoseg.plan_and_preprocess(dataset="8", workdir=str(root), workers=0, device="cpu", memory="2GB")
    autoseg.train(dataset="7", workdir=str(root), fold=("1",), **SHORT)
    return root


def model_of(workdir: Path) -> ModelFolder:
    return ModelFolder(workdir / "results" / "Dataset007_Tiny" / "unet_3d_fullres")


def test_a_model_starts_another_and_run_json_says_what_was_done(
    workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = load_weights(model_of(workdir).fold(1).weights)
    with caplog.at_level(logging.INFO, logger="autoseg"):
        new = autoseg.train(
            dataset="8",
            workdir=str(workdir),
            fold=("0",),
            init=str(model_of(workdir).root),
            freeze=("encoder", "up", "decoder"),
            **SHORT,
        )
    assert "labels by name: background, ball, box; fresh: core" in caplog.text
    run = records.load(RunReport, new.run)
    table = run.settings["initialized"]
    assert table["source"].endswith("fold 1")
    assert table["share"] == 1
    assert all(name.startswith("heads.") for name in table["adapted"])
    assert set(table["loaded"]) | set(table["adapted"]) == set(source)
    assert run.settings["freeze"] == ["encoder", "up", "decoder"]
    trained = load_weights(new.fold(0).weights)
    assert all(torch.equal(trained[name], source[name]) for name in source if not name.startswith("heads."))
    # Finished, the same command does not open the model again, and its table stays.
    hidden = model_of(workdir).root.with_name("hidden")
    shutil.move(model_of(workdir).root, hidden)
    try:
        autoseg.train(
            dataset="8",
            workdir=str(workdir),
            fold=("0",),
            init=str(model_of(workdir).root),
            freeze=("encoder", "up", "decoder"),
            **SHORT,
        )
    finally:
        shutil.move(hidden, model_of(workdir).root)
    assert records.load(RunReport, new.run).settings["initialized"] == table


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"freeze": ("encoder",)}, "--freeze keeps trained weights"),
        ({"init": "nowhere"}, "is not a trained model"),
        ({"init": "nowhere.pth"}, "does not exist"),
        ({"init": "model/fold_3"}, "has no trained fold 3"),
        ({"init": "model", "freeze": ("body",)}, "--freeze body"),
    ],
)
def test_what_cannot_start_is_one_sentence(workdir: Path, settings: dict[str, object], words: str) -> None:
    named = str(settings.get("init", "")).replace("model", str(model_of(workdir).root))
    changed = {**settings, "init": named or None}
    with pytest.raises((SettingError, ModelFolderError)) as caught:
        autoseg.train(dataset="8", workdir=str(workdir), fold=("2",), **changed, **SHORT)
    assert words in caught.value.message


def test_folds_of_one_model_begin_alike(workdir: Path, tmp_path: Path) -> None:
    for part in ("preprocessed", "results"):
        shutil.copytree(workdir / part, tmp_path / part)
    source, home = str(model_of(tmp_path).root), {"dataset": "8", "workdir": str(tmp_path)}
    new = tmp_path / "results" / "Dataset008_Other" / "unet_3d_fullres"
    shutil.rmtree(new, ignore_errors=True)
    autoseg.train(fold=("0",), init=source, **home, **SHORT)
    run = (new / "run.json").read_bytes()
    for fold in ("0", "1"):
        for other in ({}, {"init": f"{source}/fold_1"}, {"init": source, "freeze": ("encoder",)}):
            with pytest.raises(SettingError, match="folds of one model begin alike") as caught:
                autoseg.train(fold=(fold,), **other, **home, **SHORT)
            assert f"--init {source}" in caught.value.message
    assert (new / "run.json").read_bytes() == run
    assert autoseg.train(fold=("1",), init=source, **home, **SHORT).finished_folds() == ("0", "1")
    with pytest.raises(SettingError, match="began with fresh weights"):
        autoseg.train(dataset="7", workdir=str(tmp_path), fold=("0",), init=source, **SHORT)


def test_several_datasets_at_once_have_no_start(workdir: Path) -> None:
    with pytest.raises(SettingError, match="one dataset"):
        autoseg.train(dataset=("7", "8"), workdir=str(workdir), init="model", **SHORT)


def test_a_model_with_another_plan_is_refused_and_the_named_command_mends_it(workdir: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    shutil.copytree(model_of(workdir).root, wide)
    plan = json.loads((wide / "plan.json").read_text())
    weights = load_weights(wide / "fold_1" / "weights.safetensors")
    for item in plan["configurations"]:
        item["topology"]["features"] = [2 * width for width in item["topology"]["features"]]
    (wide / "plan.json").write_text(json.dumps(plan))
    doubled = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in weights.items()}
    from safetensors.torch import save_file

    save_file(doubled, wide / "fold_1" / "weights.safetensors", metadata={"configuration": "3d_fullres"})
    with pytest.raises(SettingError, match="of its weights fit") as caught:
        autoseg.train(dataset="8", workdir=str(workdir), fold=("2",), init=str(wide), **SHORT)
    assert f"autoseg_move_plan -s {wide / 'plan.json'} -t Dataset008_Other" in caught.value.hint


def test_of_several_folds_the_best_validated_is_taken(workdir: Path, write_model, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", folds=("0", "1", "2"))
    assert read_source(folder.root, workdir=str(workdir)).place.endswith("fold 0")
    assert read_source(folder.fold(2).root, workdir=str(workdir)).place.endswith("fold 2")
    for fold, dice in ((0, 0.5), (1, 0.9), (2, 0.7)):
        summary = {
            "version": 1,
            "foreground_dice": dice,
            "surface_tolerance_mm": 2.0,
            "mean": [],
            "cases": [],
            "missing": [],
            "faults": [],
        }
        folder.fold(fold).validation.mkdir()
        folder.fold(fold).summary.write_text(json.dumps(summary))
    assert read_source(folder.root, workdir=str(workdir)).place.endswith("fold 1")
