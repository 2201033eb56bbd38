"""The learning rate ends at 0 whether steps or seconds are counted, and time is shared fairly."""

from __future__ import annotations

import pytest

from autoseg.errors import SettingError
from autoseg.training.schedule import Schedule, poly


def test_the_decay_is_the_published_one() -> None:
    assert poly(0.01, 0.0) == 0.01
    assert poly(0.01, 0.5) == pytest.approx(0.01 * 0.5**0.9)
    assert poly(0.01, 1.0) == 0.0


def test_steps_decide_when_they_are_given() -> None:
    schedule = Schedule(steps=1000, seconds=None, iterations=250)
    assert schedule.progress(250, 1e9) == 0.25
    assert not schedule.finished(999, 1e9)
    assert schedule.finished(1000, 0.0)
    assert schedule.epoch_over(250, 0.0)
    assert not schedule.epoch_over(249, 1e9)


def test_seconds_decide_when_they_are_given() -> None:
    schedule = Schedule(steps=None, seconds=600.0, iterations=250)
    assert schedule.progress(10**9, 150.0) == 0.25
    assert schedule.finished(1, 600.0)
    assert schedule.epoch_over(3, 15.0)
    assert not schedule.epoch_over(3, 14.0)


def test_a_schedule_counts_one_thing() -> None:
    with pytest.raises(SettingError):
        Schedule(steps=1, seconds=1.0, iterations=1)
