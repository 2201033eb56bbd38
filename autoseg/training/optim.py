"""The optimizer of the recipe: SGD with Nesterov momentum."""

from __future__ import annotations

import torch
from torch import nn

from autoseg.training.recipe import MOMENTUM, WEIGHT_DECAY


def make_optimizer(network: nn.Module, *, lr: float) -> torch.optim.Optimizer:
    """SGD over all trainable parameters; ``foreach`` updates them in few kernels."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY, foreach=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
