"""Loggers see every epoch once, whatever happens to the training; a broken one does not harm it."""

from __future__ import annotations

import csv
import importlib.util
import json
import posixpath
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from autoseg.errors import SettingError, StoppedError
from autoseg.training.checkpoint import load_weights
from autoseg.training.fold import FoldTask, train_fold
from autoseg.training.loggers import LOGGERS, figures
from autoseg.training.loggers.mlflow import _allowed

MakeTask = Callable[..., FoldTask]

PLUGIN = """
import json

class Sink:
    def __init__(self, run):
        self.path, self.fail = run.folder / "lines.jsonl", run.settings.get("seed") == 13
        self.write(opened=run.id, last=run.last_epoch, project=run.project, name=run.name)

    def write(self, **values):
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\\n")

    def log(self, epoch, values):
        if self.fail and epoch == 2:
            raise RuntimeError("no network")
        self.write(epoch=epoch, **values)

    def close(self):
        self.write(closed=True)

def open_sink(run):
    return Sink(run)

def refuse(run):
    raise OSError("the server is away")
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another package with two loggers, found as an installed one is: by its metadata."""
    site = tmp_path / "site"
    info = site / "watching-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "watching.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: watching\nVersion: 1.0\n")
    points = "[autoseg.loggers]\nlines = watching:open_sink\naway = watching:refuse\n"
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(site))
    yield
    sys.modules.pop("watching", None)


def never() -> bool:
    return False


def stop_after(steps: int) -> Callable[[], bool]:
    answers: Iterator[bool] = iter([False] * steps)
    return lambda: next(answers, True)


def logged(task: FoldTask) -> list[dict[str, object]]:
    path = task.folder.root / "loggers" / "lines.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def history(task: FoldTask) -> list[Mapping[str, object]]:
    return [json.loads(line) for line in task.folder.log.read_text().splitlines()]


def test_csv_and_jsonl_are_always_written_and_agree(make_task: MakeTask) -> None:
    task = make_task()
    with pytest.raises(StoppedError):
        train_fold(task, stop=stop_after(5))
    train_fold(task, stop=never)
    with task.folder.log.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row, line in zip(rows, history(task), strict=True):
        assert float(row["train_loss"]) == line["train_loss"]
        assert float(row["dice small"]) == line["dice"]["small"]  # type: ignore[index]


def test_a_label_called_mean_does_not_hide_the_mean() -> None:
    row = {
        **dict.fromkeys(("epoch", "step", "learning_rate", "train_loss", "seconds", "elapsed"), 1),
        "val_loss": None,
        "mean_dice": 0.5,
        "dice": {"mean": 0.8, "other": 0.2, "absent": None},
    }
    values = figures(row)
    assert (values["dice/mean"], values["dice_label/mean"], values["dice/other"]) == (0.5, 0.8, 0.2)
    assert not {"dice/absent", "loss/validation"} & set(values)


ODD_LABELS = (
    *("a+b", "a*b", "a:b", "a_b", "../up", "up/..", "a//b", "a/b", "/a", "a/", "/", ".", "..", "..a", "...", "./a"),
    *(
        "x" * 244,
        "x" * 245,
        "x" * 246,
        "x" * 300,
        "x" * 301,
        "+" * 300,
        "a" * 236 + "/" + "b" * 60,
        "größe",
        "a b",
        "-",
    ),
    *("lésion\n", "a\tb", "ア+", "100 %"),
)


def test_mlflow_is_given_names_that_it_takes_and_different_ones_stay_different() -> None:
    names = [*(f"dice/{label}" for label in ODD_LABELS), *ODD_LABELS, ""]
    given = [_allowed(name) for name in names]
    for name in given:
        # As MLflow documents them; a colon is not taken on Windows.
        assert re.fullmatch(r"[/\w.\- ]{1,250}", name), name
        assert posixpath.normpath(name) == name, name
        assert name != "." and not name.startswith(("..", "/")), name
    assert len(set(given)) == len(set(names))
    for name in ("loss/train", "dice/mean", "dice/left atrium", "dice/Dataset003_Liver tumour", "dice/größe", "step"):
        assert _allowed(name) == name


def test_names_are_those_of_autoseg_and_of_other_packages(plugin: None) -> None:
    assert set(LOGGERS.names()) == {"tensorboard", "mlflow", "wandb", "lines", "away"}


def test_a_logger_sees_each_epoch_once_over_a_stop(plugin: None, make_task: MakeTask) -> None:
    task = make_task(epochs=4, logger=("lines",))
    with pytest.raises(StoppedError):
        train_fold(task, stop=stop_after(10))
    train_fold(task, stop=never)
    lines = logged(task)
    assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2, 3, 4]
    opened = [line for line in lines if "opened" in line]
    assert [line["last"] for line in opened] == [0, 2]
    assert opened[0]["opened"] == opened[1]["opened"]
    assert opened[0]["name"] == "run fold 0"
    assert len([line for line in lines if "closed" in line]) == 2
    for line, row in zip((line for line in lines if "epoch" in line), history(task), strict=True):
        assert {"epoch": row["epoch"], **figures(row)} == line


def test_a_killed_training_repeats_epochs_but_not_the_log(plugin: None, make_task: MakeTask) -> None:
    task = make_task(epochs=3, logger=("lines",))
    with pytest.raises(StoppedError):
        train_fold(task, stop=stop_after(5))
    early = task.folder.checkpoint.read_bytes()
    with pytest.raises(StoppedError):
        train_fold(task, stop=stop_after(4))
    # The checkpoint is older than the log, as after a power failure.
    task.folder.checkpoint.write_bytes(early)
    train_fold(task, stop=never)
    assert [line["epoch"] for line in logged(task) if "epoch" in line] == [1, 2, 3]


def test_a_logger_that_comes_later_gets_what_was_before(plugin: None, make_task: MakeTask) -> None:
    task = make_task(epochs=3)
    with pytest.raises(StoppedError):
        train_fold(task, stop=stop_after(9))
    train_fold(replace(task, settings=replace(task.settings, logger=("lines",))), stop=never)
    assert [line["epoch"] for line in logged(task) if "epoch" in line] == [1, 2, 3]


def test_a_new_training_in_the_same_place_is_another_run(plugin: None, make_task: MakeTask) -> None:
    task = make_task(logger=("lines",))
    train_fold(task, stop=never)
    task.folder.checkpoint.unlink()
    task.folder.weights.unlink()
    train_fold(task, stop=never)
    assert len({line["opened"] for line in logged(task) if "opened" in line}) == 2


def test_a_logger_that_breaks_is_given_up_and_changes_nothing(
    plugin: None, make_task: MakeTask, caplog: pytest.LogCaptureFixture
) -> None:
    alone = make_task(folder="alone", epochs=3, seed=13)
    watched = make_task(folder="watched", epochs=3, seed=13, logger=("lines",))
    train_fold(alone, stop=never)
    with caplog.at_level("WARNING", logger="autoseg"):
        train_fold(watched, stop=never)
    assert caplog.text.count("logger lines failed: no network; training goes on without it") == 1
    a, b = load_weights(alone.folder.weights), load_weights(watched.folder.weights)
    assert all((a[name] == b[name]).all() for name in a)
    assert [line["epoch"] for line in logged(watched) if "epoch" in line] == [1]


def test_what_cannot_be_opened_is_a_sentence(plugin: None, make_task: MakeTask) -> None:
    with pytest.raises(SettingError, match="logger away cannot be opened: the server is away"):
        train_fold(make_task(folder="a", logger=("away",)), stop=never)
    with pytest.raises(SettingError, match="there is no logger called 'paper'") as caught:
        train_fold(make_task(folder="b", logger=("paper",)), stop=never)
    assert "tensorboard" in caught.value.hint


@pytest.mark.parametrize("name", ["mlflow", "wandb", "tensorboard"])
def test_a_missing_package_is_named_with_the_command(name: str, make_task: MakeTask) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(SettingError) as caught:
        train_fold(make_task(logger=(name,)), stop=never)
    assert caught.value.hint == f"pip install 'autoseg[{name}]'"


def test_tensorboard_reads_every_epoch_once(make_task: MakeTask) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs pip install tensorboard"
    )
    task = make_task(epochs=3, logger=("tensorboard",))
    with pytest.raises(StoppedError):
        train_fold(task, stop=stop_after(6))
    train_fold(task, stop=never)
    events = accumulator.EventAccumulator(str(task.folder.root / "loggers" / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("loss/train")
    assert [event.step for event in scalars] == [1, 2, 3]
    assert [event.value for event in scalars] == pytest.approx([row["train_loss"] for row in history(task)])
    assert {"dice/small", "dice/large", "dice/mean", "learning_rate"} <= set(events.Tags()["scalars"])


def test_mlflow_holds_one_run_with_every_epoch_once(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="needs pip install mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = f"sqlite:///{tmp_path / 'runs.db'}"
    try:
        client = tracking.MlflowClient(place)
        client.search_experiments()
    except Exception as error:  # mlflow-skinny has no database
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        place = (tmp_path / "runs").as_uri()
        client = tracking.MlflowClient(place)
        assert client.search_experiments() is not None, error
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    task = make_task(epochs=3, logger=("mlflow",))
    with pytest.raises(StoppedError):
        train_fold(task, stop=stop_after(6))
    train_fold(task, stop=never)
    experiment = client.get_experiment_by_name(tmp_path.name)
    (run,) = client.search_runs([experiment.experiment_id])
    metrics = client.get_metric_history(run.info.run_id, "loss/train")
    assert [metric.step for metric in metrics] == [1, 2, 3]
    assert [metric.value for metric in metrics] == pytest.approx([row["train_loss"] for row in history(task)])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run fold 0")
    assert run.data.params["epochs"] == "3"
    for name in map(_allowed, ODD_LABELS):
        client.log_metric(run.info.run_id, name, 0.5, step=1)
        assert [metric.value for metric in client.get_metric_history(run.info.run_id, name)] == [0.5]


def test_wandb_writes_offline_runs_of_one_id(make_task: MakeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    task = make_task(epochs=2, logger=("wandb",))
    with pytest.raises(StoppedError):
        train_fold(task, stop=stop_after(6))
    train_fold(task, stop=never)
    runs = sorted((task.folder.root / "loggers" / "wandb").glob("offline-run-*"))
    assert len({run.name.rsplit("-", 1)[1] for run in runs}) == 1
    assert all(list(run.glob("run-*.wandb")) for run in runs)
    assert json.loads((task.folder.root / "loggers" / "wandb.json").read_text())["last_epoch"] == 2
