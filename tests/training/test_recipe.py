"""The architecture declares how it is optimised, and flags override it."""

from __future__ import annotations

import math

import pytest
import torch

from autoseg.errors import SettingError
from autoseg.schema.architecture import Recipe
from autoseg.schema.settings import TrainSettings
from autoseg.training.optim import make_optimizer
from autoseg.training.recipe import LONG, MUON, chosen_recipe, fit_to_length, recipe_in_time
from autoseg.training.schedule import Schedule, learning_rate

TRANSFORMER = Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.05, momentum=0.9, schedule="cosine", warmup=0.1)


def test_without_flags_the_declared_recipe_holds() -> None:
    assert chosen_recipe(TRANSFORMER, TrainSettings()) == TRANSFORMER


def test_flags_override_one_by_one() -> None:
    chosen = chosen_recipe(TRANSFORMER, TrainSettings(lr=5e-4, weight_decay=0.0, warmup=0.0))
    assert (chosen.lr, chosen.weight_decay, chosen.warmup) == (5e-4, 0.0, 0.0)
    assert (chosen.optimizer, chosen.schedule) == ("adamw", "cosine")


def test_another_optimizer_brings_its_own_rate() -> None:
    assert chosen_recipe(TRANSFORMER, TrainSettings(optimizer="sgd")).lr == Recipe().lr
    adam = chosen_recipe(Recipe(), TrainSettings(optimizer="adam"))
    assert (adam.optimizer, adam.momentum) == ("adam", 0.9)
    assert adam.lr < Recipe().lr
    assert chosen_recipe(Recipe(), TrainSettings(optimizer="adam", lr=0.5)).lr == 0.5


def test_the_rate_rises_in_the_warm_up_and_then_decays_to_zero() -> None:
    rates = [learning_rate(TRANSFORMER, progress) for progress in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert rates[0] > 0
    assert rates[1] == pytest.approx(0.5e-3)
    assert rates[2] == pytest.approx(1e-3)
    assert rates[3] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert rates[4] == pytest.approx(0.0, abs=1e-12)
    constant = Recipe(schedule="constant")
    assert [learning_rate(constant, progress) for progress in (0.0, 0.5, 1.0)] == [0.01] * 3


def test_a_long_training_keeps_the_recipe() -> None:
    for recipe in (Recipe(), TRANSFORMER):
        assert fit_to_length(recipe, 250_000) == recipe
        assert fit_to_length(recipe, LONG) == recipe


@pytest.mark.parametrize("steps", [0, 10, 100, 500, 1000, 2000])
def test_a_short_training_averages_over_fewer_steps_at_the_same_pace(steps: int) -> None:
    fitted = fit_to_length(Recipe(), steps)
    # Momentum averages over 1 / (1 - m) steps, and a constant gradient moves weights by lr / (1 - m) per step.
    assert 1 / (1 - fitted.momentum) == pytest.approx(max(10, 100 * steps / LONG))
    assert fitted.lr / (1 - fitted.momentum) == pytest.approx(1.0)


def test_a_short_training_with_adam_takes_larger_steps_up_to_a_limit() -> None:
    slow = Recipe(optimizer="adam", lr=1e-4, momentum=0.9)
    assert fit_to_length(slow, LONG / 2).lr == pytest.approx(2e-4)
    assert fit_to_length(slow, 10).lr == pytest.approx(1e-3)
    fast = Recipe(optimizer="adam", lr=3e-3, momentum=0.9)
    assert fit_to_length(fast, 10) == fast


def test_a_rate_of_the_user_is_taken_as_it_is() -> None:
    recipe = chosen_recipe(Recipe(), TrainSettings(lr=0.02))
    assert fit_to_length(recipe, 10) == recipe


def test_with_a_time_budget_the_length_is_known_from_the_pace() -> None:
    schedule = Schedule(steps=None, seconds=100.0, iterations=250)
    assert schedule.expected_steps(0, 0.0) == 0
    assert schedule.expected_steps(30, 10.0) == pytest.approx(300)
    assert Schedule(steps=700, seconds=None, iterations=250).expected_steps(1, 5.0) == 700


def test_an_unknown_schedule_is_a_clear_error() -> None:
    with pytest.raises(SettingError, match="no schedule 'step'"):
        learning_rate(Recipe(schedule="step"), 0.5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_an_update_is_that_of_torch(optimizer: str) -> None:
    """Against torch's optimizers made by hand, one matrix and one vector."""
    recipe = Recipe(optimizer=optimizer, lr=0.1, weight_decay=0.2, momentum=0.9)

    def parameters() -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(torch.full((2, 2), 3.0)), torch.nn.Parameter(torch.full((2,), 3.0))]

    ours, theirs = parameters(), parameters()
    matrix, vector = theirs
    reference: torch.optim.Optimizer
    if optimizer == "sgd":
        reference = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.2)
    elif optimizer == "adam":
        reference = torch.optim.Adam(theirs, lr=0.1, betas=(0.9, 0.999), weight_decay=0.2)
    else:
        # Decoupled decay spares biases and norms.
        groups = [{"params": [matrix], "weight_decay": 0.2}, {"params": [vector], "weight_decay": 0.0}]
        reference = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.999))
    made = make_optimizer(ours, recipe)
    for _ in range(3):
        for group, stepper in ((ours, made), (theirs, reference)):
            for parameter in group:
                parameter.grad = parameter.detach() ** 2
            stepper.step()
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right)


def test_a_time_budget_takes_muon_unless_somebody_has_a_wish() -> None:
    assert recipe_in_time(Recipe(), TrainSettings(), steps=2000) == MUON
    assert recipe_in_time(Recipe(), TrainSettings(), steps=1e6) == Recipe()
    assert recipe_in_time(TRANSFORMER, TrainSettings(), steps=2000) == TRANSFORMER
    for asked in (TrainSettings(lr=0.01), TrainSettings(optimizer="sgd"), TrainSettings(warmup=0.0)):
        assert recipe_in_time(chosen_recipe(Recipe(), asked), asked, steps=2000).optimizer == "sgd"
