"""The training loop, the only one. Everything that varies arrives as a value."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from autoseg.errors import DivergenceError
from autoseg.training.data import Sample
from autoseg.training.distributed import World, agree
from autoseg.training.optim import set_learning_rate
from autoseg.training.schedule import Schedule, poly
from autoseg.training.state import EpochRecord, TrainState
from autoseg.training.step import Kitchen, Loss, make_batch, train_step

Hook = Callable[[TrainState], None]


@dataclass(frozen=True, kw_only=True)
class OnlineScores:
    """What validation on patches says: mean loss, and Dice per label over all voxels seen (None if none was)."""

    loss: float
    dice: dict[str, float | None]


Validate = Callable[[TrainState], OnlineScores]


def fit(
    state: TrainState,
    train: Iterator[Sequence[Sample]],
    *,
    loss: Loss,
    validate: Validate,
    schedule: Schedule,
    initial_lr: float,
    kitchen: Kitchen,
    world: World,
    hooks: Sequence[Hook] = (),
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Train until the schedule is finished (True) or ``stop()`` asks for an end (False); hooks run after each epoch.

    Raises:
        DivergenceError: the mean loss of an epoch is not finite.
    """
    mark = clock()
    while not schedule.finished(state.step, state.elapsed):
        if agree(float(stop()), world, kitchen.device):
            return False
        rate = poly(initial_lr, schedule.progress(state.step, state.elapsed))
        set_learning_rate(state.optimizer, rate)
        seed_step(kitchen, state.step)
        image, target = make_batch(next(train), kitchen, step=state.step)
        value = train_step(state, image, target, loss=loss, kitchen=kitchen)
        state.epoch_loss = value if state.epoch_loss is None else state.epoch_loss + value
        state.step += 1
        state.epoch_steps += 1
        mark = _take_time(state, mark, clock, schedule, world, kitchen)
        over = schedule.epoch_over(state.epoch_steps, state.epoch_seconds)
        if over or schedule.finished(state.step, state.elapsed):
            scores = validate(state)
            mark = _take_time(state, mark, clock, schedule, world, kitchen)
            finish_epoch(state, scores, learning_rate=rate)
            for hook in hooks:
                hook(state)
    return True


def seed_step(kitchen: Kitchen, step: int) -> None:
    """Fix torch's own generator for a step, for networks that draw (dropout): resuming repeats it exactly."""
    torch.manual_seed(int(kitchen.stream.generator(step, 2**31).integers(2**62)))


def _take_time(
    state: TrainState,
    mark: float,
    clock: Callable[[], float],
    schedule: Schedule,
    world: World,
    kitchen: Kitchen,
) -> float:
    now = clock()
    state.elapsed += now - mark
    state.epoch_seconds += now - mark
    if schedule.seconds is not None:
        # Clocks differ between processes; one of them decides when the time is over.
        state.elapsed = agree(state.elapsed, world, kitchen.device)
        state.epoch_seconds = agree(state.epoch_seconds, world, kitchen.device)
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
