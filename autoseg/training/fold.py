"""One fold, from its cases to final weights."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from autoseg import records
from autoseg.augment import Policy, make_policy
from autoseg.errors import ResourceError
from autoseg.log import duration, get_logger
from autoseg.nets import build_network
from autoseg.nets.device import choose_device, choose_precision, tune
from autoseg.nets.heap import largest_map, reused_heap
from autoseg.nets.label_channels import label_groups
from autoseg.schema.architecture import Recipe
from autoseg.schema.folders import FoldFolder
from autoseg.schema.plan import Configuration, Plan
from autoseg.schema.report import FoldRun, Share
from autoseg.schema.settings import TrainSettings
from autoseg.schema.splits import Fold
from autoseg.training.checkpoint import bare, save_weights
from autoseg.training.compiled import try_compile
from autoseg.training.data import PatchSource, batches
from autoseg.training.distributed import World, agree, joined_world, local_share, read_world, world_device, wrap
from autoseg.training.fit import Hook, OnlineScores, TakeStep, fit
from autoseg.training.keeping import epoch_hooks, go_on, leave, run_record, stopped, weights_are_final
from autoseg.training.loggers import logging_to
from autoseg.training.objective import Objective
from autoseg.training.online import make_validation
from autoseg.training.optim import make_optimizer
from autoseg.training.previous import PreviousStage
from autoseg.training.sampling import SAMPLINGS, TRAIN, VALIDATION, Stream
from autoseg.training.schedule import Schedule
from autoseg.training.state import TrainState
from autoseg.training.step import Kitchen, stepper
from autoseg.training.transfer import Start, begin

_LOG = get_logger(__name__)

# Part of the steps of an epoch that validation patches may take when a time budget is kept.
BUDGET_VALIDATION_PART = 8
GPU_LOADERS = 12
# A CPU step takes about a second.
STEPS_OF_DAYS = 100_000


@dataclass(frozen=True, kw_only=True)
class FoldTask:
    """Everything that decides one fold's weights, and where they go."""

    plan: Plan
    configuration: Configuration
    settings: TrainSettings
    recipe: Recipe
    name: str
    cases: Fold
    mirror_axes: tuple[int, ...]
    store: Path
    folder: FoldFolder
    stop_file: Path
    start: Start | None = None
    previous: PreviousStage | None = None
    objective: Objective = field(default_factory=Objective)
    share: Share | None = None

    @property
    def signature(self) -> str:
        """Equal for two runs exactly if one may go on where the other stopped."""
        plan = replace(self.configuration, why=(), cost=replace(self.configuration.cost, memory_bytes=0, flops=0))
        parts = [
            records.to_json(plan),
            records.to_json(self.plan.labels),
            records.to_json(self.cases),
            str(self.settings.seed),
            records.to_json(self.recipe),
            str(self.mirror_axes),
        ]
        if self.start is not None:
            parts += [self.start.origin, str(self.start.freeze)]
        if self.previous is not None:
            parts.append(self.previous.identity)
        if self.objective != Objective():
            parts.append(records.to_json(self.objective))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def train_fold(
    task: FoldTask,
    *,
    stop: Callable[[], bool],
    target_seconds: Callable[[TrainState, Kitchen], float] | None = None,
    draw_progress: Hook | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FoldRun:
    """Train one fold to its end, going on from a checkpoint if there is one, and write its weights.

    Args:
        stop: asked before each step; True ends training with a checkpoint.
        target_seconds: for a time budget, the training time of this fold, earlier runs included; asked again after
            each epoch, because the pace of a machine changes.
        draw_progress: draws the curve; called now and then.
        clock: what the time of steps is read from.

    Raises:
        StoppedError: ``stop`` said so; a checkpoint was written.
        DivergenceError: the loss became NaN.
    """
    world = read_world()
    device = world_device(choose_device(task.settings.device), world)
    tune(device)
    with joined_world(world, device):
        return _train_fold(
            task, world, device, stop=stop, target_seconds=target_seconds, draw_progress=draw_progress, clock=clock
        )


def _train_fold(
    task: FoldTask,
    world: World,
    device: torch.device,
    *,
    stop: Callable[[], bool],
    target_seconds: Callable[[TrainState, Kitchen], float] | None,
    draw_progress: Hook | None,
    clock: Callable[[], float],
) -> FoldRun:
    kitchen = make_kitchen(task, device, world)
    state = make_state(task, kitchen)
    kitchen = replace(kitchen, precision=go_on(task, state, precision=kitchen.precision, device=device))
    aim = None if target_seconds is None else (lambda current: target_seconds(current, kitchen))
    # Only the first process validates and knows the clock; all must train for the same time.
    seconds = None if aim is None else agree(aim(state) if world.is_first else 0.0, world, device)
    schedule = make_schedule(task.settings, seconds)
    state.target = seconds
    finished = schedule.finished(state.step, state.elapsed) and weights_are_final(task, state)
    if finished and task.folder.weights.exists():
        return run_record(task, state, "trained")
    announce(task, state, kitchen, schedule)
    if world.is_first:
        records.remove_partial(task.folder.root)
        records.save(task.folder.run, run_record(task, state, "training"))
    with memory_errors(task):
        state.network = wrap(_compiled(task, state, kitchen), world, device)
    with memory_errors(task):
        finished = _run(
            task, state, kitchen, schedule, world, stop=stop, aim=aim, draw_progress=draw_progress, clock=clock
        )
    if world.is_first:
        leave(task, state, precision=kitchen.precision, draw_progress=draw_progress)
    if not finished:
        raise stopped(task, state)
    record = run_record(task, state, "trained")
    if world.is_first:
        metadata = {"configuration": task.configuration.name, "fold": task.name, "signature": task.signature}
        save_weights(task.folder.weights, state.network, metadata=metadata)
        records.save(task.folder.run, record)
    return record


@contextmanager
def memory_errors(task: FoldTask) -> Iterator[None]:
    """Say in a sentence that memory ran out, and what to do.

    Raises:
        ResourceError: in place of torch's own errors.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.cuda.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise ResourceError(
            f"fold {task.name}: memory ran out in training with batch {task.configuration.batch_size}",
            hint="plan for less with autoseg_plan_and_preprocess --memory 6GB, or give a smaller --batch-size",
        ) from error


def training_heap(tasks: Sequence[FoldTask], kitchen: Kitchen, state: TrainState) -> AbstractContextManager[None]:
    """How the memory of the steps of one or several datasets is kept on a CPU; a GPU keeps its own."""
    if kitchen.device.type != "cpu":
        return nullcontext()
    largest = max(
        largest_map(one.topology.features[0], one.batch_size, one.patch_size, kitchen.precision)
        for one in (task.configuration for task in tasks)
    )
    return reused_heap(largest, state.optimizer)


def make_kitchen(task: FoldTask, device: torch.device, world: World) -> Kitchen:
    configuration = task.configuration
    masked = tuple(
        index for index, scheme in enumerate(configuration.normalization) if scheme.scheme == "zscore_masked"
    )
    return Kitchen(
        device=device,
        precision=choose_precision(device),
        patch_size=configuration.patch_size,
        masked_channels=masked,
        policy=_policy(task),
        stream=Stream(seed=task.settings.seed, fold=task.name, kind=TRAIN),
        first_sample=local_share(configuration.batch_size, world)[0],
        previous=label_groups(task.plan.labels) if task.previous is not None else (),
    )


def _policy(task: FoldTask) -> Policy:
    return make_policy(task.configuration, mirror_axes=task.mirror_axes)


def make_state(task: FoldTask, kitchen: Kitchen) -> TrainState:
    """A fresh network and optimizer; the seed and the fold decide the initial weights."""
    configuration = task.configuration
    torch.manual_seed(int(kitchen.stream.generator(0, 2**32 - 1).integers(2**62)))
    network = build_network(
        configuration.architecture,
        configuration.topology,
        ndim=configuration.ndim,
        in_channels=task.plan.input_channels(configuration),
        num_heads=task.plan.labels.num_heads,
        patch_size=configuration.patch_size,
    )
    if task.start is not None:
        resumed = task.folder.checkpoint.exists()
        begin(network, task.start, plan=task.plan, configuration=configuration, resumed=resumed)
    network = network.to(kitchen.device).to(memory_format=kitchen.memory_format)  # type: ignore[call-overload]
    network.train()
    # float16 gradients underflow without scaling; bfloat16 has float32's range.
    scaler = torch.amp.GradScaler(kitchen.device.type) if kitchen.precision is torch.float16 else None
    return TrainState(network=network, optimizer=make_optimizer(network.parameters(), task.recipe), scaler=scaler)


def make_schedule(settings: TrainSettings, seconds: float | None) -> Schedule:
    steps = settings.epochs * settings.iterations if seconds is None else None
    return Schedule(steps=steps, seconds=seconds, iterations=settings.iterations)


def _compiled(task: FoldTask, state: TrainState, kitchen: Kitchen) -> torch.nn.Module:
    if not task.settings.compile or kitchen.device.type != "cuda":
        return state.network
    share = local_share(task.configuration.batch_size, read_world())[1]
    shape = (share, task.plan.input_channels(task.configuration), *task.configuration.patch_size)
    example = torch.zeros(shape, device=kitchen.device).contiguous(memory_format=kitchen.memory_format)
    return try_compile(state.network, example, precision=kitchen.precision)


def _run(
    task: FoldTask,
    state: TrainState,
    kitchen: Kitchen,
    schedule: Schedule,
    world: World,
    *,
    stop: Callable[[], bool],
    aim: Callable[[TrainState], float] | None,
    draw_progress: Hook | None,
    clock: Callable[[], float],
) -> bool:
    with (
        training_heap([task], kitchen, state),
        logging_to(task, state) if world.is_first else nullcontext() as log_epoch,
        open_steps(task, kitchen, world, state.network, first_step=state.step) as take_step,
    ):
        hooks: tuple[Hook, ...] = ()
        if log_epoch is not None:
            kept = epoch_hooks(task, schedule, precision=kitchen.precision, draw_progress=draw_progress)
            hooks = (*kept, log_epoch)
        return fit(
            state,
            take_step,
            validate=fold_validation(task, kitchen, world, schedule),
            schedule=schedule,
            recipe=task.recipe,
            device=kitchen.device,
            world=world,
            hooks=hooks,
            stop=stop,
            aim=aim,
            clock=clock,
        )


@contextmanager
def open_steps(
    task: FoldTask, kitchen: Kitchen, world: World, network: torch.nn.Module, *, first_step: int
) -> Iterator[TakeStep]:
    """A function that takes the fold's next step; its worker processes end with the context."""
    loss = task.objective.loss_of(task.plan, task.configuration, weights=_output_weights(network))
    source, workers = patch_source(task, kitchen, world), _loaders(task.settings, kitchen.device)
    with batches(source, first_step=first_step, workers=workers) as stream:
        yield stepper(stream, loss=loss, kitchen=kitchen, clip_norm=task.recipe.clip_norm)


def fold_validation(
    task: FoldTask, kitchen: Kitchen, world: World, schedule: Schedule
) -> Callable[[TrainState], OnlineScores]:
    """A function that scores a state on patches of the fold's validation cases."""
    source = patch_source(task, kitchen, world)
    return make_validation(
        replace(source, ids=task.cases.val, policy=None, stream=replace(kitchen.stream, kind=VALIDATION)),
        labels=task.plan.labels,
        loss=task.objective.loss_of(task.plan, task.configuration),
        kitchen=kitchen,
        world=world,
        count=_validation_batches(task.settings, schedule),
    )


def patch_source(task: FoldTask, kitchen: Kitchen, world: World) -> PatchSource:
    first, share = local_share(task.configuration.batch_size, world)
    return PatchSource(
        store=str(task.store),
        ids=task.cases.train,
        num_labels=len(task.plan.labels.foreground),
        patch_size=task.configuration.patch_size,
        batch_size=share * world.size,
        stream=kitchen.stream,
        policy=kitchen.policy,
        first_sample=first,
        local_batch=share,
        previous=task.previous.files if task.previous is not None else None,
        sampling=SAMPLINGS[task.objective.sampling],
    )


def _output_weights(network: torch.nn.Module) -> tuple[float, ...]:
    """How much each training output counts, under whatever wraps the network."""
    weights: tuple[float, ...] = bare(network).output_weights  # type: ignore[assignment]
    return weights


def _validation_batches(settings: TrainSettings, schedule: Schedule) -> Callable[[int], int]:
    """A function from the steps of an epoch to the batches that validate it."""

    def count(epoch_steps: int) -> int:
        if schedule.seconds is None:
            return settings.val_iterations
        return min(settings.val_iterations, max(1, epoch_steps // BUDGET_VALIDATION_PART))

    return count


def _loaders(settings: TrainSettings, device: torch.device) -> int:
    """On a CPU the step itself needs every core; on a GPU reading must keep ahead of it."""
    if settings.workers is not None:
        return settings.workers
    if device.type != "cuda":
        return 0
    from autoseg.parallel import cores

    return max(1, min(GPU_LOADERS, cores() - 1))


def announce(task: FoldTask, state: TrainState, kitchen: Kitchen, schedule: Schedule) -> None:
    """Log what is about to be trained, on what and for how long."""
    precision = "float32" if kitchen.precision is None else str(kitchen.precision).removeprefix("torch.")
    length = (
        f"{schedule.steps} steps" if schedule.steps is not None else f"{duration(schedule.seconds or 0.0)} of training"
    )
    _LOG.info(
        "fold %s: %d training and %d validation cases, %s on %s in %s, batch %d of %s",
        task.name,
        len(task.cases.train),
        len(task.cases.val),
        length,
        kitchen.device,
        precision,
        task.configuration.batch_size,
        "x".join(str(length) for length in task.configuration.patch_size),
    )
    if (schedule.steps or 0) >= STEPS_OF_DAYS and kitchen.device.type == "cpu" and state.step == 0:
        _LOG.info("on a CPU this takes days: --time-budget 2h fits training to the time you have")
