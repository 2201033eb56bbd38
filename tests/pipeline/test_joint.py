"""One network for two datasets: through the public function, with everything that a single training can do."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import autoseg
from autoseg import records
from autoseg.errors import PartialError, SettingError, StoppedError
from autoseg.pipeline.joint import common_topologies, set_up_jointly, train_jointly
from autoseg.pipeline.outlook import curve_of_dataset
from autoseg.schema.folders import ModelFolder, Workspace
from autoseg.schema.plan import Plan, Topology
from autoseg.schema.report import EvaluationReport, FoldRun
from autoseg.schema.settings import TrainSettings
from autoseg.training.checkpoint import load_weights
from autoseg.training.joint import train_joint_fold
from tests.synthetic import write_dataset

SMALL, LARGE = "Dataset007_Small", "Dataset008_Large"
SHORT = {"epochs": 1, "iterations": 3, "val_iterations": 1, "workers": 0, "device": "cpu", "fold": ("0",)}


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    # Another patch and another number of stages; two channels in one of them.
    write_dataset(tmp_path / "raw", name=SMALL, cases=4, test_cases=0, shape=(16, 20, 18))
    write_dataset(tmp_path / "raw", name=LARGE, cases=4, test_cases=0, shape=(24, 40, 36))
    for number in ("7", "8"):
        autoseg.plan_and_preprocess(dataset=number, workdir=str(tmp_path), workers=0, device="cpu", memory="2GB")
    return tmp_path


def train(workdir: Path, **settings: object) -> tuple[ModelFolder, ...]:
    models: tuple[ModelFolder, ...] = autoseg.train(
        **{"dataset": ("7", "8"), "workdir": str(workdir), **SHORT, **settings}
    )
    return models


def test_each_dataset_gets_a_model_that_shares_weights_with_the_others(workdir: Path) -> None:
    models = train(workdir, arch="u2net3d")
    plans = [records.load(Plan, model.plan) for model in models]
    assert [plan.dataset for plan in plans] == [SMALL, LARGE]
    topologies = [plan.configuration("3d_fullres").topology for plan in plans]
    assert topologies[0].features == topologies[1].features
    weights = [load_weights(model.fold("0").weights) for model in models]
    shared = [name for name in weights[0] if name.startswith("shared.")]
    assert shared
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in shared)
    own = [name for name in weights[0] if name.startswith("adapter.entry")]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in own)
    for model in models:
        summary = records.load(EvaluationReport, model.fold("0").summary)
        assert np.isfinite(summary.foreground_dice)
        assert records.load(FoldRun, model.fold("0").run).status == "validated"
        assert model.report.exists()


def test_a_model_of_joint_training_predicts_like_any_other(workdir: Path, tmp_path: Path) -> None:
    small, _ = train(workdir)
    image = sorted((workdir / "raw" / SMALL / "imagesTr").iterdir())[0]
    report = autoseg.predict(inputs=str(image), outputs=str(tmp_path / "out"), model=str(small.root), device="cpu")
    assert [path.exists() for path in report.written] == [True]


def test_three_steps_of_each_dataset_are_taken_in_turn(workdir: Path) -> None:
    train(workdir)
    root = Workspace(workdir).model(f"{SMALL}-{LARGE}", "3d_fullres", "u2net3d")
    assert records.load(FoldRun, root.fold("0").run).steps == 6


def test_stopping_in_the_middle_of_a_round_changes_nothing(workdir: Path) -> None:
    once = [load_weights(model.fold("0").weights) for model in train(workdir, validate=False)]
    results = Workspace(workdir).results
    results.rename(workdir / "before")
    asked = itertools.count()
    settings = TrainSettings(dataset=("7", "8"), workdir=str(workdir), **SHORT)  # type: ignore[arg-type]
    with pytest.raises(StoppedError, match="after 3 steps"):
        train_joint_fold(set_up_jointly(settings).fold("0"), stop=lambda: next(asked) == 3)
    again = [load_weights(model.fold("0").weights) for model in train(workdir, validate=False)]
    for left, right in zip(once, again, strict=True):
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_time_budget_ends_with_what_more_time_would_give_each_dataset(
    workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="autoseg")
    models = timed(workdir)
    common = Workspace(workdir).model(f"{SMALL}-{LARGE}", "3d_fullres", "u2net3d").fold("0")
    said = [record.getMessage() for record in caplog.records]
    for dataset in (SMALL, LARGE):
        assert sum(line.startswith(f"{dataset}: twice the time") for line in said) == 1
        assert curve_of_dataset(common.log, dataset)
    # Scores that are missing are made up for, and are no reason to train for another round.
    label = next((workdir / "raw" / LARGE / "labelsTr").glob(f"{validated(models[1])}.*"))
    whole = label.read_bytes()
    label.write_bytes(whole[:100])
    with pytest.raises(PartialError, match=LARGE):
        timed(workdir)
    label.write_bytes(whole)
    second = records.load(FoldRun, common.run)
    timed(workdir)
    last = records.load(FoldRun, common.run)
    assert (second.round, second.status, last.round, last.status) == (1, "trained", 1, "validated")
    assert last.steps == second.steps
    assert any("as much time once more" in record.getMessage() for record in caplog.records)


def test_too_little_time_is_refused_before_anything_is_written(workdir: Path) -> None:
    with pytest.raises(SettingError, match="too few for anything useful"):
        timed(workdir, time_budget=1.0)
    assert not (workdir / "results").exists()


def timed(workdir: Path, *, time_budget: float = 20.0) -> tuple[ModelFolder, ...]:
    settings = {name: value for name, value in SHORT.items() if name != "epochs"}
    asked = {**settings, "dataset": ("7", "8"), "workdir": str(workdir), "quiet": True, "arch": "u2net3d"}
    # A clock that moves a little whenever it is read, so that time is a number of steps.
    ticks = itertools.count(1)
    return train_jointly(TrainSettings(**asked, time_budget=time_budget), clock=lambda: 0.05 * next(ticks))


def validated(model: ModelFolder) -> str:
    return records.load(EvaluationReport, model.fold("0").summary).cases[0].id


PLUGIN = """
import json

class Sink:
    def __init__(self, run):
        self.path = run.folder / "lines.jsonl"
        self.write(project=run.project, name=run.name, datasets=list(run.settings["dataset"]))

    def write(self, **values):
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\\n")

    def log(self, epoch, values):
        self.write(epoch=epoch, **values)

    def close(self):
        pass
"""


def test_loggers_have_one_run_with_the_dice_of_every_dataset(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A logger of another package, found as an installed one is: by its metadata."""
    site = tmp_path / "site"
    info = site / "joint_watching-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "joint_watching.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: joint-watching\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[autoseg.loggers]\njoint_lines = joint_watching:Sink\n")
    monkeypatch.syspath_prepend(str(site))
    models = train(workdir, validate=False, epochs=2, logger=("joint_lines",))
    common = Workspace(workdir).model(f"{SMALL}-{LARGE}", "3d_fullres", "u2net3d")
    fold = common.fold("0")
    lines = [json.loads(line) for line in (fold.root / "loggers" / "lines.jsonl").read_text().splitlines()]
    project, run = f"{SMALL}-{LARGE}", f"{common.root.name} fold 0"
    assert lines[0] == {"project": project, "name": run, "datasets": [SMALL, LARGE]}
    history = [json.loads(line) for line in fold.log.read_text().splitlines()]
    assert [line["epoch"] for line in lines[1:]] == [row["epoch"] for row in history] == [1, 2]
    for line, row in zip(lines[1:], history, strict=True):
        assert line["loss/train"] == row["train_loss"]
        dice = {name.removeprefix("dice/"): value for name, value in line.items() if name.startswith("dice/")}
        labels = {f"{dataset} {label}" for dataset in (SMALL, LARGE) for label in ("ball", "box")}
        assert dice.keys() - {"mean"} <= labels
        assert dice == {**{name: row["dice"][name] for name in dice.keys() - {"mean"}}, "mean": row["mean_dice"]}
    shown = {name.split(" ")[0] for line in lines[1:] for name in line if name.startswith("dice/Dataset")}
    assert shown == {f"dice/{SMALL}", f"dice/{LARGE}"}
    assert not any((model.fold("0").root / "loggers").exists() for model in models)


def test_what_cannot_be_shared_is_said_in_a_sentence(workdir: Path) -> None:
    with pytest.raises(SettingError, match="unetpp cannot be trained on several datasets"):
        train(workdir, arch="unetpp")
    with pytest.raises(SettingError, match="named twice"):
        train(workdir, dataset=("7", SMALL))


def test_shallow_topologies_get_stages_that_do_not_stride() -> None:
    shallow = Topology(strides=((1, 1), (2, 2)), kernels=((3, 3),) * 2, features=(8, 16))
    deep = Topology(strides=((1, 1), (2, 1), (2, 2)), kernels=((1, 3), (3, 3), (3, 3)), features=(8, 16, 32))
    first, second = common_topologies([shallow, deep])
    assert second == deep
    assert first == replace(shallow, strides=((1, 1), (2, 2), (1, 1)), kernels=((3, 3),) * 3, features=(8, 16, 32))
    assert first.divisor == shallow.divisor
