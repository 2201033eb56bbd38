"""Preparation and training notice what changed behind their back, and say what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import autoseg
from autoseg.errors import DatasetError, SettingError
from autoseg.io.store import CaseStore
from autoseg.schema.folders import Workspace
from autoseg.schema.plan import Plan
from tests.synthetic import write_dataset

NAME = "Dataset007_Tiny"


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "raw", name=NAME, cases=4, test_cases=0)
    return tmp_path


def prepare(workdir: Path, **settings: object) -> Plan:
    common = {"dataset": "7", "workdir": str(workdir), "workers": 0, "device": "cpu", "memory": "1GB", "quiet": True}
    plan: Plan = autoseg.plan_and_preprocess(**{**common, **settings})
    return plan


def train(workdir: Path, **settings: object) -> None:
    short = {"epochs": 1, "iterations": 1, "val_iterations": 1, "workers": 0, "device": "cpu", "fold": ("0",)}
    autoseg.train(workdir=str(workdir), **{**short, **settings})


def edit_plan(workdir: Path) -> None:
    path = Workspace(workdir).prepared(NAME).plan
    data = json.loads(path.read_text())
    data["configurations"][1]["batch_size"] = 3
    path.write_text(json.dumps(data))


def test_a_second_run_keeps_the_plan_and_the_store(workdir: Path) -> None:
    first = prepare(workdir)
    store = Workspace(workdir).prepared(NAME).store("3d_fullres")
    before = {path.name: path.stat().st_mtime_ns for path in store.iterdir()}
    assert prepare(workdir) == first
    assert {path.name: path.stat().st_mtime_ns for path in store.iterdir()} == before


@pytest.mark.parametrize("verb", ["fingerprint", "preprocess"])
def test_neither_measuring_nor_preprocessing_loads_torch(workdir: Path, verb: str) -> None:
    prepare(workdir)
    code = f"import sys; from autoseg.cli.main import main; main([{verb!r}, '-d', '7', '--clean', '-w', '0', '-q'])"
    code += "; sys.exit(bool({'torch', 'scipy', 'SimpleITK'} & set(sys.modules)))"
    environment = {**os.environ, "AUTOSEG_HOME": str(workdir)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_clean_makes_the_store_again(workdir: Path) -> None:
    prepare(workdir)
    store = CaseStore(Workspace(workdir).prepared(NAME).store("3d_fullres"))
    before = {path.name: path.stat().st_mtime_ns for path in store.root.glob("*.b2nd")}
    autoseg.preprocess(dataset="7", workdir=str(workdir), workers=0, device="cpu", clean=True)
    after = {path.name: path.stat().st_mtime_ns for path in store.root.glob("*.b2nd")}
    assert after.keys() == before.keys()
    assert all(after[name] > before[name] for name in before)


def test_labels_that_changed_since_planning_are_one_sentence(workdir: Path) -> None:
    prepare(workdir)
    path = workdir / "raw" / NAME / "dataset.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "labels": {**data["labels"], "third": 3}}))
    autoseg.fingerprint(dataset="7", workdir=str(workdir), workers=0)
    with pytest.raises(SettingError, match="the labels of Dataset007_Tiny changed since it was planned") as caught:
        train(workdir)
    assert "autoseg_plan -d Dataset007_Tiny" in caught.value.hint
    with pytest.raises(SettingError, match="labels"):
        autoseg.preprocess(dataset="7", workdir=str(workdir), workers=0, device="cpu")
    path.write_text(json.dumps({**data, "channel_names": {"0": "CT"}}))
    autoseg.fingerprint(dataset="7", workdir=str(workdir), workers=0)
    with pytest.raises(SettingError, match="the channels of"):
        train(workdir)
    prepare(workdir)
    train(workdir)


def test_a_new_spacing_makes_plan_and_store_again(workdir: Path) -> None:
    prepare(workdir)
    assert prepare(workdir, spacing="4,2,2").configuration("3d_fullres").spacing == (4.0, 2.0, 2.0)
    store = CaseStore(Workspace(workdir).prepared(NAME).store("3d_fullres"))
    assert len(store.ids()) == 4
    assert store.open(store.ids()[0]).image.shape[1] < 12


def test_an_edited_plan_is_kept(workdir: Path) -> None:
    prepare(workdir)
    edit_plan(workdir)
    assert prepare(workdir).configuration("3d_fullres").batch_size == 3
    assert prepare(workdir, clean=True).configuration("3d_fullres").batch_size == 2


def test_an_edited_plan_that_contradicts_a_flag_is_refused(workdir: Path) -> None:
    prepare(workdir)
    edit_plan(workdir)
    with pytest.raises(SettingError, match="--spacing asks for something else") as caught:
        prepare(workdir, spacing="4,2,2")
    assert "--clean" in caught.value.hint


def test_an_edited_plan_does_not_outlive_other_labels(workdir: Path) -> None:
    prepare(workdir)
    edit_plan(workdir)
    path = workdir / "raw" / NAME / "dataset.json"
    data = json.loads(path.read_text())
    data["labels"] = {"background": 0, "ball": 1, "box": 2, "third": 3}
    path.write_text(json.dumps(data))
    with pytest.raises(SettingError, match="labels or channels"):
        prepare(workdir)


def test_moved_raw_data_are_found_at_their_new_place(workdir: Path) -> None:
    prepare(workdir)
    shutil.move(workdir / "raw" / NAME, workdir / "elsewhere" / NAME)
    prepare(workdir, dataset=str(workdir / "elsewhere" / NAME))
    train(workdir)
    model = Workspace(workdir).model(NAME, "3d_fullres", "unet")
    assert model.fold(0).summary.exists()


def test_changed_files_are_noticed_before_preprocessing(workdir: Path) -> None:
    prepare(workdir)
    image = next((workdir / "raw" / NAME / "imagesTr").iterdir())
    image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(DatasetError, match="changed since it was measured"):
        autoseg.preprocess(dataset="7", workdir=str(workdir), workers=0, device="cpu")


def test_folds_of_another_plan_are_not_mixed(workdir: Path) -> None:
    prepare(workdir)
    train(workdir)
    model = Workspace(workdir).model(NAME, "3d_fullres", "unet")
    before = model.plan.read_bytes()
    prepare(workdir, spacing="4,2,2")
    with pytest.raises(SettingError, match="trained with another plan"):
        train(workdir, fold=("1",))
    assert model.plan.read_bytes() == before


def test_training_before_planning_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        train(tmp_path)
    assert "autoseg_plan_and_preprocess" in caught.value.hint
