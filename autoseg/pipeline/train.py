"""Train every fold, validate each at original geometry, and sum up the cross-validation."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from autoseg import records
from autoseg.errors import DatasetError, PartialError, RecordError, SettingError, joined
from autoseg.io.discover import resolve_workspace
from autoseg.log import duration, get_logger, table
from autoseg.nets.device import choose_device
from autoseg.pipeline.budget import TimeBudget, open_budget, validation_seconds
from autoseg.pipeline.context import machine, typed_command, versions
from autoseg.pipeline.initial import initial_record, refuse_other_start
from autoseg.pipeline.outlook import curve, outlook
from autoseg.pipeline.pace import in_time
from autoseg.pipeline.set_up import Training, fold_runs, fold_task, set_up
from autoseg.pipeline.splits import ALL, refuse_other_splits
from autoseg.pipeline.validate import estimate_validation, validate_fold
from autoseg.report import progress_png, write_report
from autoseg.schema.fingerprint import Fingerprint
from autoseg.schema.folders import PREVIOUS_MODEL, ModelFolder
from autoseg.schema.plan import Plan
from autoseg.schema.report import EvaluationReport, RunReport
from autoseg.schema.settings import TrainSettings
from autoseg.training.distributed import joined_world, read_world, world_device
from autoseg.training.fold import FoldTask, train_fold
from autoseg.training.state import TrainState, history_rows
from autoseg.training.step import Kitchen
from autoseg.training.stop import stop_requests

_LOG = get_logger(__name__)

# Writing weights, the last curve and the report.
_SECONDS_AT_THE_END = 2.0


def train(
    settings: TrainSettings,
    *,
    model: ModelFolder | None = None,
    stop_file: Path | None = None,
    plan: Plan | None = None,
    first_stage: Callable[[Training], Training] | None = None,
    as_planned: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> ModelFolder:
    """Train the folds that ``settings`` ask for, one after the other, and return the model's folder.

    Args:
        model: where the model goes, in place of its folder in the results.
        plan: in place of the dataset's plan, with the same images.
        stop_file: what a person creates to end training, in place of STOP in the model's folder.
        first_stage: trains what comes first where ``settings`` ask for the second stage of a cascade.
        as_planned: neither fit the plan to a time budget nor go on with finished folds.
        clock: what a time budget is measured with, in seconds.

    Raises:
        SettingError: no such configuration or fold, or the model's folder holds folds of another plan or other cases.
        RecordError: a fold was begun with other settings.
        StoppedError: the user asked to stop; the same command goes on.
        PartialError: all folds are trained, but some validation cases could not be scored.
    """
    started = clock()
    world = read_world()
    if not world.is_first:
        logging.getLogger("autoseg").setLevel(logging.ERROR)
    training = set_up(settings, model=model, plan=plan, first_stage=first_stage)
    if training.earlier is not None:
        # That time was the first stage's share, and is not in the second one's.
        started += training.earlier.seconds
    if not as_planned:
        training = in_time(training, clock=clock)
    refuse_other_settings(training)
    write_model_facts(training)
    budget = None
    if training.settings.time_budget is not None:
        budget = open_budget(
            training.settings.time_budget,
            training.folds,
            fold_runs(training),
            started=started,
            validate=training.settings.validate,
            extend=not as_planned,
            clock=clock,
        )
    problems: list[str] = []
    # Joined once for all folds: a second group would find the first one's keys in torchrun's store.
    device = world_device(choose_device(settings.device), world)
    with joined_world(world, device), stop_requests(stop_file or training.model.stop_file) as stop:
        for name in training.folds:
            try:
                _train_and_validate(training, name, budget, stop=stop, clock=clock)
            except DatasetError as error:
                problems.append(error.message)
    if world.is_first:
        sum_up(training)
        if budget is not None and budget.extend and not problems:
            _tell_outlook(training)
    if problems:
        raise PartialError(
            f"all folds are trained, but not all cases could be validated:\n{joined(problems)}",
            hint="mend these files and run the same command again; only what is missing is done",
        )
    return training.model


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
        goes_on = _goes_on_in_time(training, model.finished_folds())
        raise SettingError(
            f"{model.root} holds folds ({', '.join(model.finished_folds())}) that were trained with another plan",
            hint=f"{goes_on}rename or remove that folder to train with today's plan",
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
            hint=_goes_on_in_time(training, others)
            + "repeat the settings of that training to go on, or remove the fold's folder to start anew",
        )


def _goes_on_in_time(training: Training, folds: Sequence[str]) -> str:
    """The beginning of a hint where folds were trained to a time, with its network and recipe, and none is given."""
    in_a_time = any(run.budget is not None for run in fold_runs(training, folds).values())
    return "give --time-budget again to go on, or " if in_a_time and not training.settings.time_budget else ""


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
    kept = replace(plan, configurations=(bare,), why=(), device="", memory_bytes=0, time_budget=None, timed=())
    return records.to_json(kept)


def _train_and_validate(
    training: Training, name: str, budget: TimeBudget | None, *, stop: Callable[[], bool], clock: Callable[[], float]
) -> None:
    task = replace(fold_task(training, name), share=budget.share(name) if budget is not None else None)
    before = fold_runs(training).get(name)
    if before is not None and budget is not None and name in budget.trained:
        run = before
    else:
        run = train_fold(
            task,
            stop=stop,
            target_seconds=None if budget is None else _target(training, name, budget),
            draw_progress=_draw_progress(training, task),
            clock=clock,
        )
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
    began = clock()
    predicted = validate_fold(
        training.model,
        name,
        task.cases.val,
        spec=training.spec,
        device=training.settings.device,
        stop=stop,
        previous=task.previous.files if task.previous is not None else None,
    )
    # Of a validation that went on, only what it would have taken as a whole says something about other folds.
    seconds = (clock() - began) * len(task.cases.val) / max(predicted, 1)
    used = budget.used if budget is not None else 0.0
    records.save(task.folder.run, replace(run, status="validated", validation_seconds=seconds, used=used))


def _draw_progress(training: Training, task: FoldTask) -> Callable[[TrainState], None]:
    title = f"{training.spec.name}, {training.configuration.name}, fold {task.name}"

    def draw(state: TrainState) -> None:
        progress_png(task.folder.progress, history_rows(state.history), title=title)

    return draw


def _target(training: Training, name: str, budget: TimeBudget) -> Callable[[TrainState, Kitchen], float]:
    """A function that says how long this fold may train; in a race at least a moment, whatever validation takes."""
    cases = {str(index): len(fold.val) for index, fold in enumerate(training.splits.folds)}
    deadline = budget.deadline(name)

    def target(state: TrainState, kitchen: Kitchen) -> float:
        validation = _SECONDS_AT_THE_END
        if training.settings.validate and name != ALL:
            ids = training.splits.folds[int(name)].val
            estimate = estimate_validation(training.store, ids, state.network, kitchen, clock=budget.clock)
            validation += validation_seconds([*fold_runs(training).values()], cases, name, estimate=estimate)
        if budget.extend and state.step == 0 and deadline - budget.clock() <= validation:
            raise SettingError(
                f"fold {name}: validation alone takes {duration(validation)}, which leaves no time to train",
                hint="give a longer --time-budget, fewer folds (-f 0), or --no-validate",
            )
        return budget.training_seconds(deadline, trained=state.elapsed, validation=validation)

    return target


def _tell_outlook(training: Training) -> None:
    folds = [training.model.fold(name) for name in training.folds]
    line = outlook([(folder, curve(folder.log)) for folder in folds])
    if line is not None:
        _LOG.info("%s", line)


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
