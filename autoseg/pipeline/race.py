"""``autoseg_race``: train architectures on the same folds for the same time, and make the best one the plan.

Rounds follow successive halving (``halving.py``). Each round trains its entrants afresh: a learning rate that is
annealed to the end of a short training cannot be taken up again, and going on from there is not what a longer
training would have been. So every score is that of a complete, annealed schedule. The model of a later round replaces
that of an earlier one; the scores of both stay in ``race.json``.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from autoseg import records
from autoseg.errors import AutosegError, DivergenceError, ResourceError, SettingError, StoppedError, joined
from autoseg.evaluation.metrics import case_dice
from autoseg.io.discover import resolve_workspace
from autoseg.log import duration, get_logger, table
from autoseg.nets import traits_of
from autoseg.nets.device import choose_device
from autoseg.pipeline.alternative import adopt, plan_for
from autoseg.pipeline.context import choose_dataset
from autoseg.pipeline.halving import number_of_rounds, racing_seconds, schedule, seconds_each, survivors
from autoseg.pipeline.prepare import load_plan, plan_identity
from autoseg.pipeline.ranking import mean_dice, rank, ranking_csv, ranking_table, verdict
from autoseg.pipeline.set_up import set_up
from autoseg.pipeline.splits import ALL
from autoseg.pipeline.train import train
from autoseg.planning.choice import choose_architecture
from autoseg.schema.fingerprint import Fingerprint
from autoseg.schema.folders import ModelFolder, PreparedFolder, RaceFolder
from autoseg.schema.plan import Configuration, Plan
from autoseg.schema.report import (
    CaseScores,
    EvaluationReport,
    FoldRun,
    RaceQuestion,
    RaceReport,
    RaceRound,
    RaceTraining,
)
from autoseg.schema.settings import PrepareSettings, RaceSettings, TrainSettings
from autoseg.schema.splits import Splits
from autoseg.training.distributed import read_world
from autoseg.training.stop import stop_requests

_LOG = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Race:
    """``budget`` is for the whole race, in seconds; ``arch`` are labels as the plan writes them."""

    settings: RaceSettings
    budget: float
    dataset: str
    arch: tuple[str, ...]
    prepared: PreparedFolder
    folder: RaceFolder


def race(settings: RaceSettings) -> RaceReport:
    """Find the best of ``settings.arch`` within the time, write ``race.json`` and ``race.csv``, adopt its plan.

    An architecture that cannot be planned, diverges or does not fit into the memory is out; the others go on.

    Raises:
        SettingError: no such architecture, fewer than two, or an earlier race was about something else.
        DatasetError: the dataset was not planned.
        PartialError: validation cases could not be scored.
        DivergenceError, ResourceError: nobody finished a round.
        StoppedError: the user asked to stop; the same command goes on.
    """
    started = time.monotonic()
    opened = _open(settings)
    report = _begun(opened, started=started)
    if not report.ranking:
        try:
            report = _run(opened, report)
        except StoppedError as error:
            hint = "run the same command again to go on" + (", without --clean" if settings.clean else "")
            raise StoppedError(f"the race was stopped: {error.message}", hint=hint) from error
        ranking = rank(report, opened.folder)
        report = replace(report, ranking=ranking, verdict=verdict(ranking, folds=len(settings.fold)))
        _keep(opened, report)
        records.write_text(opened.folder.table, ranking_csv(report))
    _show(opened, report)
    if settings.adopt:
        report = replace(report, adopted=_adopt(opened, report))
        _keep(opened, report)
    else:
        _LOG.info("the plan of the dataset stays as it is; without --no-adopt it becomes that of the winner")
    return report


def _open(settings: RaceSettings) -> _Race:
    if settings.time_budget is None:
        raise SettingError("a race needs a time", hint="give --time-budget, such as 2h")
    if ALL in settings.fold:
        raise SettingError("a race needs cases to validate on, and fold all has none", hint="give folds such as -f 0 1")
    if read_world().size > 1:
        raise SettingError("a race runs in one process", hint="start autoseg_race without torchrun")
    workspace = resolve_workspace(settings.workdir)
    name = choose_dataset(settings.dataset, workspace)
    prepared = workspace.prepared(name)
    plan = load_plan(prepared, PrepareSettings(device=settings.device))
    labels = [
        choose_architecture(
            wanted, traits_of=traits_of, device=plan.device, memory_bytes=plan.memory_bytes
        ).architecture.label
        for wanted in settings.arch
    ]
    arch = tuple(dict.fromkeys(labels))
    if len(arch) < 2:
        raise SettingError(
            f"a race needs two architectures, and only {' '.join(arch) or 'none'} was named",
            hint="name several with --arch, such as --arch unet unetpp",
        )
    return _Race(
        settings=settings,
        budget=settings.time_budget,
        dataset=name,
        arch=arch,
        prepared=prepared,
        folder=workspace.race(name),
    )


def _begun(opened: _Race, *, started: float) -> RaceReport:
    """The race in the folder, if it is about the same, or a new one whose candidates are planned and preprocessed.

    Raises:
        SettingError: the race in the folder is about something else, or nobody can be planned.
    """
    path = opened.folder.report
    if opened.settings.clean:
        shutil.rmtree(opened.folder.root, ignore_errors=True)
    if path.exists():
        known = records.load(RaceReport, path)
        _refuse_other_question(opened, known)
        return known
    refused = _prepare(opened)
    seconds = time.monotonic() - started
    report = RaceReport(
        dataset=opened.dataset,
        question=_question(opened),
        preparation_seconds=seconds,
        refused=refused,
    )
    _keep(opened, report)
    return report


def _prepare(opened: _Race) -> dict[str, str]:
    """Plan every candidate and bring its images up to date; returns those that cannot be planned, with the reason."""
    refused: dict[str, AutosegError] = {}
    for name in opened.arch:
        try:
            configuration, _ = _entry(opened, name)
            model = opened.folder.model(1, configuration.name, name)
            set_up(_train_settings(opened, name, seconds=opened.budget), model=model)
        except SettingError as error:
            refused[name] = error
            _LOG.warning("%s is out: %s", name, error.message)
    if len(refused) == len(opened.arch):
        reasons = {error.message: error for error in refused.values()}
        if len(reasons) == 1:
            raise next(iter(reasons.values()))
        lines = [f"{name}: {error.message}" for name, error in refused.items()]
        raise SettingError(f"no architecture can take part:\n{joined(lines)}", hint="name others with --arch")
    return {name: error.message for name, error in refused.items()}


def _question(opened: _Race) -> RaceQuestion:
    settings, prepared = opened.settings, opened.prepared
    splits = prepared.splits.read_bytes() if prepared.splits.exists() else b""
    return RaceQuestion(
        arch=opened.arch,
        configuration=settings.configuration,
        fold=settings.fold,
        time_budget=opened.budget,
        device=choose_device(settings.device).type,
        seed=settings.seed,
        plan=plan_identity(load_plan(prepared, PrepareSettings(device=settings.device))),
        files=records.load(Fingerprint, prepared.fingerprint).content_hash,
        splits=hashlib.sha256(splits).hexdigest(),
    )


def _refuse_other_question(opened: _Race, known: RaceReport) -> None:
    today, before = _question(opened), known.question
    if today.plan == known.adopted:
        today = replace(today, plan=before.plan)
    hashes = {"plan": "the plan of the dataset", "files": "its files", "splits": "its folds"}
    problems = []
    for item in fields(RaceQuestion):
        then, now = getattr(before, item.name), getattr(today, item.name)
        if then == now or (isinstance(then, tuple) and sorted(then) == sorted(now)):
            continue
        flag = f"--{item.name.replace('_', '-')}"
        problems.append(
            f"{hashes[item.name]} changed since"
            if item.name in hashes
            else f"{flag} was {_words(item.name, then)} and is {_words(item.name, now)} now"
        )
    if problems:
        raise SettingError(
            f"{opened.folder.root} holds another race:\n{joined(problems)}",
            hint="--clean removes it and starts anew; or repeat its arguments, and it goes on",
        )


def _words(name: str, value: object) -> str:
    if name == "time_budget" and isinstance(value, float):
        return duration(value)
    return " ".join(value) if isinstance(value, tuple) else "the default" if value is None else str(value)


def _run(opened: _Race, report: RaceReport) -> RaceReport:
    """The rounds that are left."""
    opened.folder.stop_file.unlink(missing_ok=True)
    entrants = tuple(name for name in report.question.arch if name not in report.refused)
    rounds = number_of_rounds(len(entrants))
    total, folds = racing_seconds(opened.budget, preparation=report.preparation_seconds), len(opened.settings.fold)
    if len(entrants) == 1:
        _LOG.warning("only %s takes part: it is trained, but nothing is compared", entrants[0])
    if not report.rounds:
        _announce(opened, entrants, total=total, preparation=report.preparation_seconds)
    with stop_requests(opened.folder.stop_file) as stop:
        for number in range(1, rounds + 1):
            if len(report.rounds) < number:
                seconds = seconds_each(total, rounds=rounds, entrants=len(entrants), folds=folds)
                report = replace(report, rounds=(*report.rounds, RaceRound(entrants=entrants, seconds=seconds)))
            report = _round(opened, report, number, stop)
            done = [item for item in report.rounds[number - 1].trainings if not item.failure]
            entrants = survivors({item.arch: mean_dice(item) for item in done}, entrants=len(entrants))
            if len(entrants) == 1:
                break
            if number < rounds:
                _LOG.info("race: %s go on", ", ".join(entrants))
    return report


def _announce(opened: _Race, entrants: Sequence[str], *, total: float, preparation: float) -> None:
    folds = opened.settings.fold
    heats = schedule(len(entrants), total=total, folds=len(folds))
    rows = [[number, heat.entrants, duration(heat.seconds)] for number, heat in enumerate(heats, start=1)]
    _LOG.info(
        "race of %s on %s: %s after %s of preparing\n%s",
        ", ".join(entrants),
        f"fold {folds[0]}" if len(folds) == 1 else f"folds {', '.join(folds)}",
        duration(total),
        duration(preparation),
        table(rows, header=["round", "architectures", "time for each" + (" and fold" if len(folds) > 1 else "")]),
    )


def _round(opened: _Race, report: RaceReport, number: int, stop: Callable[[], bool]) -> RaceReport:
    """Train the entrants of a round that are not trained yet.

    Raises:
        DivergenceError, ResourceError: all of them failed; the same command tries them again.
    """
    heat = report.rounds[number - 1]
    failure: AutosegError | None = None
    for place, name in enumerate(heat.entrants, start=1):
        if name in {item.arch for item in heat.trainings}:
            continue
        if stop():
            raise StoppedError(f"{name} is the next in round {number}")
        _LOG.info("race: round %d, %s (%d of %d)", number, name, place, len(heat.entrants))
        try:
            training = _train(opened, name, number, heat.seconds)
        except (DivergenceError, ResourceError) as error:
            failure = error
            _LOG.warning("%s is out: %s", name, error.message)
            training = replace(_entry(opened, name)[1], failure=f"round {number}: {error.message}")
        heat = replace(heat, trainings=(*heat.trainings, training))
        if failure is not None and all(item.failure for item in heat.trainings) and place == len(heat.entrants):
            # What fails everyone is no fault of theirs (a full disk, a bad image), so none of it is kept.
            _keep(opened, _with_round(report, number, replace(heat, trainings=())))
            lines = [f"{item.arch}: {item.failure}" for item in heat.trainings]
            raise type(failure)(
                f"no architecture finished round {number}:\n{joined(lines)}",
                hint="the same command tries them again; autoseg_train --arch trains one with settings of its own",
            )
        report = _with_round(report, number, heat)
        _keep(opened, report)
        if number > 1 and not training.failure:
            earlier = opened.folder.model(number - 1, training.configuration, name)
            shutil.rmtree(earlier.root, ignore_errors=True)
    return report


def _with_round(report: RaceReport, number: int, heat: RaceRound) -> RaceReport:
    return replace(report, rounds=(*report.rounds[: number - 1], heat, *report.rounds[number:]))


def _train(opened: _Race, name: str, number: int, seconds: float) -> RaceTraining:
    """Train and validate one candidate; what an earlier run left of it is gone on with."""
    configuration, entry = _entry(opened, name)
    folds = opened.settings.fold
    model = opened.folder.model(number, configuration.name, name)
    settings = _train_settings(opened, name, seconds=seconds * len(folds))
    train(settings, model=model, stop_file=opened.folder.stop_file, as_planned=True)
    runs = [records.load(FoldRun, model.fold(fold).run) for fold in folds]
    return replace(
        entry,
        steps=sum(run.steps for run in runs),
        seconds=sum(run.seconds for run in runs),
        dice=_scores(model, folds),
    )


def _entry(opened: _Race, name: str) -> tuple[Configuration, RaceTraining]:
    plan = plan_for(opened.prepared, name, device=opened.settings.device)
    configuration = plan.configuration(opened.settings.configuration or plan.default_configuration)
    entry = RaceTraining(arch=name, configuration=configuration.name, parameters=configuration.cost.parameters)
    return configuration, entry


def _train_settings(opened: _Race, name: str, *, seconds: float) -> TrainSettings:
    settings, path = opened.settings, opened.prepared.splits
    return TrainSettings(
        workdir=settings.workdir,
        quiet=settings.quiet,
        debug=settings.debug,
        dataset=(opened.dataset,),
        configuration=settings.configuration,
        arch=name,
        fold=settings.fold,
        # Another number of folds would replace the splits that models of this dataset were trained with.
        folds=len(records.load(Splits, path).folds) if path.exists() else TrainSettings().folds,
        time_budget=seconds,
        seed=settings.seed,
        device=settings.device,
        workers=settings.workers,
    )


def _scores(model: ModelFolder, folds: Sequence[str]) -> dict[str, float]:
    """Dice by case. Where neither segmentation has any label the two agree, so that all are scored on all cases."""

    def score(case: CaseScores) -> float:
        dice = case_dice(case)
        return 1.0 if math.isnan(dice) else dice

    reports = [records.load(EvaluationReport, model.fold(fold).summary) for fold in folds]
    return {case.id: score(case) for report in reports for case in report.cases}


def _keep(opened: _Race, report: RaceReport) -> None:
    records.save(opened.folder.report, report)


def _show(opened: _Race, report: RaceReport) -> None:
    winner = report.ranking[0]
    out = [f"{name}: {reason}" for name, reason in report.failures.items()]
    _LOG.info(
        "\nrace on %d cases of %s\n%s\n%s%s\n\nscores: %s and %s\nmodel of %s: %s",
        winner.cases,
        report.dataset,
        ranking_table(report.ranking),
        f"out:\n{joined(out)}\n" if out else "",
        report.verdict,
        opened.folder.report,
        opened.folder.table.name,
        winner.arch,
        opened.folder.root / winner.model,
    )


def _adopt(opened: _Race, report: RaceReport) -> str:
    """Make the winner's plan that of the dataset; returns its hash."""
    winner, *others = report.ranking
    rivals = ", ".join(place.arch for place in others) or "nobody else"
    why = f"{winner.arch}: won a race on {winner.cases} cases with Dice {winner.dice.mean:.3f}, against {rivals}"
    plan: Plan = adopt(opened.prepared, winner.arch, device=opened.settings.device, why=why)
    flags = f" -c {winner.configuration}" if winner.configuration != plan.default_configuration else ""
    _LOG.info(
        "plan: %s\n%s is the architecture of the plan now; autoseg_train -d %s%s trains it in full",
        opened.prepared.plan,
        winner.arch,
        opened.dataset,
        flags,
    )
    return plan_identity(plan)
