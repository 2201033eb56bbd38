"""Pieces of the U-Net family whose normalisation and activation can be chosen, and the decoder that two of them share.

The default style is nnU-Net's: instance normalisation with affine parameters and LeakyReLU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoseg.errors import SettingError
from autoseg.nets.blocks import CONV, MAX_POOL, SLOPE, norm
from autoseg.nets.lean_norm import normalize_and_activate
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology


@dataclass(frozen=True, kw_only=True)
class Style:
    """What follows a convolution.

    Args:
        normalization: ``instance``, ``batch`` or ``none``.
        activation: ``leaky_relu`` (slope 0.01), ``relu`` or ``none``.
    """

    normalization: str = "instance"
    activation: str = "leaky_relu"


class ConvUnit(nn.Sequential):
    """Convolution with "same" padding, normalisation, activation: ``(b, c_in, *x)`` to ``(b, c_out, *x / stride)``.

    Raises:
        SettingError: a style that does not exist.
    """

    def __init__(
        self, c_in: int, c_out: int, *, kernel: Shape, stride: Shape | None = None, style: Style, bias: bool = True
    ) -> None:
        ndim = len(kernel)
        padding = tuple((size - 1) // 2 for size in kernel)
        super().__init__(
            CONV[ndim](c_in, c_out, kernel, stride or (1,) * ndim, padding=padding, bias=bias),
            norm(style.normalization, c_out, ndim=ndim),
            activation(style.activation),
        )

    def forward(self, x: Tensor) -> Tensor:
        convolution, normalization, act = self
        return normalize_and_activate(convolution(x), normalization, act)


class UnitStack(nn.Sequential):
    """Units of the given widths in a row, the first one strides.

    ``(b, c_in, *x)`` becomes ``(b, widths[-1], *x / stride)``.
    """

    def __init__(
        self, c_in: int, widths: Sequence[int], *, kernel: Shape, stride: Shape | None = None, style: Style
    ) -> None:
        c_ins = (c_in, *widths[:-1])
        super().__init__(
            *(
                ConvUnit(before, after, kernel=kernel, stride=None if i else stride, style=style)
                for i, (before, after) in enumerate(zip(c_ins, widths, strict=True))
            )
        )


def activation(kind: str) -> nn.Module:
    """``leaky_relu`` with the slope that the initialisation expects, ``relu`` or ``none``.

    Raises:
        SettingError: another kind.
    """
    if kind == "leaky_relu":
        return nn.LeakyReLU(SLOPE, inplace=True)
    if kind == "relu":
        return nn.ReLU(inplace=True)
    if kind == "none":
        return nn.Identity()
    raise SettingError(f"there is no activation {kind!r}", hint="choose one of: leaky_relu, relu, none")


def pools(topology: Topology) -> nn.ModuleList:
    """Max-pooling into every stage, by its stride; nothing in front of the first."""
    ndim = len(topology.strides[0])
    return nn.ModuleList(
        MAX_POOL[ndim](stride, stride) if stage else nn.Identity() for stage, stride in enumerate(topology.strides)
    )


def decode(
    skips: list[Tensor], *, up: nn.ModuleList, steps: nn.ModuleList, heads: nn.ModuleList, every_output: bool
) -> tuple[Tensor, ...]:
    """The decoder of a U-Net: up-convolve, concatenate the skip, convolve, one step per resolution.

    Args:
        skips: the encoder's maps ``(b, f[s], *R(s))``, finest first.
        every_output: logits of all heads instead of the finest one.

    Returns:
        Logits ``(b, heads, *R(s))``, finest first.
    """
    outputs: list[Tensor] = []
    # The list is emptied while it is used, so that a map's memory is free as soon as its step is done.
    x = skips.pop()
    for step in reversed(range(len(up))):
        x = steps[step](torch.cat((up[step](x), skips.pop()), dim=1))
        if step == 0 or (every_output and step < len(heads)):
            outputs.append(heads[step](x))
    return tuple(reversed(outputs))


def regular_topology(features: Sequence[int], *, ndim: int, kernel: int = 3) -> Topology:
    """Every stage but the first halves every axis; all kernels are alike, as in most papers."""
    return Topology(
        strides=((1,) * ndim, *((2,) * ndim for _ in features[1:])),
        kernels=((kernel,) * ndim,) * len(features),
        features=tuple(features),
    )
