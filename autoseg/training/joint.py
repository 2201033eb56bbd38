"""One fold of several datasets at once: a universal network whose steps take the datasets in turn.

Each dataset is a domain of ``nets.u2net3d.UniversalU2Net`` with its own patches, batches and loss. Steps go
round-robin, as in Huang et al. 2019. At the end every dataset gets an ordinary model of its own with all its weights.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from autoseg import records
from autoseg.errors import SettingError
from autoseg.nets.device import choose_device, tune
from autoseg.nets.u2net3d import U2Net3D, UniversalU2Net
from autoseg.schema.folders import FoldFolder
from autoseg.schema.report import FoldRun, Share
from autoseg.schema.settings import TrainSettings
from autoseg.training.checkpoint import save_weights
from autoseg.training.distributed import read_world
from autoseg.training.fit import Hook, OnlineScores, TakeStep, fit
from autoseg.training.fold import (
    FoldTask,
    announce,
    fold_validation,
    make_kitchen,
    make_schedule,
    make_state,
    memory_errors,
    open_steps,
    training_heap,
)
from autoseg.training.keeping import epoch_hooks, go_on, leave, run_record, stopped, weights_are_final
from autoseg.training.loggers import logging_to
from autoseg.training.optim import make_optimizer
from autoseg.training.schedule import Schedule
from autoseg.training.state import TrainState
from autoseg.training.step import Kitchen


@dataclass(frozen=True, kw_only=True)
class JointTask:
    """A fold of every dataset, and where the joint training keeps its checkpoint, log and curve."""

    domains: tuple[FoldTask, ...]
    folder: FoldFolder
    share: Share | None = None

    @property
    def name(self) -> str:
        return self.domains[0].name

    @property
    def settings(self) -> TrainSettings:
        """Those of the command, which every domain has for its own dataset."""
        return replace(self.domains[0].settings, dataset=tuple(domain.plan.dataset for domain in self.domains))

    @property
    def signature(self) -> str:
        """Equal for two runs exactly if one may go on where the other stopped."""
        return hashlib.sha256("\n".join(task.signature for task in self.domains).encode()).hexdigest()


def train_joint_fold(
    task: JointTask,
    *,
    stop: Callable[[], bool],
    target_seconds: Callable[[float, Sequence[TrainState], Sequence[Kitchen]], float] | None = None,
    draw_progress: Hook | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FoldRun:
    """Train one fold to its end, going on from a checkpoint if there is one, and write each dataset's weights.

    Args:
        stop: asked before each step; True ends training with a checkpoint.
        target_seconds: for a time budget, the training time, from the seconds trained and one state and kitchen per
            dataset; asked again after each epoch.
        draw_progress: draws the curve; called now and then.
        clock: what the time of steps is read from.

    Raises:
        SettingError: several processes (not supported here).
        StoppedError: ``stop`` said so; a checkpoint was written.
        DivergenceError: the loss became NaN.
    """
    world = read_world()
    if world.size > 1:
        raise SettingError(
            "several datasets at once are trained by one process", hint="start autoseg_train without torchrun"
        )
    device = choose_device(task.settings.device)
    tune(device)
    kitchens = [make_kitchen(domain, device, world) for domain in task.domains]
    state = _joint_state(task, kitchens)
    precision = go_on(task, state, precision=kitchens[0].precision, device=device)
    kitchens = [replace(kitchen, precision=precision) for kitchen in kitchens]
    views = [_view(state, index) for index in range(len(kitchens))]

    def target(current: TrainState) -> float:
        return 0.0 if target_seconds is None else target_seconds(current.elapsed, views, kitchens)

    aim = None if target_seconds is None else target
    seconds = None if aim is None else aim(state)
    # Epochs and their iterations count for each dataset, so that none trains less than it would alone.
    per_epoch = task.settings.iterations * len(task.domains)
    schedule = make_schedule(replace(task.settings, iterations=per_epoch), seconds)
    state.target = seconds
    final = schedule.finished(state.step, state.elapsed) and weights_are_final(task, state)
    if not (final and _all_written(task)):
        for domain, view, kitchen in zip(task.domains, views, kitchens, strict=True):
            announce(domain, view, kitchen, schedule)
        records.remove_partial(task.folder.root)
        with memory_errors(task.domains[0]):
            finished = _run(
                task, state, kitchens, schedule, stop=stop, aim=aim, draw_progress=draw_progress, clock=clock
            )
        leave(task, state, precision=precision, draw_progress=draw_progress)
        if not finished:
            raise stopped(task, state)
        _write_models(task, state)
    record = run_record(task, state, "trained")
    records.save(task.folder.run, record)
    return record


def _joint_state(task: JointTask, kitchens: Sequence[Kitchen]) -> TrainState:
    single = [make_state(domain, kitchen) for domain, kitchen in zip(task.domains, kitchens, strict=True)]
    members = [state.network for state in single]
    networks = [network for network in members if isinstance(network, U2Net3D)]
    if len(networks) != len(members):
        raise SettingError(
            "several datasets can share a model only in a universal network", hint="train them with --arch u2net3d"
        )
    network = UniversalU2Net(networks).train()
    optimizer = make_optimizer(network.parameters(), task.domains[0].recipe)
    return TrainState(network=network, optimizer=optimizer, scaler=single[0].scaler)


def _view(state: TrainState, domain: int) -> TrainState:
    """The state as the training of one dataset sees it."""
    domains = state.network.domains
    if not isinstance(domains, torch.nn.ModuleList):
        raise TypeError("a joint state holds a universal network")
    count = len(domains)
    return replace(state, network=domains[domain], step=state.step // count, epoch_steps=state.epoch_steps // count)


def _run(
    task: JointTask,
    state: TrainState,
    kitchens: Sequence[Kitchen],
    schedule: Schedule,
    *,
    stop: Callable[[], bool],
    aim: Callable[[TrainState], float] | None,
    draw_progress: Hook | None,
    clock: Callable[[], float],
) -> bool:
    world, count = read_world(), len(task.domains)
    with ExitStack() as stack:
        stack.enter_context(training_heap(task.domains, kitchens[0], state))
        log_epoch = stack.enter_context(logging_to(task, state))
        steps: list[TakeStep] = []
        for index, (domain, kitchen) in enumerate(zip(task.domains, kitchens, strict=True)):
            # Of the steps taken so far, those of this dataset.
            first = (state.step + count - 1 - index) // count
            network = _view(state, index).network
            steps.append(stack.enter_context(open_steps(domain, kitchen, world, network, first_step=first)))

        def take_step(current: TrainState) -> torch.Tensor:
            turn = current.step % count
            return steps[turn](_view(current, turn))

        return fit(
            state,
            take_step,
            validate=_validation(task, kitchens, schedule),
            schedule=schedule,
            recipe=task.domains[0].recipe,
            device=kitchens[0].device,
            world=world,
            hooks=(
                *epoch_hooks(task, schedule, precision=kitchens[0].precision, draw_progress=draw_progress),
                log_epoch,
            ),
            stop=stop,
            aim=aim,
            clock=clock,
        )


def _validation(
    task: JointTask, kitchens: Sequence[Kitchen], schedule: Schedule
) -> Callable[[TrainState], OnlineScores]:
    world = read_world()
    single = [
        fold_validation(domain, kitchen, world, schedule)
        for domain, kitchen in zip(task.domains, kitchens, strict=True)
    ]

    def validate(state: TrainState) -> OnlineScores:
        scores = [one(_view(state, index)) for index, one in enumerate(single)]
        dice = {
            f"{domain.plan.dataset} {name}": value
            for domain, score in zip(task.domains, scores, strict=True)
            for name, value in score.dice.items()
        }
        return OnlineScores(loss=sum(score.loss for score in scores) / len(scores), dice=dice)

    return validate


def _write_models(task: JointTask, state: TrainState) -> None:
    for index, domain in enumerate(task.domains):
        metadata = {
            "configuration": domain.configuration.name,
            "fold": domain.name,
            "signature": task.signature,
        }
        save_weights(domain.folder.weights, _view(state, index).network, metadata=metadata)


def _all_written(task: JointTask) -> bool:
    return all(domain.folder.weights.exists() for domain in task.domains)
