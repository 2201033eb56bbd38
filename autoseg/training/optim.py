"""The optimizer of a recipe."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from autoseg.schema.architecture import Recipe
from autoseg.training.muon import Muon

# The second beta of Adam: its paper's value, which every recipe here keeps.
SECOND_BETA = 0.999


def make_optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, Adam, AdamW or Muon over the trainable ones; ``foreach`` updates in few kernels.

    Weight decay of AdamW spares vectors (biases, norms) and position tables are matrices like any other.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    decay, lr = recipe.weight_decay, recipe.lr
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            trained, lr=lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, weight_decay=decay, foreach=True
        )
    if recipe.optimizer == "muon":
        return Muon(trained, lr=lr, momentum=recipe.momentum, weight_decay=decay)
    betas = (recipe.momentum, SECOND_BETA)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(trained, lr=lr, betas=betas, weight_decay=decay, foreach=True)
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=betas, foreach=True)


def adjust_optimizer(optimizer: torch.optim.Optimizer, *, lr: float, momentum: float) -> None:
    """Set what changes from step to step; Adam has no group of that momentum and keeps its betas."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if "momentum" in group:
            group["momentum"] = momentum
