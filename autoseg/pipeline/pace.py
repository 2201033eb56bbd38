"""The network that fits a time budget, for a plan or for a training that begins, by steps timed on this machine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from autoseg import records
from autoseg.io.discover import resolve_workspace
from autoseg.io.store import CaseStore
from autoseg.nets import traits_of
from autoseg.nets.device import choose_device
from autoseg.pipeline.prepare import is_edited
from autoseg.pipeline.set_up import PLANNED_FOLDS, Training, fold_task
from autoseg.pipeline.splits import ALL
from autoseg.pipeline.timed import PROBE_SECONDS, PROBE_SHARE, fit_to_time, nearly_planned_for
from autoseg.pipeline.validate import validation_time
from autoseg.planning import mirror_axes
from autoseg.planning.clock import Paced, choose_width
from autoseg.schema.architecture import Recipe
from autoseg.schema.folders import FoldFolder, ModelFolder, PreparedFolder
from autoseg.schema.plan import Configuration, Plan
from autoseg.schema.report import RunReport
from autoseg.schema.settings import PrepareSettings, TrainSettings
from autoseg.schema.splits import Fold
from autoseg.training.distributed import read_world
from autoseg.training.fold import FoldTask
from autoseg.training.pace import step_seconds
from autoseg.training.recipe import recipe_in_time

# A step goes forward and twice backward for each patch of the batch.
_PASSES = 3

_CASE = "generated"
_LOCATIONS = 1000


def in_time(training: Training, *, clock: Callable[[], float]) -> Training:
    """The training with the network and the recipe for its time budget.

    The plan's own network stays where the plan was edited by hand or made for nearly this time. A cascade, weights that
    are loaded (``--init``) and several processes keep network and recipe. Folds that are begun keep what they have.

    Raises:
        SettingError: the time is too short for anything useful.
    """
    total, model = training.settings.time_budget, training.model
    if total is None:
        return training
    if is_begun(model):
        return as_begun(training)
    if training.configuration.previous_stage is not None or training.start is not None or read_world().size > 1:
        return training
    folder = resolve_workspace(training.settings.workdir).prepared(training.spec.name)
    folds = len(training.folds)
    quick = replace(training, recipe=recipe_in_time(training.recipe, training.settings, steps=0))

    def measure(plan: Plan, configuration: Configuration, seconds: float) -> float:
        task = task_to_time(replace(quick, plan=plan, configuration=configuration))
        return step_seconds(task, seconds=seconds, clock=clock)

    name = training.configuration.name
    nearly = nearly_planned_for(training.plan, name, total / folds, folds=PLANNED_FOLDS)
    plan, chosen = fit_to_time(
        training.plan,
        training.configuration,
        total=total,
        folds=folds,
        device=training.settings.device,
        optimizer=quick.recipe.optimizer,
        paces=folder.paces,
        step_seconds=measure,
        beside=partial(_validation, training),
        as_planned=nearly or is_edited(folder),
    )
    recipe = recipe_in_time(training.recipe, training.settings, steps=chosen.steps(total / folds))
    return replace(training, plan=plan, configuration=chosen.configuration, recipe=recipe)


def refuse_too_short(
    trainings: Sequence[Training], folds: Sequence[str], *, total: float, clock: Callable[[], float]
) -> None:
    """Time some steps of trainings that take turns in one network.

    Raises:
        SettingError: ``total`` seconds for ``folds`` are too few for anything useful.
    """
    limit = min(PROBE_SECONDS, PROBE_SHARE * total) / len(trainings)
    paces = [step_seconds(task_to_time(one), seconds=limit, clock=clock) for one in trainings]
    beside = sum(_validation(one, one.configuration, pace) for one, pace in zip(trainings, paces, strict=True))
    turn = Paced(configuration=trainings[0].configuration, seconds=sum(paces), beside=beside)
    choose_width([turn], total / len(folds), folds=len(folds))


def task_to_time(training: Training) -> FoldTask:
    """The fold whose steps stand for those of all."""
    return fold_task(training, training.folds[0])


def _validation(training: Training, configuration: Configuration, pace: float) -> float:
    """About how long the validation of a fold will take, from the pace of training steps."""
    folds = [training.splits.folds[int(name)].val for name in training.folds if name != ALL]
    if not training.settings.validate or not folds:
        return 0.0
    window = pace / _PASSES / configuration.batch_size
    if choose_device(training.settings.device).type == "cuda":
        window *= 2**configuration.ndim
    return validation_time(training.store, max(folds, key=len), configuration.patch_size, window=window)


def is_begun(model: ModelFolder) -> bool:
    """Whether some fold of the model was trained, if only for a moment."""
    return model.plan.exists() and any(FoldFolder(fold).run.exists() for fold in model.root.glob("fold_*"))


def as_begun(training: Training) -> Training:
    """The training with the width and recipe that the model's folds began with; what else differs is refused later."""
    name, model = training.configuration.name, training.model
    if not is_begun(model):
        return training
    begun = records.load(Plan, model.plan)
    if name not in begun.names:
        return training
    before, topology = begun.configuration(name), training.configuration.topology
    if before.topology.num_stages != topology.num_stages:
        return training
    configuration = replace(
        training.configuration,
        topology=replace(topology, features=before.topology.features),
        cost=before.cost,
        why=before.why,
    )
    recipe = training.recipe
    if recipe_in_time(recipe, training.settings, steps=0) != recipe:
        known = records.load(RunReport, model.run).settings["recipe"]
        recipe = records.from_json(Recipe, json.dumps(known), source=str(model.run))
    plan = training.plan.with_configuration(configuration)
    return replace(training, plan=plan, configuration=configuration, recipe=recipe)


def plan_to_time(plan: Plan, settings: PrepareSettings, folder: PreparedFolder) -> Plan:
    """The plan with networks for ``settings.time_budget`` in the configurations that would be trained.

    Steps are timed on a generated case of the median size, because nothing is preprocessed yet.

    Raises:
        SettingError: the time is too short for anything useful.
    """
    total = settings.time_budget
    if total is None:
        return plan

    recipe = recipe_in_time(traits_of(plan.configurations[0].architecture.name).recipe, TrainSettings(), steps=0)
    names = settings.configurations or (plan.default_configuration,)
    timed = [name for name in names if plan.configuration(name).previous_stage is None]
    for name in timed:
        with tempfile.TemporaryDirectory(prefix="autoseg_") as place:
            task = _generated_task(plan, plan.configuration(name), settings.device, recipe, Path(place))

            def measure(plan: Plan, configuration: Configuration, seconds: float, task: FoldTask = task) -> float:
                return step_seconds(replace(task, plan=plan, configuration=configuration), seconds=seconds)

            plan, _ = fit_to_time(
                plan,
                plan.configuration(name),
                total=total,
                folds=PLANNED_FOLDS,
                device=settings.device,
                optimizer=recipe.optimizer,
                paces=folder.paces,
                step_seconds=measure,
            )
    return replace(plan, time_budget=total, timed=tuple(timed))


def _generated_task(plan: Plan, configuration: Configuration, device: str, recipe: Recipe, folder: Path) -> FoldTask:
    """A fold of one case, of the median size or of two patches, whichever is smaller."""
    patch = configuration.patch_size if configuration.ndim == 3 else (1, *configuration.patch_size)
    median = configuration.median_shape if configuration.ndim == 3 else (2, *configuration.median_shape)
    shape = tuple(min(2 * edge, length) for edge, length in zip(patch, median, strict=True))
    rng = np.random.default_rng(0)
    image = rng.standard_normal((len(plan.channels), *shape), dtype=np.float32)
    heads = len(plan.labels.foreground) + 1
    label = rng.integers(heads, size=(1, *shape), dtype=np.int16)
    places = {head: np.argwhere(label[0] == head)[:_LOCATIONS].astype(np.int32) for head in range(1, heads)}
    store = CaseStore(folder / "store")
    store.begin("")
    store.write_case(_CASE, image, label, {}, places, patch)
    return FoldTask(
        plan=plan,
        configuration=configuration,
        settings=TrainSettings(device=device),
        recipe=recipe,
        name="0",
        cases=Fold(train=(_CASE,), val=(_CASE,)),
        mirror_axes=mirror_axes(plan, configuration)[0],
        store=store.root,
        folder=FoldFolder(folder / "fold_0"),
        stop_file=folder / "STOP",
    )
