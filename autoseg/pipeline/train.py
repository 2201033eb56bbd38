"""Train every fold, validate each at original geometry, and sum up the cross-validation."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from autoseg import records
from autoseg.errors import DatasetError, PartialError, RecordError, SettingError, joined
from autoseg.inference.cascade import PREVIOUS_MODEL
from autoseg.io.discover import resolve_workspace
from autoseg.io.store import CaseStore
from autoseg.log import duration, get_logger, table
from autoseg.nets import traits_of
from autoseg.nets.cost import training_cost
from autoseg.nets.device import choose_device, choose_precision
from autoseg.pipeline.alternative import plan_for
from autoseg.pipeline.budget import TimeBudget, open_budget
from autoseg.pipeline.context import choose_dataset, machine, typed_command, versions
from autoseg.pipeline.initial import choose_start, initial_record, refuse_other_start
from autoseg.pipeline.objective import choose_objective
from autoseg.pipeline.prepare import preprocess_configuration
from autoseg.pipeline.splits import ALL, choose_splits, fold_cases, refuse_other_splits
from autoseg.pipeline.stores import store_of
from autoseg.pipeline.validate import estimate_validation, validate_fold
from autoseg.planning import mirror_axes, refuse_other_dataset
from autoseg.report import progress_png, write_report
from autoseg.schema.architecture import Recipe
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.fingerprint import Fingerprint
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Configuration, Plan
from autoseg.schema.report import EvaluationReport, FoldRun, RunReport
from autoseg.schema.settings import TrainSettings
from autoseg.schema.splits import Splits
from autoseg.training.distributed import joined_world, read_world, world_device
from autoseg.training.fold import FoldTask, train_fold
from autoseg.training.objective import Objective
from autoseg.training.previous import EarlierStage
from autoseg.training.recipe import chosen_recipe
from autoseg.training.state import TrainState, history_rows
from autoseg.training.step import Kitchen
from autoseg.training.stop import stop_requests
from autoseg.training.transfer import Start

_LOG = get_logger(__name__)


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
        return self.settings.fold or tuple(str(index) for index in range(len(self.splits.folds)))


def train(
    settings: TrainSettings,
    *,
    model: ModelFolder | None = None,
    stop_file: Path | None = None,
    first_stage: Callable[[Training], Training] | None = None,
) -> ModelFolder:
    """Train the folds that ``settings`` ask for, one after the other, and return the model's folder.

    Args:
        model: where the model goes, in place of its folder in the results.
        stop_file: what a person creates to end training, in place of STOP in the model's folder.
        first_stage: trains what comes first where ``settings`` ask for the second stage of a cascade.

    Raises:
        SettingError: no such configuration or fold, or the model's folder holds folds of another plan or other cases.
        RecordError: a fold was begun with other settings.
        StoppedError: the user asked to stop; the same command goes on.
        PartialError: all folds are trained, but some validation cases could not be scored.
    """
    started = time.monotonic()
    world = read_world()
    if not world.is_first:
        logging.getLogger("autoseg").setLevel(logging.ERROR)
    training = set_up(settings, model=model, first_stage=first_stage)
    if training.earlier is not None:
        # That time was the first stage's share, and is not in the second one's.
        started += training.earlier.seconds
    refuse_other_settings(training)
    write_model_facts(training)
    budget = None
    if training.settings.time_budget is not None:
        budget = open_budget(training.settings.time_budget, training.folds, fold_runs(training), started=started)
    problems: list[str] = []
    # Joined once for all folds: a second group would find the first one's keys in torchrun's store.
    device = world_device(choose_device(settings.device), world)
    with joined_world(world, device), stop_requests(stop_file or training.model.stop_file) as stop:
        for name in training.folds:
            try:
                _train_and_validate(training, name, budget, stop=stop)
            except DatasetError as error:
                problems.append(error.message)
    if world.is_first:
        sum_up(training)
    if problems:
        raise PartialError(
            f"all folds are trained, but not all cases could be validated:\n{joined(problems)}",
            hint="mend these files and run the same command again; only what is missing is done",
        )
    return training.model


def set_up(
    settings: TrainSettings,
    *,
    model: ModelFolder | None = None,
    first_stage: Callable[[Training], Training] | None = None,
) -> Training:
    """Read plan, splits and store; preprocess what is missing, and train what comes first (see ``train``)."""
    workspace = resolve_workspace(settings.workdir)
    name = choose_dataset(settings.dataset[0] if settings.dataset else None, workspace)
    folder = workspace.prepared(name)
    plan = plan_for(folder, settings.arch, device=settings.device)
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
    training = replace(training, start=start, objective=objective)
    return training if configuration.previous_stage is None or first_stage is None else first_stage(training)


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
    precision = "float32" if choose_precision(choose_device(settings.device)) is None else "mixed"
    cost = training_cost(
        configuration.architecture,
        configuration.topology,
        ndim=configuration.ndim,
        patch_size=configuration.patch_size,
        batch_size=settings.batch_size,
        in_channels=plan.input_channels(configuration),
        num_heads=plan.labels.num_heads,
        precision=precision,
    )
    if cost.memory_bytes > plan.memory_bytes:
        _LOG.warning(
            "a batch of %d needs about %.1f GB, the plan was made for %.1f GB",
            settings.batch_size,
            cost.memory_bytes / 1e9,
            plan.memory_bytes / 1e9,
        )
    return replace(configuration, batch_size=settings.batch_size, cost=cost)


def _check_folds(training: Training) -> None:
    known = [str(index) for index in range(len(training.splits.folds))]
    unknown = [name for name in training.folds if name not in known and name != ALL]
    if unknown:
        raise SettingError(f"there is no fold {', '.join(unknown)}", hint=f"choose among {', '.join(known)}, or all")


def write_model_facts(training: Training) -> None:
    """Put plan, dataset, splits and settings into the model's folder, after everything that may be refused."""
    if not read_world().is_first:
        return
    model = training.model
    model.root.mkdir(parents=True, exist_ok=True)
    model.stop_file.unlink(missing_ok=True)
    records.save(model.plan, training.plan)
    records.save(model.dataset, training.spec)
    records.save(model.splits, training.splits)
    workspace = resolve_workspace(training.settings.workdir)
    folder = workspace.prepared(training.spec.name)
    measured = records.load(Fingerprint, folder.fingerprint)
    before = records.load(Fingerprint, model.fingerprint) if model.fingerprint.exists() else measured
    if before.content_hash != measured.content_hash and model.finished_folds():
        _LOG.warning("files of %s changed since folds in %s were trained", training.spec.name, model.root)
    records.save(model.fingerprint, measured)
    chosen = asdict(training.settings)
    chosen.update(
        configuration=training.configuration.name,
        mirror_axes=list(training.mirror_axes),
        batch_size=training.configuration.batch_size,
        recipe=asdict(training.recipe),
        **asdict(training.objective),
        **initial_record(training.start, model),
    )
    if training.earlier is not None:
        chosen[PREVIOUS_MODEL] = Path(os.path.relpath(training.earlier.model.root, model.root)).as_posix()
    report = RunReport(command=typed_command("autoseg.train"), settings=chosen, versions=versions(), machine=machine())
    records.save(model.run, report)


def refuse_other_plan(training: Training) -> None:
    """Folds of different plans must not meet in one ensemble, nor old weights get a new plan or other held-out cases.

    Raises:
        SettingError: the model's folder holds weights that another plan made, or other cases.
    """
    model = training.model
    if not model.plan.exists() or not model.finished_folds():
        return
    name = training.configuration.name
    if _identity(records.load(Plan, model.plan), name) != _identity(training.plan, name):
        raise SettingError(
            f"{model.root} holds folds ({', '.join(model.finished_folds())}) that were trained with another plan",
            hint="rename or remove that folder to train with today's plan",
        )
    refuse_other_splits(model, training.splits)


def refuse_other_settings(training: Training) -> None:
    """Before anything is written: else the next command would take refused settings for those of the folds.

    Raises:
        RecordError: a fold that is to go on was begun with other settings.
        SettingError: with another plan, other cases or another start.
    """
    # First those that can say what is different.
    refuse_other_plan(training)
    refuse_other_start(training.settings, training.model)
    others = begun_otherwise(training)
    if others:
        raise RecordError(
            f"{training.model.root}: fold {', '.join(others)} was begun with another plan, split, seed, batch size, "
            "learning rate or loss, or after another first stage",
            hint="repeat the settings of that training to go on, or remove the fold's folder to start anew",
        )


def begun_otherwise(training: Training) -> tuple[str, ...]:
    """The folds whose checkpoint this training could not go on from."""
    return tuple(
        name
        for name, run in fold_runs(training).items()
        if training.model.fold(name).checkpoint.exists() and run.signature != fold_task(training, name).signature
    )


def _identity(plan: Plan, name: str) -> str:
    """What weights and plan must agree in; the batch may differ."""
    configuration = plan.configuration(name)
    cost = replace(configuration.cost, parameters=0, memory_bytes=0, flops=0)
    bare = replace(configuration, why=(), cost=cost, batch_size=0, median_shape=())
    kept = replace(plan, configurations=(bare,), why=(), device="", memory_bytes=0)
    return records.to_json(kept)


def _train_and_validate(training: Training, name: str, budget: TimeBudget | None, *, stop: Callable[[], bool]) -> None:
    task = fold_task(training, name)
    draw = _draw_progress(training, task)
    before = fold_runs(training).get(name)
    run = train_fold(task, stop=stop, target_seconds=_target(training, name, budget, before), draw_progress=draw)
    if not read_world().is_first:
        return
    if name == ALL:
        _LOG.info("fold all: trained on every case, so there is no case left to validate on")
        return
    if not training.settings.validate:
        return
    validated = before is not None and before.status == "validated" and before.steps == run.steps
    if before is not None and validated and task.folder.summary.exists():
        _LOG.info("fold %s: finished and validated before", name)
        records.save(task.folder.run, replace(run, status="validated", validation_seconds=before.validation_seconds))
        return
    clock = time.monotonic()
    validate_fold(
        training.model,
        name,
        task.cases.val,
        spec=training.spec,
        device=training.settings.device,
        stop=stop,
        previous=task.previous.files if task.previous is not None else None,
    )
    seconds = time.monotonic() - clock
    records.save(task.folder.run, replace(run, status="validated", validation_seconds=seconds))


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


def _draw_progress(training: Training, task: FoldTask) -> Callable[[TrainState], None]:
    title = f"{training.spec.name}, {training.configuration.name}, fold {task.name}"

    def draw(state: TrainState) -> None:
        progress_png(task.folder.progress, history_rows(state.history), title=title)

    return draw


def fold_runs(training: Training, folds: Sequence[str] | None = None) -> dict[str, FoldRun]:
    """Where ``folds`` (default: those to train) stand, those that were begun."""
    paths = {name: training.model.fold(name).run for name in (training.folds if folds is None else folds)}
    return {name: records.load(FoldRun, path) for name, path in paths.items() if path.exists()}


def _target(
    training: Training, name: str, budget: TimeBudget | None, before: FoldRun | None
) -> Callable[[TrainState, Kitchen], float] | None:
    """A function that says how long this fold may train, or None where no time budget was given."""
    if budget is None:
        return None

    def target(state: TrainState, kitchen: Kitchen) -> float:
        if name in budget.finished and before is not None and before.target_seconds is not None:
            return min(before.target_seconds, state.elapsed)
        validation = 0.0
        if training.settings.validate and name != ALL:
            cases = training.splits.folds[int(name)].val
            validation = estimate_validation(training.store, cases, state.network, kitchen)
        return budget.training_seconds(name, training.folds, trained=state.elapsed, validation=validation)

    return target


def sum_up(training: Training) -> None:
    """Log the cross-validation table and write the report."""
    rows = []
    for name, run in fold_runs(training).items():
        summary = training.model.fold(name).summary
        if not summary.exists():
            continue
        scores = records.load(EvaluationReport, summary)
        per_class = [f"{item.dice:.4f}" for item in scores.mean]
        rows.append([name, str(run.epochs), duration(run.seconds), f"{scores.foreground_dice:.4f}", *per_class])
    if rows:
        header = ["fold", "epochs", "time", "Dice", *training.plan.labels.names]
        _LOG.info("validation at original geometry\n%s", table(rows, header=header))
    write_report(training.model)
    _LOG.info("model: %s\nreport: %s", training.model.root, training.model.report)
