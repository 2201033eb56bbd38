"""Convolutions that train right on maps smaller than their kernel.

oneDNN (torch 2.13, processors with bfloat16) computes the weight gradient of a bfloat16 convolution wrong there: part
is whatever lay in memory, infinities included. A kernel of three over a depth of two is enough. Such maps are tiny, so
float32 costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d``, in float32 where autocast would compute a wrong gradient on a CPU."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        return _carefully(super()._conv_forward, _reach(self), input, weight, bias)


class Conv3d(nn.Conv3d):
    """``torch.nn.Conv3d``, in float32 where autocast would compute a wrong gradient on a CPU."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        return _carefully(super()._conv_forward, _reach(self), input, weight, bias)


def _reach(layer: nn.Conv2d | nn.Conv3d) -> tuple[int, ...]:
    """Voxels from the first to the last tap of a kernel, per axis."""
    return tuple((taps - 1) * step + 1 for taps, step in zip(layer.kernel_size, layer.dilation, strict=True))


def _carefully(
    convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    reach: Sequence[int],
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    affected = image.device.type == "cpu" and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    extent = image.shape[-len(reach) :]
    if not affected or all(size >= span for size, span in zip(extent, reach, strict=True)):
        return convolve(image, weight, bias)
    with torch.autocast("cpu", enabled=False):
        result = convolve(image.float(), weight.float(), None if bias is None else bias.float())
    return result.to(torch.get_autocast_dtype("cpu"))
