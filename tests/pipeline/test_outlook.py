"""What a finished training says about more time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from autoseg import records
from autoseg.pipeline.outlook import Curve, curve, curve_of_dataset, outlook
from autoseg.planning.forecast import forecast
from autoseg.schema.folders import FoldFolder
from autoseg.schema.report import EvaluationReport, FoldRun

RISING = [(float(second), 0.4 + 0.01 * second) for second in range(1, 41)]
FLAT = [(float(second), 0.8) for second in range(1, 41)]


def fold(
    root: Path, points: list[tuple[float, float | None]], dice: float, *, before: float = 0.0
) -> tuple[FoldFolder, Curve]:
    folder = FoldFolder(root)
    root.mkdir()
    run = FoldRun(
        fold=root.name,
        status="validated",
        signature="",
        target_epochs=None,
        target_seconds=40.0,
        budget=50.0,
        epochs=40,
        steps=40,
        seconds=points[-1][0],
        before=before,
    )
    records.save(folder.run, run)
    folder.log.write_text("".join(json.dumps({"elapsed": at, "mean_dice": value}) + "\n" for at, value in points))
    folder.summary.parent.mkdir(parents=True, exist_ok=True)
    records.save(
        folder.summary, EvaluationReport(foreground_dice=dice, surface_tolerance_mm=2.0, mean=(), cases=(), faults=())
    )
    return folder, curve(folder.log)


def test_one_fold_says_what_its_curve_says(tmp_path: Path) -> None:
    says = forecast(RISING, 0.7)
    assert says is not None
    line = outlook([fold(tmp_path / "0", [*RISING], 0.7)])
    assert line is not None
    assert f"about {says.gain:+.3f} Dice, between {says.low:+.3f} and {says.high:+.3f}" in line
    assert "twice the time (1 min 20 s of training)" in line


def test_folds_are_averaged(tmp_path: Path) -> None:
    rising, flat = forecast(RISING, 0.7), forecast(FLAT, 0.8)
    assert rising is not None and flat is not None
    line = outlook([fold(tmp_path / "0", [*RISING], 0.7), fold(tmp_path / "1", [*FLAT], 0.8)])
    assert line is not None and f"about {(rising.gain + flat.gain) / 2:+.3f} Dice" in line


def test_a_model_that_went_on_is_judged_by_what_came_since(tmp_path: Path) -> None:
    points = [*RISING, *((second + 40.0, value) for second, value in FLAT)]
    line = outlook([fold(tmp_path / "0", [*points], 0.8, before=40.0)])
    assert line is not None and "about +0.000 Dice" in line
    assert "as much time once more (40 s of training)" in line


def test_epochs_without_scores_are_left_out(tmp_path: Path) -> None:
    says = forecast(RISING, 0.7)
    line = outlook([fold(tmp_path / "0", [(0.5, None), *RISING], 0.7)])
    assert says is not None and line is not None and f"about {says.gain:+.3f} Dice" in line


def test_where_the_curve_does_not_tell_it_says_so(tmp_path: Path) -> None:
    line = outlook([fold(tmp_path / "0", [*RISING], 0.7), fold(tmp_path / "1", [*RISING], 0.1)])
    assert line is not None and "does not tell" in line


def test_without_a_validation_of_every_fold_nothing_is_said(tmp_path: Path) -> None:
    done, unvalidated = fold(tmp_path / "0", [*RISING], 0.7), fold(tmp_path / "1", [*RISING], 0.7)
    unvalidated[0].summary.unlink()
    assert outlook([done, unvalidated]) is None
    # Weights of a later training, scores of an earlier one.
    later = fold(tmp_path / "2", [*RISING], 0.7)
    records.save(later[0].run, replace(records.load(FoldRun, later[0].run), status="trained"))
    assert outlook([done, later]) is None
    assert outlook([]) is None


def test_a_joint_training_is_judged_by_each_dataset_for_itself(tmp_path: Path) -> None:
    lines = [
        {"elapsed": second, "mean_dice": 0.5, "dice": {"A ball": None, "A box": rising, "AB ball": flat}}
        for (second, rising), (_, flat) in zip(RISING, FLAT, strict=True)
    ]
    lines.insert(0, {"elapsed": 0.5, "mean_dice": 0.5, "dice": {"A box": None, "AB ball": 0.8}})
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert curve_of_dataset(log, "A") == RISING
    assert curve_of_dataset(log, "AB") == [(0.5, 0.8), *FLAT]
