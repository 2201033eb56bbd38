"""Runs of Weights & Biases: the dataset is the project; its own variables (WANDB_MODE, WANDB_ENTITY) hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoseg.training.loggers import LoggedRun, Sink, needed


class _Sink:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        self._run.log({"epoch": epoch, **values}, step=epoch)

    def close(self) -> None:
        self._run.finish()


def open_sink(run: LoggedRun) -> Sink:
    """Open the run with this ``id``, which goes on where it was."""
    wandb = needed("wandb", extra="wandb")
    opened = wandb.init(
        project=run.project,
        group=run.model,
        name=run.name,
        id=run.id,
        resume="allow",
        dir=str(run.folder),
        config=dict(run.settings),
        # One process may train several folds, and whoever calls autoseg may have a run of their own.
        reinit="create_new",
    )
    return _Sink(opened)
