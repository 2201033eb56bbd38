"""``report.html``: everything about a trained model on one page that needs nothing else."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg import records
from autoseg.errors import DatasetError
from autoseg.evaluation.metrics import case_dice, summarize
from autoseg.io.images import read_channels, read_label
from autoseg.log import duration
from autoseg.report import html
from autoseg.report.facts import dataset_section, plan_section, run_section
from autoseg.report.overlay import overlay_png
from autoseg.report.progress import progress_png
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.fingerprint import Fingerprint
from autoseg.schema.folders import FoldFolder, ModelFolder
from autoseg.schema.plan import Plan
from autoseg.schema.report import CaseScores, EvaluationReport, FoldRun, RunReport

_SHOWN_CASES = 1000


@dataclass(frozen=True, kw_only=True)
class _Fold:
    """What there is of one fold so far."""

    name: str
    folder: FoldFolder
    history: tuple[dict[str, Any], ...]
    run: FoldRun | None
    scores: EvaluationReport | None


@dataclass(frozen=True, kw_only=True)
class _Model:
    folder: ModelFolder
    spec: DatasetSpec
    plan: Plan
    run: RunReport
    fingerprint: Fingerprint | None
    folds: tuple[_Fold, ...]
    scores: EvaluationReport | None

    @property
    def configuration(self) -> str:
        return str(self.run.settings.get("configuration", self.plan.default_configuration))


def write_report(model: ModelFolder) -> Path:
    """Write ``report.html`` into a model folder, atomically, from what the folder holds so far.

    Folds that are not trained or not validated yet are left out, and so are pictures of cases whose files are gone.

    Returns:
        The path of the page.

    Raises:
        RecordError: ``dataset.json``, ``plan.json`` or ``run.json`` is missing or unreadable.
    """
    found = _read(model)
    title = f"{found.spec.name}: {found.configuration}"
    body = [*_head(found), *_score_section(found), *_case_section(found), *_curve_section(found)]
    body += dataset_section(found.spec, found.fingerprint)
    body += plan_section(found.plan, found.configuration)
    body += run_section(found.run)
    records.write_text(model.report, html.page(title, body))
    return model.report


def _read(model: ModelFolder) -> _Model:
    spec = records.load(DatasetSpec, model.dataset)
    names = [path.name.removeprefix("fold_") for path in model.root.glob("fold_*") if path.is_dir()]
    # By number, so that fold 10 comes after fold 9; "all" is the last.
    names.sort(key=lambda name: (int(name) if name.isdigit() else math.inf, name))
    folds = tuple(_read_fold(name, model.fold(name)) for name in names)
    reports = [fold.scores for fold in folds if fold.scores is not None]
    scores = None
    if reports:
        # Cross-validation: every case counts once, whatever the sizes of the folds.
        scores = summarize(
            [case for report in reports for case in report.cases],
            spec.labels,
            tolerance_mm=reports[0].surface_tolerance_mm,
            missing=[name for report in reports for name in report.missing],
            faults=[fault for report in reports for fault in report.faults],
        )
    return _Model(
        folder=model,
        spec=spec,
        plan=records.load(Plan, model.plan),
        run=records.load(RunReport, model.run),
        fingerprint=records.load(Fingerprint, model.fingerprint) if model.fingerprint.exists() else None,
        folds=folds,
        scores=scores,
    )


def _read_fold(name: str, folder: FoldFolder) -> _Fold:
    return _Fold(
        name=name,
        folder=folder,
        history=tuple(records.read_lines(folder.log)),
        run=records.load(FoldRun, folder.run) if folder.run.exists() else None,
        scores=records.load(EvaluationReport, folder.summary) if folder.summary.exists() else None,
    )


def _head(model: _Model) -> list[str]:
    architecture = model.plan.configuration(model.configuration).architecture.name
    figures = []
    if model.scores is not None:
        figures.append((_number(model.scores.foreground_dice), "mean foreground Dice"))
        figures.append((str(len(model.scores.cases)), "cases validated"))
    figures.append((str(len(model.folder.finished_folds())), "folds trained"))
    seconds = sum(fold.run.seconds for fold in model.folds if fold.run is not None)
    if seconds:
        figures.append((duration(seconds), "training time"))
    return [
        html.heading(model.spec.name, level=1),
        html.paragraph(f"{model.configuration}, {architecture}, {', '.join(model.spec.channels)}", soft=True),
        html.key_figures(figures),
    ]


def _score_section(model: _Model) -> list[str]:
    scores = model.scores
    if scores is None:
        return [html.heading("Scores"), html.paragraph("No fold has been validated yet.")]
    header = ["label", "Dice", "IoU", "precision", "recall", "HD95 mm", "ASSD mm"]
    header += [f"surface Dice {scores.surface_tolerance_mm:g} mm", "lesion F1"]
    rows = [
        [
            mean.label,
            *map(_number, (mean.dice, mean.iou, mean.precision, mean.recall)),
            *(_number(value, digits=2) for value in (mean.hd95, mean.assd)),
            *map(_number, (mean.surface_dice, mean.lesion_f1)),
        ]
        for mean in scores.mean
    ]
    parts = [html.heading("Scores"), html.number_table(header, rows)]
    parts.append(
        html.paragraph(
            "Each case was segmented by the fold that did not train on it, and scored at its original geometry. "
            "Figures are means over cases; a label that is absent from both segmentations does not count, one that is "
            "absent from one of them scores 0 and has no distance.",
            soft=True,
        )
    )
    parts += _empty_table(scores)
    strips = [
        (
            name,
            [row.dice for case in scores.cases for row in case.classes if row.label == name and row.dice == row.dice],
        )
        for name in model.spec.labels.names
    ]
    parts += [html.heading("Dice of every case", level=3), html.strips(strips)]
    parts.append(html.paragraph("A tick per case; the long tick is the median.", soft=True))
    parts += _fold_table(model)
    for title, lines in (("Not scored", scores.faults), ("Without a prediction", scores.missing)):
        if lines:
            parts += [html.heading(title, level=3), html.bullets(lines)]
    return parts


def _dice_values(scores: EvaluationReport, label: str) -> list[float]:
    rows = [row for case in scores.cases for row in case.classes if row.label == label]
    return [row.dice for row in rows if not math.isnan(row.dice)]


def _empty_table(scores: EvaluationReport) -> list[str]:
    rows = [
        [mean.label, mean.cases, mean.empty_reference, mean.empty_prediction, mean.empty_both]
        for mean in scores.mean
        if mean.empty_reference + mean.empty_prediction + mean.empty_both
    ]
    if not rows:
        return []
    header = ["label", "cases", "only predicted", "only in the reference", "in neither"]
    return [html.heading("Absent labels", level=3), html.number_table(header, rows)]


def _fold_table(model: _Model) -> list[str]:
    rows = []
    for fold in model.folds:
        epochs = str(fold.run.epochs) if fold.run else str(len(fold.history))
        time = duration(fold.run.seconds) if fold.run else "-"
        dice = [mean.dice for mean in fold.scores.mean] if fold.scores else [math.nan] * len(model.spec.labels.names)
        overall = fold.scores.foreground_dice if fold.scores else math.nan
        rows.append([f"fold {fold.name}", epochs, time, _number(overall), *map(_number, dice)])
    header = ["", "epochs", "time", "Dice", *model.spec.labels.names]
    return [html.heading("Folds", level=3), html.number_table(header, rows)]


def _case_section(model: _Model) -> list[str]:
    if model.scores is None:
        return []
    ranked = sorted(
        (case for case in model.scores.cases if not math.isnan(case_dice(case))),
        key=lambda case: (case_dice(case), case.id),
    )
    if not ranked:
        return []
    chosen = {"best": ranked[-1], "median": ranked[len(ranked) // 2], "worst": ranked[0]}
    # With one or two cases, the same case would be shown twice.
    shown = {case.id: (word, case) for word, case in reversed(chosen.items())}
    figures = [_overlay(model, word, case) for word, case in reversed(shown.values())]
    rows = [[case.id, _number(case_dice(case)), *(_number(row.dice) for row in case.classes)] for case in ranked]
    listing = html.number_table(["case", "Dice", *model.spec.labels.names], rows[:_SHOWN_CASES])
    summary = "All cases" if len(rows) <= _SHOWN_CASES else f"The first {_SHOWN_CASES} of {len(rows)} cases"
    return [html.heading("Cases"), html.gallery(figures), html.folded(f"{summary}, lowest Dice first", listing)]


def _overlay(model: _Model, word: str, case: CaseScores) -> str:
    title = f"{word}: {case.id}, Dice {_number(case_dice(case))}"
    try:
        png = _overlay_bytes(model, case)
    except DatasetError as error:
        return html.paragraph(f"{title}. No picture: {error.message}", soft=True)
    return html.picture(png, text=f"Outlines of reference and prediction, {title}", caption=title)


def _overlay_bytes(model: _Model, case: CaseScores) -> bytes:
    files = next((files for files in model.spec.cases if files.id == case.id), None)
    if files is None:
        raise DatasetError(f"{model.folder.dataset} does not list this case")
    image = read_channels(files.images)
    reference = read_label(_existing(case.reference, files.label or ""))
    # A model folder may have been moved since its predictions were scored.
    name = Path(case.prediction).name
    prediction = read_label(_existing(case.prediction, *(str(fold.folder.validation / name) for fold in model.folds)))
    if not image.shape == reference.shape == prediction.shape:
        raise DatasetError("its files have changed since they were scored")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "overlay.png"
        overlay_png(
            path,
            image.data,
            reference.data[0],
            prediction.data[0],
            labels=model.spec.labels,
            spacing=reference.geometry.spacing,
        )
        return path.read_bytes()


def _existing(*paths: str) -> str:
    """The first path that exists, else the first one, whose reader will say that it is missing."""
    return next((path for path in paths if path and Path(path).is_file()), paths[0])


def _curve_section(model: _Model) -> list[str]:
    parts: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for fold in model.folds:
            if not fold.history:
                continue
            path = Path(folder) / f"{fold.name}.png"
            progress_png(path, fold.history)
            curves = html.picture(path.read_bytes(), text=f"Training curves of fold {fold.name}")
            parts.append(html.folded(f"fold {fold.name}", curves, start_open=not parts))
    return [html.heading("Training"), *parts] if parts else []


def _number(value: float, *, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
