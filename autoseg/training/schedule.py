"""How far training is, and the learning rate that belongs there.

A schedule is a function of *progress* from 0 to 1. Progress is counted in steps, or in time where the user gave a
time budget; either way the last step is taken at a learning rate near 0, so that the weights are always annealed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autoseg.errors import SettingError
from autoseg.schema.architecture import SCHEDULES, Recipe
from autoseg.training.recipe import POLY_EXPONENT

# With a time budget an epoch is a report, not a unit of the schedule: this many fit a person's patience.
REPORTS_PER_BUDGET = 40


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """``steps`` in all, ``iterations`` per epoch; or ``seconds`` in all (then ``steps`` is None)."""

    steps: int | None
    seconds: float | None
    iterations: int

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise SettingError("a schedule is counted either in steps or in seconds")

    def progress(self, step: int, elapsed: float) -> float:
        """The finished part of training, 0 to 1."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        return min(1.0, elapsed / max(self.seconds or 0.0, 1e-9))

    def finished(self, step: int, elapsed: float) -> bool:
        return self.progress(step, elapsed) >= 1.0

    def expected_steps(self, step: int, elapsed: float) -> float:
        """How many steps training will have taken at its end, as far as its pace tells; 0 before any step."""
        if self.steps is not None:
            return float(self.steps)
        progress = self.progress(step, elapsed)
        return step / progress if progress > 0 else 0.0

    def epoch_over(self, epoch_steps: int, epoch_seconds: float) -> bool:
        """After ``iterations`` steps, or with a time budget after its fortieth part, whichever is first."""
        if epoch_steps >= self.iterations:
            return True
        return self.seconds is not None and epoch_seconds >= self.seconds / REPORTS_PER_BUDGET


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The rate at a progress from 0 to 1: a linear rise over the warm-up, then the recipe's decay over the rest."""
    if progress < recipe.warmup:
        # The first step must not be lost to a rate of exactly 0.
        return recipe.lr * max(progress / recipe.warmup, 1e-3)
    rest = (progress - recipe.warmup) / (1.0 - recipe.warmup)
    if recipe.schedule == "poly":
        return poly(recipe.lr, rest)
    if recipe.schedule == "cosine":
        return 0.5 * recipe.lr * (1.0 + math.cos(math.pi * rest))
    if recipe.schedule == "constant":
        return recipe.lr
    raise SettingError(f"there is no schedule {recipe.schedule!r}", hint=f"choose one of: {', '.join(SCHEDULES)}")


def poly(initial: float, progress: float) -> float:
    """Polynomial decay ``initial * (1 - progress)**0.9`` (nnU-Net; Chen et al. 2017, DeepLab, section 4.1)."""
    return initial * (1.0 - progress) ** POLY_EXPONENT
