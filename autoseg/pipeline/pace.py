"""The network that fits a time budget, for a plan or for a training that begins, by steps timed on this machine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from autoseg import records
from autoseg.io.discover import resolve_workspace
from autoseg.io.store import CaseStore
from autoseg.nets import traits_of
from autoseg.pipeline.prepare import is_edited
from autoseg.pipeline.set_up import Training, fold_task
from autoseg.pipeline.timed import fit_to_time, nearly_planned_for
from autoseg.planning import mirror_axes
from autoseg.schema.architecture import Recipe
from autoseg.schema.folders import FoldFolder, PreparedFolder
from autoseg.schema.plan import Configuration, Plan
from autoseg.schema.report import RunReport
from autoseg.schema.settings import PrepareSettings, TrainSettings
from autoseg.schema.splits import Fold
from autoseg.training.distributed import read_world
from autoseg.training.fold import FoldTask
from autoseg.training.pace import step_seconds
from autoseg.training.recipe import recipe_in_time

# What autoseg_train trains without further flags.
PLANNED_FOLDS = 5

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
    if model.plan.exists() and any(FoldFolder(fold).run.exists() for fold in model.root.glob("fold_*")):
        return _as_begun(training, records.load(Plan, model.plan), records.load(RunReport, model.run))
    if training.configuration.previous_stage is not None or training.start is not None or read_world().size > 1:
        return training
    folder = resolve_workspace(training.settings.workdir).prepared(training.spec.name)
    each = total / len(training.folds)

    quick = replace(training, recipe=recipe_in_time(training.recipe, training.settings, steps=0))

    def measure(plan: Plan, configuration: Configuration, seconds: float) -> float:
        task = task_to_time(replace(quick, plan=plan, configuration=configuration))
        return step_seconds(task, seconds=seconds, clock=clock)

    plan, chosen = fit_to_time(
        training.plan,
        training.configuration,
        seconds=each,
        total=total,
        device=training.settings.device,
        paces=folder.paces,
        step_seconds=measure,
        as_planned=is_edited(folder) or nearly_planned_for(training.plan, each, folds=PLANNED_FOLDS),
    )
    recipe = recipe_in_time(training.recipe, training.settings, steps=chosen.steps(each))
    return replace(training, plan=plan, configuration=chosen.configuration, recipe=recipe)


def task_to_time(training: Training) -> FoldTask:
    """The fold whose steps stand for those of all."""
    return fold_task(training, training.folds[0])


def _as_begun(training: Training, begun: Plan, run: RunReport) -> Training:
    """The training with the width and recipe that the model's folds began with; what else differs is refused later."""
    name = training.configuration.name
    if name not in begun.names:
        return training
    before = begun.configuration(name)
    configuration = replace(
        training.configuration,
        topology=replace(training.configuration.topology, features=before.topology.features),
        cost=before.cost,
        why=before.why,
    )
    planned = tuple(configuration if one.name == name else one for one in training.plan.configurations)
    recipe = training.recipe
    if recipe_in_time(recipe, training.settings, steps=0) != recipe:
        recipe = records.from_json(Recipe, json.dumps(run.settings["recipe"]), source=str(training.model.run))
    plan = replace(training.plan, configurations=planned)
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

    def measure(plan: Plan, configuration: Configuration, seconds: float) -> float:
        with tempfile.TemporaryDirectory(prefix="autoseg_") as place:
            return step_seconds(_generated_task(plan, configuration, settings.device, Path(place)), seconds=seconds)

    for name in settings.configurations or (plan.default_configuration,):
        plan, _ = fit_to_time(
            plan,
            plan.configuration(name),
            seconds=total / PLANNED_FOLDS,
            total=total,
            device=settings.device,
            paces=folder.paces,
            step_seconds=measure,
        )
    return replace(plan, time_budget=total)


def _generated_task(plan: Plan, configuration: Configuration, device: str, folder: Path) -> FoldTask:
    shape = configuration.median_shape if configuration.ndim == 3 else (8, *configuration.median_shape)
    patch = configuration.patch_size if configuration.ndim == 3 else (1, *configuration.patch_size)
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
        recipe=recipe_in_time(traits_of(configuration.architecture.name).recipe, TrainSettings(), steps=0),
        name="0",
        cases=Fold(train=(_CASE,), val=(_CASE,)),
        mirror_axes=mirror_axes(plan, configuration)[0],
        store=store.root,
        folder=FoldFolder(folder / "fold_0"),
        stop_file=folder / "STOP",
    )
