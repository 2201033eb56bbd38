"""The training loop, the only one. Everything that varies arrives as a value."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from autoseg.errors import DivergenceError
from autoseg.schema.architecture import Recipe
from autoseg.training.distributed import World, agree
from autoseg.training.optim import adjust_optimizer
from autoseg.training.recipe import fit_to_length
from autoseg.training.schedule import Schedule, learning_rate
from autoseg.training.state import EpochRecord, TrainState

Hook = Callable[[TrainState], None]
# Reads a batch, updates the network once and returns the loss, detached and still on the device.
TakeStep = Callable[[TrainState], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class OnlineScores:
    """What validation on patches says: mean loss, and Dice per label over all voxels seen (None if none was)."""

    loss: float
    dice: dict[str, float | None]


Validate = Callable[[TrainState], OnlineScores]


def fit(
    state: TrainState,
    take_step: TakeStep,
    *,
    validate: Validate,
    schedule: Schedule,
    recipe: Recipe,
    device: torch.device,
    world: World,
    hooks: Sequence[Hook] = (),
    stop: Callable[[], bool] = lambda: False,
    aim: Callable[[TrainState], float] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Take steps until the schedule is finished (True) or ``stop()`` asks for an end (False); hooks follow epochs.

    Args:
        aim: asked after each epoch where time decides: the seconds that training may take in all, which change with
            what else the machine has to do.
        clock: seconds, from any origin.

    Raises:
        DivergenceError: the mean loss of an epoch is not finite.
    """
    mark = clock()
    state.target = schedule.seconds
    while not schedule.finished(state.step, state.elapsed):
        if agree(float(stop()), world, device):
            return False
        progress = schedule.progress(state.step, state.elapsed)
        fitted = fit_to_length(recipe, schedule.expected_steps(state.step, state.elapsed))
        rate = learning_rate(fitted, progress)
        adjust_optimizer(state.optimizer, lr=rate, momentum=fitted.momentum)
        value = take_step(state)
        state.epoch_loss = value if state.epoch_loss is None else state.epoch_loss + value
        state.step += 1
        state.epoch_steps += 1
        mark = _take_time(state, mark, clock, schedule, world, device)
        over = schedule.epoch_over(state.epoch_steps, state.epoch_seconds)
        if over or schedule.finished(state.step, state.elapsed):
            scores = validate(state)
            mark = _take_time(state, mark, clock, schedule, world, device)
            finish_epoch(state, scores, learning_rate=rate)
            for hook in hooks:
                hook(state)
            if aim is not None:
                schedule = replace(schedule, seconds=agree(aim(state) if world.is_first else 0.0, world, device))
                state.target = schedule.seconds
                # What the hooks and the question took is off the aim already, and must not count as training too.
                mark = clock()
    return True


def _take_time(
    state: TrainState,
    mark: float,
    clock: Callable[[], float],
    schedule: Schedule,
    world: World,
    device: torch.device,
) -> float:
    now = clock()
    state.elapsed += now - mark
    state.epoch_seconds += now - mark
    if schedule.seconds is not None:
        # Clocks differ between processes; one of them decides when the time is over.
        state.elapsed = agree(state.elapsed, world, device)
        state.epoch_seconds = agree(state.epoch_seconds, world, device)
    return now


def finish_epoch(state: TrainState, scores: OnlineScores, *, learning_rate: float) -> None:
    """Move the epoch under way into the history.

    Raises:
        DivergenceError: its mean loss is NaN or infinite.
    """
    mean_loss = float(state.epoch_loss / state.epoch_steps) if state.epoch_loss is not None else math.nan
    if not math.isfinite(mean_loss):
        raise DivergenceError(
            f"the training loss became {mean_loss} in epoch {state.epoch + 1}",
            hint="remove the fold and train with a smaller --lr; look for huge values in the images",
        )
    record = EpochRecord(
        epoch=state.epoch + 1,
        step=state.step,
        learning_rate=learning_rate,
        train_loss=mean_loss,
        val_loss=scores.loss if math.isfinite(scores.loss) else None,
        dice=scores.dice,
        seconds=state.epoch_seconds,
        elapsed=state.elapsed,
    )
    state.history.append(record)
    state.epoch_steps = 0
    state.epoch_seconds = 0.0
    state.epoch_loss = None
