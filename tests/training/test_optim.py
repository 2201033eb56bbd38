"""The update against its formula, for weights whose gradients come in another memory order."""

import torch
from torch.nn import functional as F

from autoseg.schema.architecture import Recipe
from autoseg.training.optim import make_optimizer


def test_nesterov_of_channels_last_weights_follows_the_formula():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4, 3, 3, 3, generator=generator).contiguous(memory_format=torch.channels_last_3d)
    weight.requires_grad_()
    scale = torch.randn(8, generator=generator).requires_grad_()
    recipe = Recipe(lr=0.1, momentum=0.9, weight_decay=0.01)
    optimizer = make_optimizer([weight, scale], recipe)
    by_hand = [parameter.detach().double().contiguous() for parameter in (weight, scale)]
    velocity = [torch.zeros_like(parameter) for parameter in by_hand]
    for step in range(3):
        x = torch.randn(2, 4, 6, 5, 4, generator=generator).contiguous(memory_format=torch.channels_last_3d)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=step > 0):
            y = F.conv3d(x, weight, padding=1)
        (y.float() * scale.view(1, 8, 1, 1, 1)).square().mean().backward()
        for i, parameter in enumerate((weight, scale)):
            slope = parameter.grad.double() + recipe.weight_decay * by_hand[i]
            velocity[i] = recipe.momentum * velocity[i] + slope
            by_hand[i] = by_hand[i] - recipe.lr * (slope + recipe.momentum * velocity[i])
        optimizer.step()
        for parameter, expected in zip((weight, scale), by_hand, strict=True):
            torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)
