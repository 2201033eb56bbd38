"""A forecast follows from the shape of the curve, and held for the trainings of the grid."""

from __future__ import annotations

import math

import pytest

from autoseg.planning.forecast import forecast


def power_law(exponent: float, *, seconds: float = 100.0, start: float = 0.3) -> list[tuple[float, float]]:
    """A curve whose missing Dice falls with the time to the power of ``-exponent``."""
    times = [seconds * (index + 1) / 40 for index in range(40)]
    return [(at, 1 - start * (at / seconds) ** -exponent) for at in times]


def test_a_curve_that_still_rises_promises_more_than_one_that_does_not() -> None:
    flat, slow, fast = (forecast(power_law(exponent), 0.7) for exponent in (0.0, 0.2, 0.6))
    assert flat is not None and slow is not None and fast is not None
    assert flat.gain == pytest.approx(0, abs=1e-9)
    assert 0 < slow.gain < fast.gain
    assert flat.high - flat.low < slow.high - slow.low < fast.high - fast.low


def test_a_curve_that_falls_promises_nothing() -> None:
    found = forecast(power_law(-0.3), 0.7)
    assert found is not None and found.gain == pytest.approx(0, abs=1e-9)


def test_the_gain_lies_within_the_interval_and_below_what_is_missing() -> None:
    for dice in (0.3, 0.9, 0.99):
        found = forecast(power_law(1.5, start=0.1), dice)
        assert found is not None and found.low < found.gain < found.high
        assert found.gain < 1 - dice


def test_two_doublings_take_away_the_square() -> None:
    curve, dice = power_law(0.4), 0.6
    once, twice = forecast(curve, dice), forecast(curve, dice, factor=4.0)
    assert once is not None and twice is not None
    left = (1 - dice - once.gain) / (1 - dice)
    assert (1 - dice - twice.gain) / (1 - dice) == pytest.approx(left**2)


def test_what_is_perfect_gains_nothing() -> None:
    found = forecast(power_law(0.3), 1.0)
    assert found is not None and found.gain == found.high == 0.0


# One long epoch, and short ones after it.
GAP = [(500.0, 0.5), *((620.0 + 20 * index, 0.6) for index in range(10))]


@pytest.mark.parametrize(
    ("curve", "dice"),
    [([], 0.5), (power_law(0.3)[:5], 0.5), (GAP, 0.5), (power_law(0.3), math.nan), (power_law(0.3), 0.1)],
)
def test_nothing_is_said_where_nothing_is_known(curve: list[tuple[float, float]], dice: float) -> None:
    assert forecast(curve, dice) is None
