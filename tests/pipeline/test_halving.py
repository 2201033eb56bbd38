"""Who goes on, and that the time is shared out: never more than there is, equally in a round and over rounds."""

from __future__ import annotations

import math

import pytest

from autoseg.pipeline.halving import racing_seconds, schedule, survivors


@pytest.mark.parametrize(
    ("candidates", "entrants"),
    [
        (1, [1]),
        (2, [2]),
        (3, [3, 2]),
        (4, [4, 2]),
        (5, [5, 3, 2]),
        (6, [6, 3, 2]),
        (7, [7, 4, 2]),
        (8, [8, 4, 2]),
        (9, [9, 5, 3, 2]),
    ],
)
@pytest.mark.parametrize("folds", [1, 3])
def test_each_round_halves_and_has_the_same_time(candidates: int, entrants: list[int], folds: int) -> None:
    heats = schedule(candidates, total=7200.0, folds=folds)
    assert [heat.entrants for heat in heats] == entrants
    assert len(heats) == max(1, math.ceil(math.log2(candidates)))
    times = [heat.entrants * folds * heat.seconds for heat in heats]
    assert times == pytest.approx([7200.0 / len(heats)] * len(heats))
    assert sum(times) <= 7200.0 * (1 + 1e-12)


def test_the_better_half_goes_on_best_first() -> None:
    assert survivors({"a": 0.3, "b": 0.9, "c": 0.5, "d": 0.8}, entrants=4) == ("b", "d")
    assert survivors({"a": 0.3, "b": 0.9, "c": 0.5}, entrants=3) == ("b", "c")


def test_those_that_failed_make_room_for_nobody_but_count() -> None:
    assert survivors({"a": 0.3, "c": 0.5, "d": 0.1}, entrants=4) == ("c", "a")
    assert survivors({"a": 0.3}, entrants=4) == ("a",)


def test_preparation_comes_off_the_budget_but_leaves_half_of_it() -> None:
    assert racing_seconds(3600.0, preparation=600.0) == 3000.0
    assert racing_seconds(3600.0, preparation=5000.0) == 1800.0
