"""What twice the time would have given, in one line at the end of a training that was fitted to a time."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from autoseg import records
from autoseg.log import duration
from autoseg.planning.forecast import Forecast, forecast
from autoseg.schema.folders import FoldFolder
from autoseg.schema.report import EvaluationReport, FoldRun


def outlook(folds: Sequence[FoldFolder]) -> str | None:
    """The line for folds that one time budget trained; None where they were not all validated since.

    A model that went on is judged by the curve since then.
    """
    if not folds or not all(folder.summary.exists() and folder.log.exists() for folder in folds):
        return None
    runs = [records.load(FoldRun, folder.run) for folder in folds]
    if any(run.status != "validated" for run in runs):
        return None
    begin = f"twice the time ({duration(2 * sum(run.seconds for run in runs))} of training): "
    found = [_of_fold(folder, run.before) for folder, run in zip(folds, runs, strict=True)]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return begin + "the validation curve does not tell what it would add"
    low, gain, high = (mean(getattr(one, name) for one in known) for name in ("low", "gain", "high"))
    return begin + (
        f"about {gain:+.3f} Dice, between {low:+.3f} and {high:+.3f}; the same command goes on with this model"
    )


def _of_fold(folder: FoldFolder, before: float) -> Forecast | None:
    curve = [
        (line["elapsed"] - before, line["mean_dice"])
        for line in records.read_lines(folder.log)
        if line["elapsed"] > before and line["mean_dice"] is not None
    ]
    return forecast(curve, records.load(EvaluationReport, folder.summary).foreground_dice)
