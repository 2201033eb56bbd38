"""How the time of one command is shared by its folds, and what another command like it adds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autoseg.errors import SettingError
from autoseg.log import duration
from autoseg.pipeline.splits import ALL
from autoseg.schema.report import FoldRun, Share

# A training that is stopped and repeated with less time must have a part of it left to anneal in.
_LONGEST_PART = 0.9


@dataclass(frozen=True, kw_only=True)
class TimeBudget:
    """``total`` seconds for all folds with their validations; ``spent_before`` of them when the command was stopped.

    ``finished`` are folds that need nothing any more, ``trained`` those and the ones that need only a validation.
    ``before`` are the seconds that folds trained under earlier commands, ``so_far`` those that they trained in all.
    ``round`` counts the commands that went on with finished folds; ``extend``: this one may do so.
    """

    total: float
    spent_before: float
    started: float
    folds: tuple[str, ...]
    finished: frozenset[str]
    trained: frozenset[str]
    before: Mapping[str, float]
    so_far: Mapping[str, float]
    round: int
    extend: bool
    clock: Callable[[], float] = time.monotonic

    @property
    def used(self) -> float:
        return self.spent_before + self.clock() - self.started

    def deadline(self, name: str) -> float:
        """When fold ``name``, which begins now, must be over with its validation.

        What is left is shared evenly by the folds that are not finished, this one and those after it.
        """
        to_come = [fold for fold in self.folds[self.folds.index(name) :] if fold not in self.finished]
        return self.clock() + (self.total - self.used) / max(len(to_come), 1)

    def training_seconds(self, deadline: float, *, trained: float, validation: float) -> float:
        """How long a fold may train in all, as it looks now.

        Args:
            trained: seconds that this fold trained already.
            validation: seconds that its final validation will take.
        """
        return max(trained + deadline - self.clock() - validation, 1.0)

    def share(self, name: str) -> Share:
        """What the record of a fold says about the command that trained it."""
        return Share(
            budget=self.total,
            round=self.round,
            before=self.before.get(name, 0.0),
            together=self.folds,
            used=self.used,
            resumed_at=self.so_far.get(name, 0.0),
        )


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

    Raises:
        SettingError: a command that was stopped is repeated with a time that is over already.
    """
    known = [runs[name] for name in folds if name in runs]
    complete = {run.fold for run in known if is_complete(run, validate)}
    rounds = {run.round for run in known}
    current = max(rounds, default=0)
    if extend and complete == set(folds) and len(rounds) == 1:
        current += 1
    mine = [run for run in known if run.round == current and run.together == folds]
    spent = max((run.used for run in mine), default=0.0)
    unfinished = [run for run in mine if run.status == "training"]
    if any(run.budget is not None and run.budget > total for run in unfinished) and spent > _LONGEST_PART * total:
        raise SettingError(
            f"{duration(spent)} of {duration(total)} are over, and fold {unfinished[0].fold} was to go on: its "
            "learning rate would not come down any more",
            hint=f"give at least {duration(math.ceil(spent / _LONGEST_PART))}",
        )
    return TimeBudget(
        total=total,
        spent_before=spent,
        started=started,
        folds=folds,
        finished=frozenset(run.fold for run in known if run.fold in complete and run.round == current),
        trained=frozenset(run.fold for run in known if run.status != "training" and run.round == current),
        before={run.fold: run.before if run in mine else run.seconds for run in known},
        so_far={run.fold: run.seconds for run in known},
        round=current,
        extend=extend,
        clock=clock,
    )


def is_complete(run: FoldRun, validate: bool) -> bool:
    """Whether nothing is left to do for a fold; ``validate``: it is to be validated, if it can be."""
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
