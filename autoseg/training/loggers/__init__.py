"""Where training may be watched besides its own files: TensorBoard, MLflow, Weights & Biases, and what others add.

A logger is a function ``open(run) -> Sink``, registered here or by another package in the entry-point group
``autoseg.loggers``. It sees every epoch of a training once, also when training is stopped and goes on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from autoseg import records
from autoseg.errors import SettingError
from autoseg.log import get_logger
from autoseg.registry import Registry
from autoseg.schema.folders import FoldFolder
from autoseg.schema.settings import TrainSettings
from autoseg.training.state import TrainState, history_rows

_LOG = get_logger(__name__)

LOGGERS = Registry(
    "logger",
    {
        "tensorboard": "autoseg.training.loggers.tensorboard:open_sink",
        "mlflow": "autoseg.training.loggers.mlflow:open_sink",
        "wandb": "autoseg.training.loggers.wandb:open_sink",
    },
    plugins="autoseg.loggers",
)


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """What is logged: one fold of one model.

    Attributes:
        project: the dataset.
        model: the model's folder name.
        name: of the run, unique within the project.
        id: the same whenever this training goes on, another one for every new training.
        folder: for files of the logger; exists.
        settings: those of the training, plain values.
        last_epoch: the last one that this logger was given in earlier runs, 0 if there were none.
    """

    project: str
    model: str
    name: str
    id: str
    folder: Path
    settings: Mapping[str, Any]
    last_epoch: int


class Sink(Protocol):
    """An open log. Neither method may change anything that training uses."""

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Take the figures of one epoch, counted from 1; epochs come in order and once."""

    def close(self) -> None:
        """Write what is left; training may go on with the same ``id`` later."""


OpenSink = Callable[[LoggedRun], Sink]


class Trained(Protocol):
    """What the loggers need to know of a training."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> TrainSettings: ...

    @property
    def folder(self) -> FoldFolder: ...


@dataclass(frozen=True, kw_only=True)
class LoggerMark:
    """What a fold remembers about a logger, in ``loggers/NAME.json``."""

    id: str
    last_epoch: int


@contextmanager
def logging_to(task: Trained, state: TrainState) -> Iterator[Callable[[TrainState], None]]:
    """A hook that hands each finished epoch to the loggers of ``task.settings``; they are closed with the context.

    Epochs of ``state`` that a logger was not given yet are handed over at once. A logger that fails later is given up
    with a warning: training goes on.

    Raises:
        SettingError: no such logger, its package is missing, or it cannot be opened.
    """
    with ExitStack() as stack:
        open_ones = [stack.enter_context(_one_logger(name, task, state)) for name in task.settings.logger]

        def hook(current: TrainState) -> None:
            for logger in open_ones:
                logger(current)

        hook(state)
        yield hook


@contextmanager
def _one_logger(name: str, task: Trained, state: TrainState) -> Iterator[Callable[[TrainState], None]]:
    folder = task.folder.root / "loggers"
    path = folder / f"{name}.json"
    # Without a finished epoch this is another training than the one that was logged before.
    known = path.exists() and state.epoch > 0
    mark = records.load(LoggerMark, path) if known else LoggerMark(id=uuid4().hex[:12], last_epoch=0)
    records.make_folder(folder)
    sink = _opened(name, _described(task, mark, folder))
    healthy = True

    def hook(current: TrainState) -> None:
        nonlocal mark, healthy
        if not healthy:
            return
        try:
            mark = _hand_over(sink, path, mark, current)
        except Exception as error:  # whatever a foreign package raises must not end days of training
            healthy = False
            _LOG.warning("logger %s failed: %s; training goes on without it", name, _first_line(error))

    try:
        yield hook
    finally:
        try:
            sink.close()
        except Exception as error:  # as above
            _LOG.warning("logger %s could not be closed: %s", name, _first_line(error))


def _hand_over(sink: Sink, path: Path, mark: LoggerMark, state: TrainState) -> LoggerMark:
    for row in history_rows(state.history[mark.last_epoch :]):
        sink.log(row["epoch"], figures(row))
        mark = LoggerMark(id=mark.id, last_epoch=row["epoch"])
    records.save(path, mark)
    return mark


def figures(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of ``log.jsonl`` under flat names; what was not measured is left out.

    A label called ``mean`` is ``dice_label/mean``, so that ``dice/mean`` is the mean of all labels in every log.
    """
    found = {
        f"{'dice_label' if name == 'mean' else 'dice'}/{name}": value
        for name, value in row["dice"].items()
        if value is not None
    }
    names = {
        "train_loss": "loss/train",
        "val_loss": "loss/validation",
        "mean_dice": "dice/mean",
        "learning_rate": "learning_rate",
        "seconds": "seconds/epoch",
        "elapsed": "seconds/total",
        "step": "step",
    }
    return {**{flat: float(row[name]) for name, flat in names.items() if row[name] is not None}, **found}


def _described(task: Trained, mark: LoggerMark, folder: Path) -> LoggedRun:
    # .../DATASET/MODEL/fold_K/
    model = task.folder.root.parent
    # Paths say who somebody is, and logs may go to strangers.
    private = {"workdir", "splits"}
    settings = {
        name: value for name, value in asdict(task.settings).items() if value not in (None, ()) and name not in private
    }
    return LoggedRun(
        project=model.parent.name,
        model=model.name,
        name=f"{model.name} fold {task.name}",
        id=mark.id,
        folder=folder,
        settings=settings,
        last_epoch=mark.last_epoch,
    )


def _opened(name: str, run: LoggedRun) -> Sink:
    open_sink: OpenSink = LOGGERS.get(name)
    try:
        return open_sink(run)
    except SettingError:
        raise
    except Exception as error:  # a foreign package, which may raise anything
        raise SettingError(
            f"logger {name} cannot be opened: {_first_line(error)}",
            hint=f"mend its configuration, or train without --logger {name}",
        ) from error


def needed(module: str, *, extra: str) -> Any:
    """A package that only this logger needs.

    Raises:
        SettingError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SettingError(
            f"the logger {extra} needs a package that cannot be imported: {error}",
            hint=f"pip install 'autoseg[{extra}]'",
        ) from error


def settings_text(settings: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """Settings as pairs of short texts, for logs that hold nothing else."""
    return [
        (name, ", ".join(map(str, value)) if isinstance(value, tuple) else str(value))
        for name, value in settings.items()
    ]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
