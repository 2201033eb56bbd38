"""Train every fold, validate each at original geometry, and sum up the cross-validation."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from autoseg import records
from autoseg.errors import SettingError
from autoseg.io.discover import resolve_workspace
from autoseg.io.store import CaseStore
from autoseg.log import duration, get_logger, table
from autoseg.nets.cost import training_cost
from autoseg.nets.device import choose_device, choose_precision
from autoseg.pipeline.budget import TimeBudget, open_budget
from autoseg.pipeline.context import choose_dataset, machine, versions
from autoseg.pipeline.prepare import load_plan, preprocess_configuration
from autoseg.pipeline.validate import estimate_validation, validate_fold
from autoseg.planning import make_splits, mirror_axes, read_splits
from autoseg.report import progress_png, write_report
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.fingerprint import Fingerprint
from autoseg.schema.folders import ModelFolder, PreparedFolder, Workspace
from autoseg.schema.plan import Configuration, Plan
from autoseg.schema.report import EvaluationReport, FoldRun, RunReport
from autoseg.schema.settings import PrepareSettings, TrainSettings
from autoseg.schema.splits import Fold, Splits
from autoseg.training.distributed import read_world
from autoseg.training.fold import FoldTask, train_fold
from autoseg.training.state import TrainState, history_rows
from autoseg.training.step import Kitchen
from autoseg.training.stop import stop_requests

_LOG = get_logger(__name__)

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Training:
    """Everything that the folds share."""

    settings: TrainSettings
    spec: DatasetSpec
    plan: Plan
    configuration: Configuration
    splits: Splits
    mirror_axes: tuple[int, ...]
    store: CaseStore
    model: ModelFolder

    @property
    def folds(self) -> tuple[str, ...]:
        return self.settings.fold or tuple(str(index) for index in range(len(self.splits.folds)))


def train(settings: TrainSettings) -> ModelFolder:
    """Train the folds that ``settings`` ask for, one after the other, and return the model's folder.

    Raises:
        SettingError: no such configuration or fold.
        StoppedError: the user asked to stop; the same command goes on.
    """
    started = time.monotonic()
    if not read_world().is_first:
        logging.getLogger("autoseg").setLevel(logging.ERROR)
    training = set_up(settings)
    _write_model_facts(training)
    budget = None
    if settings.time_budget is not None:
        budget = open_budget(settings.time_budget, training.folds, _runs(training), started=started)
    with stop_requests(training.model.stop_file) as stop:
        for name in training.folds:
            _train_and_validate(training, name, budget, stop=stop)
    if read_world().is_first:
        _sum_up(training)
    return training.model


def set_up(settings: TrainSettings) -> Training:
    """Read plan, splits and store; preprocess what is missing."""
    workspace = resolve_workspace(settings.workdir)
    name = choose_dataset(settings.dataset, workspace)
    folder = workspace.prepared(name)
    spec = records.load(DatasetSpec, folder.dataset)
    plan = load_plan(folder, PrepareSettings(workdir=settings.workdir, device=settings.device))
    configuration = _configuration(plan, settings)
    if read_world().is_first:
        store = preprocess_configuration(spec, plan, configuration, folder)
    else:
        store = CaseStore(folder.store(configuration.name))
    splits = _splits(settings, folder, workspace)
    axes, reason = mirror_axes(plan, configuration) if settings.mirror else ((), "mirroring is switched off")
    if reason:
        _LOG.info("mirroring: %s", reason)
    training = Training(
        settings=settings,
        spec=spec,
        plan=plan,
        configuration=configuration,
        splits=splits,
        mirror_axes=axes,
        store=store,
        model=workspace.model(name, configuration.name, configuration.architecture.name),
    )
    _check_folds(training)
    return training


def _configuration(plan: Plan, settings: TrainSettings) -> Configuration:
    configuration = plan.configuration(settings.configuration or plan.default_configuration)
    if configuration.previous_stage is not None:
        raise SettingError(
            f"{configuration.name} refines predictions of {configuration.previous_stage}, which cannot be trained yet",
            hint=f"train one of: {', '.join(c.name for c in plan.configurations if c.previous_stage is None)}",
        )
    if settings.batch_size is None:
        return configuration
    if settings.batch_size < 1:
        raise SettingError(f"a batch of {settings.batch_size} is not possible", hint="give --batch-size 1 or more")
    precision = "float32" if choose_precision(choose_device(settings.device)) is None else "mixed"
    cost = training_cost(
        configuration.architecture,
        configuration.topology,
        ndim=configuration.ndim,
        patch_size=configuration.patch_size,
        batch_size=settings.batch_size,
        in_channels=len(plan.channels),
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


def _splits(settings: TrainSettings, folder: PreparedFolder, workspace: Workspace) -> Splits:
    """The user's splits, else those on disk if they are of the same cases and number of folds, else new ones."""
    ids = tuple(case.id for case in records.load(Fingerprint, folder.fingerprint).cases)
    if settings.splits is not None:
        splits = read_splits(settings.splits, ids, folds=settings.folds)
        _LOG.info("splits: %d folds from %s", len(splits.folds), settings.splits)
        return splits
    wanted = make_splits(ids, folds=settings.folds)
    if folder.splits.exists():
        known = records.load(Splits, folder.splits)
        same_cases = {case for fold in known.folds for case in fold.val} == set(ids)
        if same_cases and len(known.folds) == len(wanted.folds):
            return known
    if len(wanted.folds) < settings.folds:
        _LOG.warning("only %d cases: %d folds instead of %d", len(ids), len(wanted.folds), settings.folds)
    records.save(folder.splits, wanted)
    return wanted


def _check_folds(training: Training) -> None:
    known = [str(index) for index in range(len(training.splits.folds))]
    unknown = [name for name in training.folds if name not in known and name != ALL]
    if unknown:
        raise SettingError(f"there is no fold {', '.join(unknown)}", hint=f"choose among {', '.join(known)}, or all")


def _write_model_facts(training: Training) -> None:
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
    records.save(model.fingerprint, records.load(Fingerprint, folder.fingerprint))
    chosen = asdict(training.settings)
    chosen.update(
        configuration=training.configuration.name,
        mirror_axes=list(training.mirror_axes),
        batch_size=training.configuration.batch_size,
    )
    report = RunReport(
        command=shlex.join(["autoseg_train", *sys.argv[1:]]), settings=chosen, versions=versions(), machine=machine()
    )
    records.save(model.run, report)


def _train_and_validate(training: Training, name: str, budget: TimeBudget | None, *, stop: Callable[[], bool]) -> None:
    task = _task(training, name)
    draw = _draw_progress(training, task)
    before = _runs(training).get(name)
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
    validate_fold(training.model, name, task.cases.val, spec=training.spec, device=training.settings.device, stop=stop)
    seconds = time.monotonic() - clock
    records.save(task.folder.run, replace(run, status="validated", validation_seconds=seconds))


def _task(training: Training, name: str) -> FoldTask:
    everyone = tuple(sorted({case for fold in training.splits.folds for case in (*fold.train, *fold.val)}))
    cases = Fold(train=everyone, val=everyone) if name == ALL else training.splits.folds[int(name)]
    return FoldTask(
        plan=training.plan,
        configuration=training.configuration,
        settings=training.settings,
        name=name,
        cases=cases,
        mirror_axes=training.mirror_axes,
        store=training.store.root,
        folder=training.model.fold(name),
        stop_file=training.model.stop_file,
    )


def _draw_progress(training: Training, task: FoldTask) -> Callable[[TrainState], None]:
    title = f"{training.spec.name}, {training.configuration.name}, fold {task.name}"

    def draw(state: TrainState) -> None:
        progress_png(task.folder.progress, history_rows(state.history), title=title)

    return draw


def _runs(training: Training) -> dict[str, FoldRun]:
    paths = {name: training.model.fold(name).run for name in training.folds}
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


def _sum_up(training: Training) -> None:
    """Log the cross-validation table and write the report."""
    rows = []
    for name, run in _runs(training).items():
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
