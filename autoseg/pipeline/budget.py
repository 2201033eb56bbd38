"""How the time of one command is shared by its folds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from autoseg.schema.report import FoldRun


@dataclass(frozen=True, kw_only=True)
class TimeBudget:
    """``total`` seconds for all folds with their validations; ``spent_before`` of them in earlier runs.

    ``finished`` are folds that earlier runs of the same budget completed.
    """

    total: float
    spent_before: float
    started: float
    finished: frozenset[str]
    clock: Callable[[], float] = time.monotonic

    def training_seconds(self, name: str, folds: tuple[str, ...], *, trained: float, validation: float) -> float:
        """How long fold ``name`` may train in all.

        What is left is shared evenly by the folds that are not finished, this one and those after it.

        Args:
            folds: all folds of the command, in order.
            trained: seconds that this fold trained already.
            validation: seconds that its final validation will take.
        """
        left = self.total - self.spent_before - (self.clock() - self.started)
        to_come = [fold for fold in folds[folds.index(name) :] if fold not in self.finished]
        return max(trained + left / max(len(to_come), 1) - validation, 1.0)


def open_budget(
    total: float,
    folds: tuple[str, ...],
    runs: Mapping[str, FoldRun],
    *,
    started: float,
    clock: Callable[[], float] = time.monotonic,
) -> TimeBudget:
    """The budget of a command, given what earlier runs left of its folds."""
    known = [runs[name] for name in folds if name in runs]
    return TimeBudget(
        total=total,
        spent_before=sum(run.seconds + run.validation_seconds for run in known),
        started=started,
        finished=frozenset(run.fold for run in known if run.status != "training" and run.budget == total),
        clock=clock,
    )
