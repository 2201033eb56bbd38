"""What is told about a model that is given away: its card, without paths and names of cases."""

from __future__ import annotations

import math
import shlex
from pathlib import PurePath
from statistics import median
from typing import Any

from autoseg import records
from autoseg.evaluation.metrics import summarize
from autoseg.log import duration
from autoseg.pipeline.weights import configuration_of
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.fingerprint import Fingerprint, Spacing
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Plan
from autoseg.schema.report import EvaluationReport, FoldRun, RunReport
from autoseg.schema.sharing import Card, FoldFacts, LabelScores, StageFacts

# Of the settings, those that say how the weights came about.
_TRAINING = ("epochs", "iterations", "time_budget", "batch_size", "seed", "mirror_axes", "recipe")


def make_card(
    model: ModelFolder, folds: tuple[str, ...], before: ModelFolder | None, *, licence: str, intended_use: str
) -> Card:
    """The card of some folds of a trained model, and of all folds of the one ``before`` it in a cascade.

    Raises:
        RecordError: the folder's records cannot be read.
    """
    plan, run = records.load(Plan, model.plan), records.load(RunReport, model.run)
    spec = records.load(DatasetSpec, model.dataset)
    configuration = plan.configuration(configuration_of(model))
    measured = records.load(Fingerprint, model.fingerprint) if model.fingerprint.exists() else None
    low, middle, high = _spacings(measured)
    reports = [records.load(EvaluationReport, path) for path in _summaries(model, folds)]
    return Card(
        dataset=plan.dataset,
        cases=len(measured.cases) if measured is not None else len(spec.cases),
        channels=plan.channels,
        labels=_output_integers(plan),
        smallest_spacing=low,
        median_spacing=middle,
        largest_spacing=high,
        configuration=configuration.name,
        architecture=configuration.architecture.label,
        parameters=configuration.cost.parameters,
        working_spacing=configuration.spacing,
        patch_size=configuration.patch_size,
        folds=tuple(_fold_facts(model, name) for name in folds),
        surface_tolerance_mm=reports[0].surface_tolerance_mm if reports else math.nan,
        scores=_scores(reports, plan),
        training=_training(run),
        versions=run.versions,
        licence=licence,
        intended_use=intended_use,
        first_stage=None if before is None else _stage_facts(before),
    )


def without_paths(value: Any) -> Any:
    """The same plain value with every path cut down to its last name: folders say who somebody is."""
    if isinstance(value, str):
        return PurePath(value.replace("\\", "/")).name if "/" in value or "\\" in value else value
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return value


def public_run(run: RunReport, **places: str) -> RunReport:
    """How the model came to be, without paths but those of ``places``, by setting."""
    try:
        words = shlex.split(run.command)
    except ValueError:
        words = run.command.split()
    return RunReport(
        command=shlex.join(_word(word) for word in words),
        settings={name: without_paths(value) for name, value in run.settings.items() if name != "workdir"} | places,
        versions=run.versions,
        machine=run.machine,
    )


def _word(word: str) -> str:
    flag, mark, value = word.partition("=")
    return f"{flag}={without_paths(value)}" if mark and flag.startswith("-") else str(without_paths(word))


def _training(run: RunReport) -> dict[str, Any]:
    # A time budget decides how many epochs there are, whatever the setting says.
    unused = {"epochs"} if run.settings.get("time_budget") is not None else set()
    return {name: run.settings[name] for name in _TRAINING if run.settings.get(name) is not None and name not in unused}


def _summaries(model: ModelFolder, folds: tuple[str, ...]) -> list[Any]:
    return [model.fold(name).summary for name in folds if model.fold(name).summary.exists()]


def _spacings(measured: Fingerprint | None) -> tuple[Spacing, Spacing, Spacing]:
    if measured is None or not measured.cases:
        return (), (), ()
    columns = list(zip(*(case.spacing for case in measured.cases), strict=True))
    low, middle, high = (tuple(figure(column) for column in columns) for figure in (min, median, max))
    return low, middle, high


def _output_integers(plan: Plan) -> dict[str, tuple[int, ...]]:
    if plan.labels.has_regions:
        order = plan.labels.regions_class_order or ()
        return {label.name: (value,) for label, value in zip(plan.labels.foreground, order, strict=True)}
    return {label.name: label.values for label in plan.labels.foreground}


def _fold_facts(model: ModelFolder, name: str) -> FoldFacts:
    folder = model.fold(name)
    run = records.load(FoldRun, folder.run) if folder.run.exists() else None
    dice = records.load(EvaluationReport, folder.summary).foreground_dice if folder.summary.exists() else math.nan
    return FoldFacts(
        fold=name,
        epochs=run.epochs if run else 0,
        steps=run.steps if run else 0,
        seconds=run.seconds if run else 0.0,
        dice=dice,
    )


def _stage_facts(model: ModelFolder) -> StageFacts:
    configuration = records.load(Plan, model.plan).configuration(configuration_of(model))
    return StageFacts(
        configuration=configuration.name,
        architecture=configuration.architecture.label,
        parameters=configuration.cost.parameters,
        working_spacing=configuration.spacing,
        patch_size=configuration.patch_size,
        folds=tuple(_fold_facts(model, name) for name in model.finished_folds()),
    )


def _scores(reports: list[EvaluationReport], plan: Plan) -> tuple[LabelScores, ...]:
    cases = [case for report in reports for case in report.cases]
    if not cases:
        return ()
    whole = summarize(cases, plan.labels, tolerance_mm=reports[0].surface_tolerance_mm)
    return tuple(
        LabelScores(label=row.label, cases=row.cases, dice=row.dice, surface_dice=row.surface_dice, hd95=row.hd95)
        for row in whole.mean
    )


def card_text(card: Card) -> str:
    """The card as Markdown."""
    lines = [
        f"# {card.dataset}: {card.architecture}, {card.configuration}",
        "",
        f"Licence: {card.licence}",
        "",
        "## Intended use",
        "",
        card.intended_use,
        "",
        "## What it was trained on",
        "",
        f"- cases: {card.cases}",
        f"- channels, in this order: {', '.join(card.channels)}",
        *_spacing_lines(card),
        "",
        "| label | integer in the output |",
        "|---|---|",
        *(f"| {name} | {', '.join(map(str, values))} |" for name, values in card.labels.items()),
        "",
        "## How it was trained",
        "",
        *_network_lines(card),
        *_first_stage_lines(card),
        *(f"- {name.replace('_', ' ')}: {_shown(value)}" for name, value in card.training.items()),
        f"- versions: {', '.join(f'{name} {text}' for name, text in card.versions.items())}",
        "",
        *_fold_lines(card.folds),
        "",
        *_score_lines(card),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _network_lines(stage: Card | StageFacts) -> list[str]:
    return [
        f"- network: {stage.architecture}, {stage.parameters / 1e6:.1f} million parameters",
        f"- works at {_times(stage.working_spacing, ' mm')} with patches of {_times(stage.patch_size)}",
    ]


def _fold_lines(folds: tuple[FoldFacts, ...]) -> list[str]:
    rows = (
        f"| {fold.fold} | {fold.epochs} | {fold.steps} | {duration(fold.seconds)} | {_number(fold.dice)} |"
        for fold in folds
    )
    return ["| fold | epochs | steps | time | Dice of held-out cases |", "|---|---|---|---|---|", *rows]


def _first_stage_lines(card: Card) -> list[str]:
    stage = card.first_stage
    if stage is None:
        return []
    inner = [line.removeprefix("- ") for line in _network_lines(stage)]
    scores = ", ".join(f"{fold.fold}: {_number(fold.dice)}" for fold in stage.folds)
    return [
        f"- refines the segmentations of {stage.configuration}, which comes with it: {', '.join(inner)}; Dice of "
        f"held-out cases by fold: {scores}"
    ]


def _spacing_lines(card: Card) -> list[str]:
    if not card.median_spacing:
        return []
    ranges = (card.smallest_spacing, card.median_spacing, card.largest_spacing)
    shown = ", ".join(
        f"{word} {_times(spacing)}" for word, spacing in zip(("smallest", "median", "largest"), ranges, strict=True)
    )
    return [f"- spacing in mm (z x y x x): {shown}"]


def _score_lines(card: Card) -> list[str]:
    if not card.scores:
        return ["It was not validated on held-out cases."]
    head = f"| label | cases | Dice | surface Dice at {card.surface_tolerance_mm:g} mm | HD95 in mm |"
    rows = [
        f"| {row.label} | {row.cases} | {_number(row.dice)} | {_number(row.surface_dice)} | {_number(row.hd95, 2)} |"
        for row in card.scores
    ]
    return ["## Scores of cross-validation", "", head, "|---|---|---|---|---|", *rows]


def _times(values: tuple[float, ...], unit: str = "") -> str:
    return " x ".join(f"{value:g}" if value == int(value) else f"{value:.3g}" for value in values) + unit


def _number(value: float, digits: int = 4) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)
