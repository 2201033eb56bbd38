"""What more time would give, read from the validation curve of a training that was fitted to a time.

Dice is bounded, so what shrinks is the part that is missing to 1. The second half of a training shrinks it by a ratio
that the curve shows; twice the time shrinks it by a power of that ratio, because the rate that falls to zero in the
second half takes away as much as the time does. The powers are those of the grid (docs/benchmarks.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

# Parts of the time whose curve is averaged: one epoch's figure is of a few patches.
_MIDDLE = (0.4, 0.6)
_END = (0.85, 1.0)
_FEWEST = 8
# Below this a training has hardly begun, and its curve says nothing about what follows.
_LEAST_DICE = 0.3
_POWERS = (0.1, 0.45, 1.2)
# What two trainings of the same recipe differ by.
_SPREAD = 0.004


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The expected gain of Dice, and an interval that held for at least 80% of the trainings it was checked on."""

    gain: float
    low: float
    high: float


def forecast(curve: Sequence[tuple[float, float]], dice: float, *, factor: float = 2.0) -> Forecast | None:
    """What ``factor`` times the time would add to a Dice of ``dice``; None where nobody can tell: the curve is too
    short or has no epoch in the middle, or the Dice is unknown or below 0.3.

    Args:
        curve: seconds of training and the Dice of validation patches, from the first epoch to the last.
        dice: what the finished network reached on its validation cases.
    """
    if len(curve) < _FEWEST or not _LEAST_DICE <= dice <= 1:
        return None
    seconds = curve[-1][0]
    parts = [[value for at, value in curve if low * seconds <= at <= high * seconds] for low, high in (_MIDDLE, _END)]
    if not all(parts):
        return None
    middle, end = map(mean, parts)
    ratio = min(1.0, (1 - end) / max(1 - middle, 1e-6))
    doublings = math.log2(factor)
    low, gain, high = ((1 - dice) * (1 - ratio ** (power * doublings)) for power in _POWERS)
    return Forecast(gain=gain, low=low - _SPREAD, high=min(high + _SPREAD, 1 - dice))
