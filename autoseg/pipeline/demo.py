"""``autoseg_demo``: a generated dataset through every stage, with the commands that a person would type."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from autoseg import records
from autoseg.errors import SettingError
from autoseg.io.discover import read_dataset, resolve_workspace
from autoseg.io.images import read_image, read_label
from autoseg.log import duration, get_logger, table
from autoseg.pipeline import phantom
from autoseg.report.overlay import overlay_png
from autoseg.schema.folders import Workspace
from autoseg.schema.report import ClassScores, EvaluationReport
from autoseg.schema.settings import DemoSettings

_LOG = get_logger(__name__)

# Every one of the five folds needs a case of its own.
_FEWEST_CASES = 5

# What the settings promise with their defaults, also on a slow machine.
EXPECTED_DICE = 0.85


def demo(settings: DemoSettings, *, run: Callable[[Sequence[str]], None]) -> float | None:
    """Generate the dataset, train on it, segment its held-out cases; the mean Dice of these, None without training.

    Args:
        run: does what ``autoseg`` does with these words. It is handed in because commands lie above pipelines.

    Raises:
        SettingError: too few cases.
        AutosegError: what the commands raise.
    """
    if settings.cases < _FEWEST_CASES or settings.test_cases < 1:
        raise SettingError(
            f"{settings.cases} training and {settings.test_cases} held-out cases are too few",
            hint=f"give at least --cases {_FEWEST_CASES} --test-cases 1",
        )
    started = time.monotonic()
    workspace = resolve_workspace(settings.workdir)
    raw, out = workspace.raw / phantom.NAME, predictions(workspace)
    phantom.write_dataset(raw, cases=settings.cases, test_cases=settings.test_cases, seed=settings.seed)
    _LOG.info("%d training and %d held-out cases are in %s", settings.cases, settings.test_cases, raw)
    if settings.data_only:
        return None

    common = ["--workdir", settings.workdir] if settings.workdir else []
    common += [flag for flag, wanted in (("--quiet", settings.quiet), ("--debug", settings.debug)) if wanted]
    for words in (
        ["plan_and_preprocess", "-d", phantom.NAME],
        ["train", "-d", phantom.NAME, "--time-budget", f"{settings.time_budget:g}s"],
        ["predict", "-d", phantom.NAME, "-i", _shown(raw / "imagesTs"), "-o", _shown(out)],
        ["evaluate", "-r", _shown(raw / "labelsTs"), "-p", _shown(out)],
    ):
        typed = [*words, *common]
        _LOG.info("\n$ autoseg_%s", shlex.join(typed))
        run(typed)
    return _sum_up(workspace, seconds=time.monotonic() - started)


def predictions(workspace: Workspace) -> Path:
    """Where the demo puts its segmentations of held-out cases."""
    return workspace.root / "predictions" / phantom.NAME


def _sum_up(workspace: Workspace, *, seconds: float) -> float:
    out = predictions(workspace)
    report = records.load(EvaluationReport, out / "summary.json")
    picture = _draw(workspace, report)
    rows = [
        [case.id, *(f"{scores.dice:.3f}" for scores in case.classes), f"{_mean_dice(case.classes):.3f}"]
        for case in report.cases
    ]
    rows.append(["mean", *(f"{mean.dice:.3f}" for mean in report.mean), f"{report.foreground_dice:.3f}"])
    scores = table(rows, header=["held-out case", *(mean.label for mean in report.mean), "Dice"])
    pages = sorted((workspace.results / phantom.NAME).glob("*/report.html"))
    places = [
        ["segmentations", _shown(out)],
        ["scores", _shown(out / "summary.json")],
        ["a picture", _shown(picture)],
        *(["training", _shown(page)] for page in pages),
    ]
    _LOG.info("\n%s\n\n%s\n\nThe demo took %s.", scores, table(places, header=["what", "where"]), duration(seconds))
    if report.foreground_dice < EXPECTED_DICE:
        _LOG.warning("the mean Dice is below %.2f: on a slow machine give more --time-budget", EXPECTED_DICE)
    return report.foreground_dice


def _draw(workspace: Workspace, report: EvaluationReport) -> Path:
    """A picture of the case in the middle of the ranking, neither the best nor the worst."""
    ranked = sorted(report.cases, key=lambda case: _mean_dice(case.classes))
    case = ranked[len(ranked) // 2]
    raw = workspace.raw / phantom.NAME
    image = read_image(raw / "imagesTs" / f"{case.id}_0000.nii.gz")
    path = predictions(workspace) / "picture.png"
    overlay_png(
        path,
        image.data,
        read_label(Path(case.reference)).data[0],
        read_label(Path(case.prediction)).data[0],
        labels=read_dataset(raw).labels,
        spacing=image.geometry.spacing,
        title=f"{case.id}: Dice {_mean_dice(case.classes):.2f} (solid: reference, dashed: autoseg)",
    )
    return path


def _mean_dice(classes: Sequence[ClassScores]) -> float:
    values = [value for scores in classes if math.isfinite(value := scores.dice)]
    return sum(values) / len(values) if values else math.nan


def _shown(path: Path) -> str:
    """As a person would type it: relative to where they are, if it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
