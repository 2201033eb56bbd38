"""One fold of several datasets at once: a universal network whose steps take the datasets in turn.

Each dataset is a domain of ``nets.u2net3d.UniversalU2Net`` with its own patches, batches and loss. Steps go
round-robin, as in Huang et al. 2019. At the end every dataset gets an ordinary model of its own with all its weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from autoseg import records
from autoseg.errors import SettingError, StoppedError
from autoseg.log import duration, get_logger
from autoseg.losses import segmentation_loss
from autoseg.nets.device import choose_device, tune
from autoseg.nets.u2net3d import U2Net3D, UniversalU2Net
from autoseg.schema.folders import FoldFolder
from autoseg.schema.report import FoldRun
from autoseg.training import hooks
from autoseg.training.checkpoint import load_checkpoint, save_checkpoint, save_weights
from autoseg.training.data import batches
from autoseg.training.distributed import read_world
from autoseg.training.fit import Hook, OnlineScores, TakeStep, fit
from autoseg.training.fold import (
    PRECISIONS,
    SECONDS_BETWEEN_CHECKPOINTS,
    SECONDS_BETWEEN_PLOTS,
    FoldTask,
    announce,
    loaders,
    make_kitchen,
    make_state,
    memory_errors,
    output_weights,
    patch_source,
    validation_batches,
)
from autoseg.training.online import make_validation
from autoseg.training.optim import make_optimizer
from autoseg.training.sampling import VALIDATION
from autoseg.training.schedule import Schedule
from autoseg.training.state import TrainState
from autoseg.training.step import Kitchen, stepper

_LOG = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class JointTask:
    """A fold of every dataset, and where the joint training keeps its checkpoint, log and curve."""

    domains: tuple[FoldTask, ...]
    folder: FoldFolder

    @property
    def name(self) -> str:
        return self.domains[0].name

    @property
    def signature(self) -> str:
        """Equal for two runs exactly if one may go on where the other stopped."""
        return hashlib.sha256("\n".join(task.signature for task in self.domains).encode()).hexdigest()


def train_joint_fold(
    task: JointTask,
    *,
    stop: Callable[[], bool],
    target_seconds: Callable[[Sequence[TrainState], Sequence[Kitchen]], float] | None = None,
    draw_progress: Hook | None = None,
) -> FoldRun:
    """Train one fold to its end, going on from a checkpoint if there is one, and write each dataset's weights.

    Args:
        stop: asked before each step; True ends training with a checkpoint.
        target_seconds: for a time budget, the training time, from one state and kitchen per dataset.
        draw_progress: draws the curve; called now and then.

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
    settings = task.domains[0].settings
    device = choose_device(settings.device)
    tune(device)
    kitchens = [make_kitchen(domain, device, world) for domain in task.domains]
    state = _joint_state(task, kitchens)
    if task.folder.checkpoint.exists():
        precision = load_checkpoint(task.folder.checkpoint, state, signature=task.signature, device=device)
        kitchens = [replace(kitchen, precision=PRECISIONS[precision]) for kitchen in kitchens]
        _LOG.info("fold %s: going on after %d steps (%s)", task.name, state.step, duration(state.elapsed))
    views = [_view(state, index) for index in range(len(kitchens))]
    seconds = None if target_seconds is None else target_seconds(views, kitchens)
    schedule = _schedule(task, seconds)
    if not (schedule.finished(state.step, state.elapsed) and _all_written(task)):
        for domain, view, kitchen in zip(task.domains, views, kitchens, strict=True):
            announce(domain, view, kitchen, schedule)
        records.remove_partial(task.folder.root)
        with memory_errors(task.domains[0]):
            finished = _run(task, state, kitchens, schedule, stop=stop, draw_progress=draw_progress)
        _keep(task, state, kitchens[0], schedule, status="training")
        hooks.write_log(task.folder.log)(state)
        if draw_progress is not None and state.history:
            draw_progress(state)
        if not finished:
            raise StoppedError(
                f"fold {task.name} was stopped after {state.step} steps; its checkpoint is written",
                hint="run the same command again to go on",
            )
        _write_models(task, state)
    record = _record(task, state, schedule, "trained")
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


def _schedule(task: JointTask, seconds: float | None) -> Schedule:
    """``epochs`` and ``iterations`` count for each dataset, so that none trains less than it would alone."""
    settings = task.domains[0].settings
    per_epoch = settings.iterations * len(task.domains)
    return Schedule(
        steps=settings.epochs * per_epoch if seconds is None else None, seconds=seconds, iterations=per_epoch
    )


def _run(
    task: JointTask,
    state: TrainState,
    kitchens: Sequence[Kitchen],
    schedule: Schedule,
    *,
    stop: Callable[[], bool],
    draw_progress: Hook | None,
) -> bool:
    recipe, settings = task.domains[0].recipe, task.domains[0].settings
    world, count = read_world(), len(task.domains)
    with ExitStack() as stack:
        steps: list[TakeStep] = []
        for index, (domain, kitchen) in enumerate(zip(task.domains, kitchens, strict=True)):
            # Of the steps taken so far, those of this dataset.
            first = (state.step + count - 1 - index) // count
            source = patch_source(domain, kitchen, world)
            workers = loaders(settings, kitchen.device)
            stream = stack.enter_context(batches(source, first_step=first, workers=workers))
            batch_dice = domain.configuration.batch_dice
            weights = output_weights(_view(state, index).network)
            loss = segmentation_loss(domain.plan.labels, batch_dice=batch_dice, weights=weights)
            steps.append(stepper(stream, loss=loss, kitchen=kitchen, clip_norm=recipe.clip_norm))

        def take_step(current: TrainState) -> torch.Tensor:
            turn = current.step % count
            return steps[turn](_view(current, turn))

        return fit(
            state,
            take_step,
            validate=_validation(task, kitchens, schedule),
            schedule=schedule,
            recipe=recipe,
            device=kitchens[0].device,
            world=world,
            hooks=_hooks(task, kitchens[0], schedule, draw_progress),
            stop=stop,
        )


def _validation(
    task: JointTask, kitchens: Sequence[Kitchen], schedule: Schedule
) -> Callable[[TrainState], OnlineScores]:
    world = read_world()
    single = []
    for domain, kitchen in zip(task.domains, kitchens, strict=True):
        source = patch_source(domain, kitchen, world)
        stream = replace(kitchen.stream, kind=VALIDATION)
        single.append(
            make_validation(
                replace(source, ids=domain.cases.val, policy=None, stream=stream),
                labels=domain.plan.labels,
                loss=segmentation_loss(domain.plan.labels, batch_dice=domain.configuration.batch_dice),
                kitchen=kitchen,
                world=world,
                count=validation_batches(domain.settings, schedule),
            )
        )

    def validate(state: TrainState) -> OnlineScores:
        scores = [one(_view(state, index)) for index, one in enumerate(single)]
        dice = {
            f"{domain.plan.dataset} {name}": value
            for domain, score in zip(task.domains, scores, strict=True)
            for name, value in score.dice.items()
        }
        return OnlineScores(loss=sum(score.loss for score in scores) / len(scores), dice=dice)

    return validate


def _hooks(task: JointTask, kitchen: Kitchen, schedule: Schedule, draw_progress: Hook | None) -> Sequence[Hook]:
    def keep(state: TrainState) -> None:
        _keep(task, state, kitchen, schedule, status="training")

    chosen = [
        hooks.log_epoch(schedule),
        hooks.write_log(task.folder.log),
        hooks.now_and_then(keep, seconds=SECONDS_BETWEEN_CHECKPOINTS),
    ]
    if draw_progress is not None:
        chosen.append(hooks.now_and_then(draw_progress, seconds=SECONDS_BETWEEN_PLOTS))
    return chosen


def _keep(task: JointTask, state: TrainState, kitchen: Kitchen, schedule: Schedule, *, status: str) -> None:
    precision = next(name for name, kind in PRECISIONS.items() if kind is kitchen.precision)
    save_checkpoint(task.folder.checkpoint, state, signature=task.signature, precision=precision)
    records.save(task.folder.run, _record(task, state, schedule, status))


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


def _record(task: JointTask, state: TrainState, schedule: Schedule, status: str) -> FoldRun:
    settings = task.domains[0].settings
    return FoldRun(
        fold=task.name,
        status=status,
        signature=task.signature,
        target_epochs=settings.epochs if schedule.seconds is None else None,
        target_seconds=schedule.seconds,
        budget=settings.time_budget,
        epochs=state.epoch,
        steps=state.step,
        seconds=state.elapsed,
    )
