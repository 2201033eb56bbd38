"""A time budget covers every fold with its validation, and what earlier runs spent counts."""

from __future__ import annotations

import pytest

from autoseg.errors import SettingError
from autoseg.pipeline.budget import open_budget, validation_seconds
from autoseg.schema.report import FoldRun

FOLDS = ("0", "1", "2")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(
    fold: str,
    status: str,
    *,
    seconds: float,
    validation: float = 0.0,
    budget: float | None = 600.0,
    turn: int = 0,
    before: float = 0.0,
    used: float = 0.0,
    together: tuple[str, ...] = FOLDS,
) -> FoldRun:
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
        round=turn,
        before=before,
        together=together,
        used=used,
    )


def test_folds_share_evenly_and_end_with_their_validation() -> None:
    clock = Clock()
    budget = open_budget(600.0, FOLDS, {}, started=clock(), clock=clock)
    first = budget.training_seconds(budget.deadline("0"), trained=0.0, validation=20.0)
    assert first == pytest.approx(180.0)
    clock.now += 200.0
    assert budget.training_seconds(budget.deadline("1"), trained=0.0, validation=20.0) == pytest.approx(180.0)
    clock.now += 250.0  # a slow fold takes from those that follow
    assert budget.training_seconds(budget.deadline("2"), trained=0.0, validation=20.0) == pytest.approx(130.0)


def test_a_resumed_run_counts_what_was_spent() -> None:
    clock = Clock()
    # 20 seconds went into preparing.
    known = {
        "0": run("0", "validated", seconds=180.0, validation=20.0, used=220.0),
        "1": run("1", "training", seconds=90.0, used=310.0),
    }
    budget = open_budget(600.0, FOLDS, known, started=clock(), clock=clock)
    assert budget.finished == {"0"}
    second = budget.training_seconds(budget.deadline("1"), trained=90.0, validation=20.0)
    assert second == pytest.approx(90.0 + (600.0 - 310.0) / 2 - 20.0)


def test_finished_folds_go_on_for_the_whole_time_once_more() -> None:
    clock = Clock()
    known = {name: run(name, "validated", seconds=180.0, validation=20.0) for name in FOLDS}
    budget = open_budget(600.0, FOLDS, known, started=clock(), clock=clock)
    assert (budget.round, budget.finished, budget.spent_before) == (1, frozenset(), 0.0)
    assert budget.training_seconds(budget.deadline("0"), trained=180.0, validation=20.0) == pytest.approx(360.0)
    # Stopped within the second fold, what this command spent counts, and not what the first one did.
    known["0"] = run("0", "validated", seconds=360.0, validation=20.0, turn=1, before=180.0, used=200.0)
    known["1"] = run("1", "training", seconds=230.0, turn=1, before=180.0, used=250.0)
    again = open_budget(600.0, FOLDS, known, started=clock(), clock=clock)
    assert (again.round, again.finished, again.spent_before) == (1, {"0"}, 250.0)
    assert again.training_seconds(again.deadline("1"), trained=230.0, validation=20.0) == pytest.approx(
        230.0 + 350.0 / 2 - 20.0
    )
    assert again.share("1").before == 180.0
    assert again.share("2").before == 180.0


def test_a_race_leaves_finished_folds_alone() -> None:
    known = {name: run(name, "validated", seconds=180.0) for name in FOLDS}
    assert open_budget(600.0, FOLDS, known, started=0.0, extend=False).finished == set(FOLDS)


def test_a_fold_that_another_command_finished_takes_nothing_from_the_others() -> None:
    clock = Clock()
    known = {"0": run("0", "validated", seconds=600.0, together=("0",))}
    budget = open_budget(600.0, FOLDS, known, started=clock(), clock=clock)
    assert (budget.finished, budget.spent_before) == ({"0"}, 0.0)
    assert budget.training_seconds(budget.deadline("1"), trained=0.0, validation=0.0) == pytest.approx(300.0)


def test_a_fold_that_was_begun_without_a_budget_counts_from_where_it_stands() -> None:
    clock = Clock()
    known = {"0": run("0", "training", seconds=1000.0, budget=None, together=())}
    budget = open_budget(600.0, FOLDS, known, started=clock(), clock=clock)
    assert (budget.finished, budget.spent_before) == (frozenset(), 0.0)
    assert budget.training_seconds(budget.deadline("0"), trained=1000.0, validation=0.0) == pytest.approx(1200.0)


@pytest.mark.parametrize(
    ("fold", "validate", "finished"), [("0", True, False), ("0", False, True), ("all", True, True)]
)
def test_a_fold_is_finished_when_it_is_validated_if_it_can_be(fold: str, validate: bool, finished: bool) -> None:
    known = {fold: run(fold, "trained", seconds=600.0, together=(fold, "1"))}
    budget = open_budget(600.0, (fold, "1"), known, started=0.0, validate=validate)
    assert budget.finished == ({fold} if finished else frozenset())


def test_how_long_validation_takes_is_learnt_from_the_folds_before() -> None:
    cases = {"0": 10, "1": 20, "2": 20}
    done = [run("0", "validated", seconds=180.0, validation=30.0), run("1", "training", seconds=50.0)]
    assert validation_seconds(done, cases, "1", estimate=1.0) == pytest.approx(60.0)
    assert validation_seconds([], cases, "1", estimate=1.0) == 1.0


def test_a_fold_that_was_trained_needs_only_its_validation() -> None:
    known = {"0": run("0", "trained", seconds=180.0, used=185.0)}
    budget = open_budget(600.0, FOLDS, known, started=0.0, clock=lambda: 0.0)
    assert (budget.trained, budget.finished) == ({"0"}, frozenset())
    assert budget.deadline("0") == pytest.approx((600.0 - 185.0) / 3)


def test_a_stopped_command_is_not_repeated_with_a_time_that_is_over() -> None:
    known = {"0": run("0", "training", seconds=290.0, used=300.0)}
    for total in (200.0, 320.0):
        with pytest.raises(SettingError, match="learning rate would not come down") as caught:
            open_budget(total, FOLDS, known, started=0.0)
        assert "at least 5 min 34 s" in caught.value.hint
    assert open_budget(400.0, FOLDS, known, started=0.0, clock=lambda: 0.0).used == 300.0


def test_what_a_fold_used_is_told_by_where_it_began() -> None:
    clock = Clock()
    budget = open_budget(
        600.0, FOLDS, {"0": run("0", "training", seconds=90.0, used=100.0)}, started=900.0, clock=clock
    )
    share = budget.share("0")
    assert (share.used, share.resumed_at, share.before) == (200.0, 90.0, 0.0)
