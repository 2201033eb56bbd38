"""The architecture declares how it is optimised, and flags override it."""

from __future__ import annotations

import math

import pytest
import torch

from autoseg.errors import SettingError
from autoseg.schema.architecture import Recipe
from autoseg.schema.settings import TrainSettings
from autoseg.training.optim import make_optimizer
from autoseg.training.recipe import chosen_recipe
from autoseg.training.schedule import learning_rate

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
