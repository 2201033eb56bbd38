"""A time budget covers every fold with its validation, and what earlier runs spent counts."""

from __future__ import annotations

import pytest

from autoseg.pipeline.budget import open_budget
from autoseg.schema.report import FoldRun

FOLDS = ("0", "1", "2")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(fold: str, status: str, *, seconds: float, validation: float = 0.0, budget: float | None = 600.0) -> FoldRun:
    return FoldRun(
        fold=fold,
        status=status,
        signature="",
        target_epochs=None,
        target_seconds=seconds,
        budget=budget,
        epochs=1,
        steps=1,
        seconds=seconds,
        validation_seconds=validation,
    )


def test_folds_share_evenly_and_end_with_their_validation() -> None:
    clock = Clock()
    budget = open_budget(600.0, FOLDS, {}, started=clock(), clock=clock)
    first = budget.training_seconds("0", FOLDS, trained=0.0, validation=20.0)
    assert first == pytest.approx(180.0)
    clock.now += 200.0
    assert budget.training_seconds("1", FOLDS, trained=0.0, validation=20.0) == pytest.approx(180.0)
    clock.now += 250.0  # a slow fold takes from those that follow
    assert budget.training_seconds("2", FOLDS, trained=0.0, validation=20.0) == pytest.approx(130.0)


def test_a_resumed_run_counts_what_was_spent() -> None:
    clock = Clock()
    known = {"0": run("0", "validated", seconds=180.0, validation=20.0), "1": run("1", "training", seconds=90.0)}
    budget = open_budget(600.0, FOLDS, known, started=clock(), clock=clock)
    assert budget.finished == {"0"}
    second = budget.training_seconds("1", FOLDS, trained=90.0, validation=20.0)
    assert second == pytest.approx(90.0 + (600.0 - 290.0) / 2 - 20.0)


def test_a_larger_budget_goes_on_with_finished_folds() -> None:
    clock = Clock()
    known = {"0": run("0", "validated", seconds=580.0, validation=20.0)}
    budget = open_budget(1200.0, ("0",), known, started=clock(), clock=clock)
    assert budget.finished == frozenset()
    assert budget.training_seconds("0", ("0",), trained=580.0, validation=20.0) == pytest.approx(1160.0)
