"""How the time of one command is shared by its folds, and what another command like it adds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autoseg.pipeline.splits import ALL
from autoseg.schema.report import FoldRun, Share


@dataclass(frozen=True, kw_only=True)
class TimeBudget:
    """``total`` seconds for all folds with their validations; ``spent_before`` of them when the command was stopped.

    ``finished`` are folds that need nothing any more, ``before`` the seconds that the others trained under earlier
    commands. ``round`` counts the commands that went on with finished folds.
    """

    total: float
    spent_before: float
    started: float
    folds: tuple[str, ...]
    finished: frozenset[str]
    before: Mapping[str, float]
    round: int
    clock: Callable[[], float] = time.monotonic

    @property
    def left(self) -> float:
        return self.total - self.spent_before - (self.clock() - self.started)

    def deadline(self, name: str) -> float:
        """When fold ``name``, which begins now, must be over with its validation.

        What is left is shared evenly by the folds that are not finished, this one and those after it.
        """
        to_come = [fold for fold in self.folds[self.folds.index(name) :] if fold not in self.finished]
        return self.clock() + self.left / max(len(to_come), 1)

    def training_seconds(self, deadline: float, *, trained: float, validation: float) -> float:
        """How long a fold may train in all, as it looks now.

        Args:
            trained: seconds that this fold trained already.
            validation: seconds that its final validation will take.
        """
        return max(trained + deadline - self.clock() - validation, 1.0)

    def share(self, name: str) -> Share:
        """What the record of a fold says about the command that trained it."""
        return Share(budget=self.total, round=self.round, before=self.before.get(name, 0.0), together=self.folds)


def open_budget(
    total: float,
    folds: tuple[str, ...],
    runs: Mapping[str, FoldRun],
    *,
    started: float,
    validate: bool = True,
    extend: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> TimeBudget:
    """The budget of a command, given where its folds stand.

    A command that was stopped goes on, and what it spent counts. Where all folds are finished, they go on for
    ``total`` seconds more. Folds that other commands finished (of one fold, say) are left as they are.

    Args:
        runs: the records of the folds that were begun.
        started: when the command began, by ``clock``.
        validate: a fold is finished only when it is validated.
        extend: go on with finished folds.
    """
    known = [runs[name] for name in folds if name in runs]
    complete = {run.fold for run in known if _complete(run, validate)}
    rounds = {run.round for run in known}
    current = max(rounds, default=0)
    if extend and complete == set(folds) and len(rounds) == 1:
        current += 1
    mine = [run for run in known if run.round == current and run.together == folds]
    return TimeBudget(
        total=total,
        spent_before=sum(run.seconds - run.before + run.validation_seconds for run in mine),
        started=started,
        folds=folds,
        finished=frozenset(run.fold for run in known if run.fold in complete and run.round == current),
        before={run.fold: run.before if run in mine else run.seconds for run in known},
        round=current,
        clock=clock,
    )


def _complete(run: FoldRun, validate: bool) -> bool:
    return run.status == "validated" or (run.status == "trained" and (run.fold == ALL or not validate))


def validation_seconds(runs: Sequence[FoldRun], cases: Mapping[str, int], name: str, *, estimate: float) -> float:
    """How long the final validation of a fold will take: by the folds before it, else ``estimate``.

    Args:
        runs: the folds that were begun.
        cases: the number of validation cases of each fold.
    """
    done = [run for run in runs if run.validation_seconds > 0 and run.fold != name and cases.get(run.fold)]
    if not done:
        return estimate
    return cases[name] * max(run.validation_seconds / cases[run.fold] for run in done)
