"""One network for several datasets, trained at once; each dataset then has a model of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from autoseg import records
from autoseg.errors import DatasetError, PartialError, SettingError, joined
from autoseg.io.discover import resolve_workspace
from autoseg.log import get_logger
from autoseg.pipeline.budget import TimeBudget, open_budget
from autoseg.pipeline.cascade import train_first_stage
from autoseg.pipeline.context import choose_dataset
from autoseg.pipeline.initial import refuse_other_start, refuse_start
from autoseg.pipeline.objective import choose_objective
from autoseg.pipeline.outlook import curve_of_dataset, outlook
from autoseg.pipeline.pace import refuse_too_short
from autoseg.pipeline.set_up import Training, cost_today, fold_runs, fold_task, set_up
from autoseg.pipeline.train import refuse_other_plan, sum_up, train, write_model_facts
from autoseg.pipeline.validate import estimate_validation, validate_fold
from autoseg.report import progress_png
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Topology
from autoseg.schema.report import FoldRun
from autoseg.schema.settings import TrainSettings
from autoseg.training.joint import JointTask, train_joint_fold
from autoseg.training.state import TrainState, history_rows
from autoseg.training.step import Kitchen
from autoseg.training.stop import stop_requests

_LOG = get_logger(__name__)

UNIVERSAL = "u2net3d"


@dataclass(frozen=True, kw_only=True)
class JointTraining:
    """``domains`` are the datasets, each with its plan, splits and model; ``root`` keeps what is common."""

    settings: TrainSettings
    domains: tuple[Training, ...]
    root: ModelFolder

    @property
    def folds(self) -> tuple[str, ...]:
        fewest = min(len(domain.splits.folds) for domain in self.domains)
        return self.settings.fold or tuple(str(index) for index in range(fewest))

    def fold(self, name: str) -> JointTask:
        """What decides the weights of one fold."""
        domains = tuple(fold_task(domain, name) for domain in self.domains)
        return JointTask(domains=domains, folder=self.root.fold(name))


def train_any(settings: TrainSettings) -> ModelFolder | tuple[ModelFolder, ...]:
    """Train on one dataset, or one network on several; errors as ``train`` and ``train_jointly``."""
    return train_jointly(settings) if len(settings.dataset) > 1 else train(settings, first_stage=train_first_stage)


def train_jointly(settings: TrainSettings, *, clock: Callable[[], float] = time.monotonic) -> tuple[ModelFolder, ...]:
    """Train one universal network on ``settings.dataset`` and return the model folder of each dataset.

    Args:
        clock: what a time budget is measured with, in seconds.

    Raises:
        SettingError: another architecture than the universal one, datasets that cannot share it, or too little time.
        StoppedError: the user asked to stop; the same command goes on.
        PartialError: all folds are trained, but some validation cases could not be scored.
    """
    started = clock()
    joint = set_up_jointly(settings)
    for domain in joint.domains:
        refuse_other_plan(domain)
        refuse_other_start(domain.settings, domain.model)
    if settings.time_budget is not None and not _runs(joint):
        refuse_too_short(joint.domains, joint.folds, total=settings.time_budget, clock=clock)
    for domain in joint.domains:
        write_model_facts(domain)
    joint.root.root.mkdir(parents=True, exist_ok=True)
    joint.root.stop_file.unlink(missing_ok=True)
    budget = None
    if settings.time_budget is not None:
        runs = _runs(joint)
        budget = open_budget(
            settings.time_budget, joint.folds, runs, started=started, validate=settings.validate, clock=clock
        )
    problems: list[str] = []
    with stop_requests(joint.root.stop_file) as stop:
        for name in joint.folds:
            problems += _train_and_validate(joint, name, budget, stop=stop, clock=clock)
    for domain in joint.domains:
        sum_up(domain)
        if budget is not None and not problems:
            _tell_outlook(joint, domain)
    if problems:
        raise PartialError(
            f"all folds are trained, but not all cases could be validated:\n{joined(problems)}",
            hint="mend these files and run the same command again; only what is missing is done",
        )
    return tuple(domain.model for domain in joint.domains)


def set_up_jointly(settings: TrainSettings) -> JointTraining:
    """Read plans, splits and stores of all datasets, and give their networks the same stages.

    Raises:
        SettingError: another architecture, a dataset named twice, or 2D together with 3D.
    """
    if settings.arch not in {None, UNIVERSAL}:
        raise SettingError(
            f"{settings.arch} cannot be trained on several datasets at once",
            hint=f"use --arch {UNIVERSAL}, or train the datasets one by one",
        )
    refuse_start(settings)
    workspace = resolve_workspace(settings.workdir)
    names = tuple(choose_dataset(identifier, workspace) for identifier in settings.dataset)
    if len(set(names)) < len(names):
        raise SettingError(f"a dataset is named twice: {' '.join(settings.dataset)}", hint="name each dataset once")
    single = [set_up(replace(settings, dataset=(name,), arch=UNIVERSAL)) for name in names]
    # What one of the datasets was planned for is no time for all of them.
    single = [replace(one, settings=replace(one.settings, time_budget=settings.time_budget)) for one in single]
    if len({domain.configuration.ndim for domain in single}) > 1:
        kinds = ", ".join(f"{domain.spec.name}: {domain.configuration.name}" for domain in single)
        raise SettingError(
            f"2D and 3D cannot share a network ({kinds})", hint="choose a configuration that all have, such as -c 2d"
        )
    common = common_topologies([domain.configuration.topology for domain in single])
    domains = []
    for domain, topology in zip(single, common, strict=True):
        configuration = domain.configuration.name
        others = "-".join(name for name in names if name != domain.spec.name)
        model = workspace.model(domain.spec.name, configuration, f"{UNIVERSAL}_with_{others}")
        measured = workspace.prepared(domain.spec.name).fingerprint
        objective = choose_objective(settings, domain.plan, domain.spec, measured, model)
        domains.append(_with_topology(replace(domain, model=model, objective=objective), topology))
    root = workspace.model("-".join(names), domains[0].configuration.name, UNIVERSAL)
    return JointTraining(settings=settings, domains=tuple(domains), root=root)


def common_topologies(topologies: Sequence[Topology]) -> list[Topology]:
    """The topologies, all with as many stages as the deepest; stages that are added do not stride.

    Widths are those of the deepest, because shared convolutions have one width per stage.
    """
    deepest = max(topologies, key=lambda topology: topology.num_stages)
    result = []
    for topology in topologies:
        ndim, missing = len(topology.strides[0]), deepest.num_stages - topology.num_stages
        result.append(
            Topology(
                strides=(*topology.strides, *((1,) * ndim for _ in range(missing))),
                kernels=(*topology.kernels, *((3,) * ndim for _ in range(missing))),
                features=deepest.features,
            )
        )
    return result


def _with_topology(domain: Training, topology: Topology) -> Training:
    configuration = replace(domain.configuration, topology=topology)
    configuration = replace(configuration, cost=cost_today(domain.plan, configuration, domain.settings.device))
    return replace(domain, configuration=configuration, plan=domain.plan.with_configuration(configuration))


def _train_and_validate(
    joint: JointTraining,
    name: str,
    budget: TimeBudget | None,
    *,
    stop: Callable[[], bool],
    clock: Callable[[], float],
) -> list[str]:
    task = joint.fold(name)
    if budget is not None and name in budget.finished:
        return []
    if budget is not None and name in budget.trained:
        run = _runs(joint)[name]
    else:
        task = replace(task, share=budget.share(name) if budget is not None else None)
        run = train_joint_fold(
            task,
            stop=stop,
            target_seconds=None if budget is None else _target(joint, name, budget),
            draw_progress=_draw_progress(joint, task),
            clock=clock,
        )
    problems, seconds = [], 0.0
    for domain in joint.domains:
        began = clock()
        try:
            _validate(domain, name, run, stop=stop)
        except DatasetError as error:
            problems.append(f"{domain.spec.name}: {error.message}")
        seconds += clock() - began
    used = budget.used if budget is not None else 0.0
    status = "validated" if joint.settings.validate and name.isdigit() and not problems else "trained"
    records.save(joint.root.fold(name).run, replace(run, status=status, validation_seconds=seconds, used=used))
    return problems


def _validate(domain: Training, name: str, run: FoldRun, *, stop: Callable[[], bool]) -> None:
    folder = domain.model.fold(name)
    known = fold_runs(domain).get(name)
    if known is not None and known.status == "validated" and known.steps == run.steps and folder.summary.exists():
        _LOG.info("%s, fold %s: finished and validated before", domain.spec.name, name)
        return
    records.save(folder.run, run)
    if not domain.settings.validate or not name.isdigit():
        return
    cases = domain.splits.folds[int(name)].val
    validate_fold(domain.model, name, cases, spec=domain.spec, device=domain.settings.device, stop=stop)
    records.save(folder.run, replace(run, status="validated"))


def _tell_outlook(joint: JointTraining, domain: Training) -> None:
    logs = {name: joint.root.fold(name).log for name in joint.folds}
    line = outlook([(domain.model.fold(name), curve_of_dataset(log, domain.spec.name)) for name, log in logs.items()])
    if line is not None:
        _LOG.info("%s: %s", domain.spec.name, line)


def _runs(joint: JointTraining) -> dict[str, FoldRun]:
    paths = {name: joint.root.fold(name).run for name in joint.folds}
    return {name: records.load(FoldRun, path) for name, path in paths.items() if path.exists()}


def _target(
    joint: JointTraining, name: str, budget: TimeBudget
) -> Callable[[float, Sequence[TrainState], Sequence[Kitchen]], float]:
    """A function that says how long this fold may train."""
    deadline = budget.deadline(name)

    def target(trained: float, states: Sequence[TrainState], kitchens: Sequence[Kitchen]) -> float:
        validation = 0.0
        if joint.settings.validate and name.isdigit():
            for domain, state, kitchen in zip(joint.domains, states, kitchens, strict=True):
                cases = domain.splits.folds[int(name)].val
                validation += estimate_validation(domain.store, cases, state.network, kitchen, clock=budget.clock)
        return budget.training_seconds(deadline, trained=trained, validation=validation)

    return target


def _draw_progress(joint: JointTraining, task: JointTask) -> Callable[[TrainState], None]:
    title = f"{' and '.join(domain.spec.name for domain in joint.domains)}, fold {task.name}"

    def draw(state: TrainState) -> None:
        progress_png(task.folder.progress, history_rows(state.history), title=title)

    return draw
