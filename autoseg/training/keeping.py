"""What a training leaves on disk while it runs: checkpoint, log, curve, and a record of where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from autoseg import records
from autoseg.errors import StoppedError
from autoseg.log import duration, get_logger
from autoseg.schema.folders import FoldFolder
from autoseg.schema.report import FoldRun, Share
from autoseg.schema.settings import TrainSettings
from autoseg.training import hooks
from autoseg.training.checkpoint import load_checkpoint, save_checkpoint
from autoseg.training.fit import Hook
from autoseg.training.schedule import Schedule
from autoseg.training.state import TrainState

_LOG = get_logger(__name__)

# Writing a checkpoint after every short epoch would cost more than the epoch; losing a minute costs nobody much.
SECONDS_BETWEEN_CHECKPOINTS = 60.0
# Of a short time budget a minute is much.
_CHECKPOINTS_PER_BUDGET = 20
SECONDS_BETWEEN_PLOTS = 30.0
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Kept(Protocol):
    """A training that can be stopped and gone on with: of one fold, or of a fold of several datasets."""

    @property
    def name(self) -> str: ...

    @property
    def signature(self) -> str:
        """Equal for two runs exactly if one may go on where the other stopped."""

    @property
    def settings(self) -> TrainSettings: ...

    @property
    def folder(self) -> FoldFolder: ...

    @property
    def share(self) -> Share | None:
        """Its part in a time budget, if one was given."""


def go_on(task: Kept, state: TrainState, *, precision: torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """Restore ``state`` from the checkpoint, if there is one, and return the precision to train in."""
    if not task.folder.checkpoint.exists():
        return precision
    name = load_checkpoint(task.folder.checkpoint, state, signature=task.signature, device=device)
    _LOG.info("fold %s: going on after %d steps (%s)", task.name, state.step, duration(state.elapsed))
    return PRECISIONS[name]


def keep(task: Kept, state: TrainState, *, precision: torch.dtype | None) -> None:
    """Write the checkpoint, and that training is under way."""
    name = next(name for name, kind in PRECISIONS.items() if kind is precision)
    save_checkpoint(task.folder.checkpoint, state, signature=task.signature, precision=name)
    records.save(task.folder.run, run_record(task, state, "training"))


def leave(
    task: Kept,
    state: TrainState,
    *,
    precision: torch.dtype | None,
    draw_progress: Hook | None,
) -> None:
    """Write everything that belongs to the last step, finished or not."""
    keep(task, state, precision=precision)
    hooks.write_log(task.folder.log)(state)
    if draw_progress is not None and state.history:
        draw_progress(state)


def stopped(task: Kept, state: TrainState) -> StoppedError:
    """What is raised when a training ends because somebody asked for it."""
    return StoppedError(
        f"fold {task.name} was stopped after {state.step} steps; its checkpoint is written",
        hint="run the same command again to go on",
    )


def epoch_hooks(
    task: Kept, schedule: Schedule, *, precision: torch.dtype | None, draw_progress: Hook | None
) -> Sequence[Hook]:
    """What happens after each epoch: a line, the log, and now and then a checkpoint and the curve."""

    def keep_now(state: TrainState) -> None:
        keep(task, state, precision=precision)

    between = SECONDS_BETWEEN_CHECKPOINTS
    if task.share is not None:
        between = min(between, task.share.budget / _CHECKPOINTS_PER_BUDGET)
    chosen = [
        hooks.log_epoch(schedule),
        hooks.write_log(task.folder.log),
        hooks.now_and_then(keep_now, seconds=between),
    ]
    if draw_progress is not None:
        chosen.append(hooks.now_and_then(draw_progress, seconds=SECONDS_BETWEEN_PLOTS))
    return chosen


def weights_are_final(task: Kept, state: TrainState) -> bool:
    """Whether the record says that training ended at this very step; weights of an earlier end may lie there too."""
    if not task.folder.run.exists():
        return False
    known = records.load(FoldRun, task.folder.run)
    return known.status != "training" and known.steps == state.step


def run_record(task: Kept, state: TrainState, status: str) -> FoldRun:
    """Where a training stands; ``status`` as in ``FoldRun``."""
    share = task.share
    return FoldRun(
        fold=task.name,
        status=status,
        signature=task.signature,
        target_epochs=task.settings.epochs if state.target is None else None,
        target_seconds=state.target,
        budget=share.budget if share is not None else None,
        epochs=state.epoch,
        steps=state.step,
        seconds=state.elapsed,
        round=share.round if share is not None else 0,
        before=share.before if share is not None else 0.0,
        together=share.together if share is not None else (),
        used=share.used + state.elapsed - share.resumed_at if share is not None else 0.0,
    )
