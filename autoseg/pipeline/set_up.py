"""What a training is made of: plan, splits, store, recipe and start, read and checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from autoseg import records
from autoseg.errors import SettingError
from autoseg.io.discover import resolve_workspace
from autoseg.io.store import CaseStore
from autoseg.log import duration, get_logger
from autoseg.nets import traits_of
from autoseg.nets.cost import training_cost
from autoseg.nets.device import choose_device, choose_precision
from autoseg.pipeline.alternative import plan_for
from autoseg.pipeline.context import choose_dataset
from autoseg.pipeline.initial import choose_start
from autoseg.pipeline.objective import choose_objective
from autoseg.pipeline.prepare import preprocess_configuration
from autoseg.pipeline.splits import ALL, choose_splits, fold_cases
from autoseg.pipeline.stores import store_of
from autoseg.planning import cost_of, mirror_axes, refuse_other_dataset
from autoseg.schema.architecture import Recipe
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Configuration, Cost, Plan
from autoseg.schema.report import FoldRun
from autoseg.schema.settings import TrainSettings
from autoseg.schema.splits import Splits
from autoseg.training.distributed import read_world
from autoseg.training.fold import FoldTask
from autoseg.training.objective import Objective
from autoseg.training.previous import EarlierStage
from autoseg.training.recipe import chosen_recipe
from autoseg.training.transfer import Start

_LOG = get_logger(__name__)

# What autoseg_train trains without further flags, and a plan for a time is made for.
PLANNED_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Training:
    """Everything that the folds share; ``earlier`` is of the second stage of a cascade."""

    settings: TrainSettings
    spec: DatasetSpec
    plan: Plan
    configuration: Configuration
    splits: Splits
    recipe: Recipe
    mirror_axes: tuple[int, ...]
    store: CaseStore
    model: ModelFolder
    start: Start | None = None
    earlier: EarlierStage | None = None
    objective: Objective = field(default_factory=Objective)

    @property
    def folds(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.settings.fold)) or tuple(str(one) for one in range(len(self.splits.folds)))


def set_up(
    settings: TrainSettings,
    *,
    model: ModelFolder | None = None,
    plan: Plan | None = None,
    first_stage: Callable[[Training], Training] | None = None,
) -> Training:
    """Read plan, splits and store; preprocess what is missing, and train what comes first (see ``train``)."""
    workspace = resolve_workspace(settings.workdir)
    name = choose_dataset(settings.dataset[0] if settings.dataset else None, workspace)
    folder = workspace.prepared(name)
    plan = plan or plan_for(folder, settings.arch, device=settings.device)
    spec = records.load(DatasetSpec, folder.dataset)
    refuse_other_dataset(plan, spec)
    configuration = _configuration(plan, settings)
    if first_stage is None:
        _refuse_second_stage(plan, configuration)
    if plan.device == "cpu" and choose_device(settings.device).type == "cuda":
        _LOG.warning("this plan was made for a CPU: a narrow network; autoseg_plan -d %s makes one for the GPU", name)
    if read_world().is_first:
        store = preprocess_configuration(spec, plan, configuration, folder)
    else:
        store = store_of(folder, plan, configuration)
    model = model or workspace.model(name, configuration.name, configuration.architecture.label)
    splits = choose_splits(settings, folder, model)
    axes, reason = mirror_axes(plan, configuration) if settings.mirror else ((), "mirroring is switched off")
    if reason:
        _LOG.info("mirroring: %s", reason)
    training = Training(
        settings=settings,
        spec=spec,
        plan=plan,
        configuration=configuration,
        splits=splits,
        recipe=chosen_recipe(traits_of(configuration.architecture.name).recipe, settings),
        mirror_axes=axes,
        store=store,
        model=model,
    )
    _check_folds(training)
    start = choose_start(settings, plan, configuration, training.model, training.folds)
    objective = choose_objective(settings, plan, spec, folder.fingerprint, training.model)
    settings = _planned_time(plan, settings, folds=len(training.folds))
    training = replace(training, settings=settings, start=start, objective=objective)
    return training if configuration.previous_stage is None or first_stage is None else first_stage(training)


def _planned_time(plan: Plan, settings: TrainSettings, *, folds: int) -> TrainSettings:
    """The settings with the time that the plan was made for, where the user says nothing else."""
    if settings.time_budget is not None or plan.time_budget is None or settings.epochs != TrainSettings().epochs:
        return settings
    seconds = plan.time_budget * folds / PLANNED_FOLDS
    _LOG.info("training takes %s, for which the plan was made", duration(seconds))
    return replace(settings, time_budget=seconds)


def _refuse_second_stage(plan: Plan, configuration: Configuration) -> None:
    if configuration.previous_stage is not None:
        raise SettingError(
            f"{configuration.name} refines predictions of {configuration.previous_stage}, which only autoseg_train on "
            "one dataset does",
            hint=f"choose one of: {', '.join(c.name for c in plan.configurations if c.previous_stage is None)}",
        )


def _configuration(plan: Plan, settings: TrainSettings) -> Configuration:
    configuration = plan.configuration(settings.configuration or plan.default_configuration)
    if settings.batch_size is None:
        return configuration
    configuration = replace(configuration, batch_size=settings.batch_size)
    cost = cost_today(plan, configuration, settings.device)
    if cost.memory_bytes > plan.memory_bytes:
        _LOG.warning(
            "a batch of %d needs about %.1f GB, the plan was made for %.1f GB",
            settings.batch_size,
            cost.memory_bytes / 1e9,
            plan.memory_bytes / 1e9,
        )
    return replace(configuration, cost=cost)


def cost_today(plan: Plan, configuration: Configuration, device: str) -> Cost:
    """What a step of a configuration costs in the precision of the device that trains, whatever it was planned for."""
    precision = "float32" if choose_precision(choose_device(device)) is None else "mixed"
    return cost_of(plan, configuration, partial(training_cost, precision=precision))


def _check_folds(training: Training) -> None:
    known = [str(index) for index in range(len(training.splits.folds))]
    unknown = [name for name in training.folds if name not in known and name != ALL]
    if unknown:
        raise SettingError(f"there is no fold {', '.join(unknown)}", hint=f"choose among {', '.join(known)}, or all")


def fold_task(training: Training, name: str) -> FoldTask:
    """What decides the weights of one fold."""
    return FoldTask(
        plan=training.plan,
        configuration=training.configuration,
        settings=training.settings,
        recipe=training.recipe,
        name=name,
        cases=fold_cases(training.splits, name),
        mirror_axes=training.mirror_axes,
        store=training.store.root,
        folder=training.model.fold(name),
        stop_file=training.model.stop_file,
        start=training.start,
        previous=training.earlier.folds[name] if training.earlier is not None else None,
        objective=training.objective,
    )


def fold_runs(training: Training, folds: Sequence[str] | None = None) -> dict[str, FoldRun]:
    """Where ``folds`` (default: those to train) stand, those that were begun."""
    paths = {name: training.model.fold(name).run for name in (training.folds if folds is None else folds)}
    return {name: records.load(FoldRun, path) for name, path in paths.items() if path.exists()}
