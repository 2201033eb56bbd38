"""What as much time once more would give, in one line at the end of a training that was fitted to a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from autoseg import records
from autoseg.log import duration
from autoseg.planning.forecast import Forecast, forecast
from autoseg.schema.folders import FoldFolder
from autoseg.schema.report import EvaluationReport, FoldRun

# Seconds since training began, and mean Dice of the patches that an epoch was validated with.
Curve = Sequence[tuple[float, float]]


def curve(log: Path) -> Curve:
    """The validation curve of a fold; epochs without scores are left out."""
    lines = records.read_lines(log)
    return [(line["elapsed"], line["mean_dice"]) for line in lines if line["mean_dice"] is not None]


def curve_of_dataset(log: Path, dataset: str) -> Curve:
    """One dataset's part of the curve of a joint training, whose labels are called ``DATASET LABEL``."""
    found = []
    for line in records.read_lines(log):
        scores = [value for name, value in line["dice"].items() if name.startswith(f"{dataset} ") and value is not None]
        if scores:
            found.append((line["elapsed"], mean(scores)))
    return found


def outlook(folds: Sequence[tuple[FoldFolder, Curve]]) -> str | None:
    """The line for folds that one time budget trained; None where they were not all validated since.

    A model that went on is judged by the curve since then.
    """
    if not folds or not all(folder.summary.exists() for folder, _ in folds):
        return None
    runs = [records.load(FoldRun, folder.run) for folder, _ in folds]
    if any(run.status != "validated" for run in runs):
        return None
    last = sum(run.seconds - run.before for run in runs)
    if any(run.before for run in runs):
        begin = f"as much time once more ({duration(last)} of training): "
    else:
        begin = f"twice the time ({duration(2 * last)} of training): "
    found = [_of_fold(folder, points, run.before) for (folder, points), run in zip(folds, runs, strict=True)]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return begin + "the validation curve does not tell what it would add"
    low, gain, high = (mean(getattr(one, name) for one in known) for name in ("low", "gain", "high"))
    return begin + (
        f"about {gain:+.3f} Dice, between {low:+.3f} and {high:+.3f}; the same command goes on with this model"
    )


def _of_fold(folder: FoldFolder, points: Curve, before: float) -> Forecast | None:
    since = [(elapsed - before, dice) for elapsed, dice in points if elapsed > before]
    return forecast(since, records.load(EvaluationReport, folder.summary).foreground_dice)
