"""Gradients of bfloat16 convolutions on maps smaller than their kernel, against float32."""

from __future__ import annotations

import copy

import pytest
import torch

from autoseg.nets.blocks import CONV


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("shape", "kernel", "stride"),
    [
        ((2, 4, 4), 3, 1),
        ((2, 3, 6), (3, 1, 1), 1),
        ((4, 4, 1), 3, 2),
        ((3, 4, 4), 5, 1),
        ((1, 1, 1), 3, 2),
        ((5, 6, 4), 3, 1),
        ((4, 1), 3, 2),
        ((6, 5), 3, 1),
    ],
)
def test_gradients_under_autocast_are_those_of_float32(
    shape: tuple[int, ...], kernel: int | tuple[int, ...], stride: int
) -> None:
    torch.manual_seed(0)
    taps = (kernel,) * len(shape) if isinstance(kernel, int) else kernel
    layer = CONV[len(shape)](32, 32, kernel, stride=stride, padding=tuple(size // 2 for size in taps))
    exact = copy.deepcopy(layer)
    image = torch.randn(2, 32, *shape)
    for _ in range(3):
        # Whatever a gradient leaves unwritten is then infinite.
        dirt = [torch.full((size,), torch.inf) for size in (10**4, 10**5, 10**6, 3 * 10**6)]
        del dirt
        inputs = [image.clone().requires_grad_() for _ in range(2)]
        with torch.autocast("cpu", torch.bfloat16):
            result = layer(inputs[0])
        assert result.dtype == torch.bfloat16
        weights = torch.linspace(-1, 1, result.numel()).view(result.shape)
        layer.zero_grad()
        exact.zero_grad()
        (result.float() * weights).sum().backward()
        (exact(inputs[1]) * weights).sum().backward()
        assert relative_error(layer.weight.grad, exact.weight.grad) < 0.02
        assert relative_error(inputs[0].grad, inputs[1].grad) < 0.02
