"""UNet 3+ (Huang et al. 2020, "UNet 3+: A Full-Scale Connected UNet for Medical Image Segmentation"), 2D and 3D.

Every decoder step sees all scales (section 2.1, figure 2, equation 1): the finer encoder maps, its own, and all coarser
decoder maps, each reduced to the same few channels.

Shapes for S stages, widths f, R(s) the patch divided by the strides up to stage s, and F = S f[0]:
    encoder stage s    max-pool by the stage's stride, two convolutions -> (b, f[s], *R(s))
    decoder step s     encoder maps of stages before s   max-pooled to R(s)    convolution -> (b, f[0], *R(s))
                       encoder map of stage s                                  convolution -> (b, f[0], *R(s))
                       decoder maps (b, F, *R(i)), i > s, and the bottom map (b, f[S-1], *R(S-1)),
                       interpolated to R(s)                                    convolution -> (b, f[0], *R(s))
                       all S concatenated (b, F, *R(s)) -> convolution -> (b, F, *R(s))
    head s             convolution with the kernel of stage s -> (b, heads, *R(s)); the bottom map has one too

Paper and code agree on these; the heads follow the code (3x3 kernels). Their outputs stay at their own resolution and
meet a target of that size; paper and code interpolate them to the finest one. Not here: the classification-guided
module (it answers whether the one organ is in the image at all) and the losses of the paper. Generalised: any number
of stages, where the paper has five; strides, kernels and widths of the plan; in 3D, a coarser map is convolved before
it is interpolated and not after, with as many weights: the other way takes twice the memory and operations (16.5
against 8.4 GB for two patches of 128 cubed at width 16).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from autoseg.nets.blocks import CONV, MAX_POOL, check_topology, initialize, resize
from autoseg.nets.outputs import halving_weights
from autoseg.nets.units import ConvUnit, Style, UnitStack, pools, regular_topology
from autoseg.schema.architecture import PaperMode, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

_OF_2020 = {"normalization": "batch", "activation": "relu"}
_TOPOLOGY_2020 = regular_topology((64, 128, 256, 512, 1024), ndim=2)


class FullScaleStep(nn.Module):
    """One decoder step: encoder maps up to stage ``level`` and all coarser decoder maps to ``(b, F, *R(level))``.

    Args:
        c_in: channels of all S maps, finest first.
        width: channels to which each is reduced; F is S times that.
        resize_first: interpolate a coarser map before its convolution.
    """

    def __init__(
        self, level: int, c_in: tuple[int, ...], width: int, *, topology: Topology, resize_first: bool, style: Style
    ) -> None:
        super().__init__()
        self.level = level
        self.resize_first = resize_first
        kernel, ndim = topology.kernels[level], len(topology.strides[0])
        self.pools = nn.ModuleList()
        for stage in range(level):
            window = tuple(math.prod(steps) for steps in zip(*topology.strides[stage + 1 : level + 1], strict=True))
            self.pools.append(MAX_POOL[ndim](window, window))
        self.reduce = nn.ModuleList(
            ConvUnit(
                channels,
                width,
                kernel=kernel if resize_first or stage <= level else topology.kernels[stage],
                style=style,
            )
            for stage, channels in enumerate(c_in)
        )
        full = len(c_in) * width
        self.fuse = ConvUnit(full, full, kernel=kernel, style=style)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """``maps``: encoder maps of the stages up to ``level``, then the decoder's, finest first."""
        shape = tuple(maps[self.level].shape[2:])
        parts: list[Tensor] = []
        for stage, (reduce, x) in enumerate(zip(self.reduce, maps, strict=True)):
            if stage < self.level:
                parts.append(reduce(self.pools[stage](x)))
            elif stage == self.level:
                parts.append(reduce(x))
            elif self.resize_first:
                parts.append(reduce(resize(x, shape)))
            else:
                parts.append(resize(reduce(x), shape))
        out: Tensor = self.fuse(torch.cat(parts, dim=1))
        return out


class UNet3Plus(nn.Module):
    """U-Net whose decoder steps see all scales; with deep supervision every one of S stages has a head.

    Args:
        deep_supervision: without it there is one head, the finest.
        resize_first: interpolate coarser maps before their convolution, as published; by default in 2D only.
        normalization: ``instance``, ``batch`` or ``none``.
        activation: ``leaky_relu`` or ``relu``.

    Raises:
        SettingError: fewer than two stages, a patch that the strides do not divide, or an unknown style.
    """

    traits: ClassVar[Traits] = Traits(
        paper="Huang et al. 2020",
        summary="U-Net whose decoder steps each see all scales",
        base_width=16,
        base_width_cpu=6,
        max_stages=6,
    )
    paper_modes: ClassVar[tuple[PaperMode, ...]] = (
        PaperMode(
            name="UNet 3+",
            topology=_TOPOLOGY_2020,
            patch_size=(320, 320),
            in_channels=3,
            num_heads=1,
            parameters=26_971_777,
            arguments={**_OF_2020, "deep_supervision": False},
        ),
        PaperMode(
            name="UNet 3+ with deep supervision",
            topology=_TOPOLOGY_2020,
            patch_size=(320, 320),
            in_channels=3,
            num_heads=1,
            parameters=26_989_637,
            arguments=_OF_2020,
            note="outputs at their own resolutions, which changes no weight",
        ),
    )

    def __init__(
        self,
        *,
        topology: Topology,
        ndim: int,
        in_channels: int,
        num_heads: int,
        patch_size: Shape,
        deep_supervision: bool = True,
        resize_first: bool | None = None,
        normalization: str = "instance",
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        check_topology(topology, patch_size)
        style = Style(normalization=normalization, activation=activation)
        widths, kernels, last = topology.features, topology.kernels, topology.num_stages - 1
        full = widths[0] * topology.num_stages
        c_in = (in_channels, *widths)
        self.pools = pools(topology)
        self.encoder = nn.ModuleList(
            UnitStack(c_in[s], (widths[s], widths[s]), kernel=kernels[s], style=style)
            for s in range(topology.num_stages)
        )
        self.decoder = nn.ModuleList(
            FullScaleStep(
                level,
                (*widths[: level + 1], *(full for _ in range(level + 1, last)), widths[last]),
                widths[0],
                topology=topology,
                resize_first=ndim == 2 if resize_first is None else resize_first,
                style=style,
            )
            for level in range(last)
        )
        num_outputs = topology.num_stages if deep_supervision else 1
        self.heads = nn.ModuleList(
            CONV[ndim](
                widths[last] if s == last else full,
                num_heads,
                kernels[s],
                padding=tuple((size - 1) // 2 for size in kernels[s]),
            )
            for s in range(num_outputs)
        )
        self.output_weights = halving_weights(num_outputs)
        self.apply(initialize)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, *spatial)`` to logits ``(b, heads, *spatial)``, finest first."""
        maps: list[Tensor] = []
        for pool, stage in zip(self.pools, self.encoder, strict=True):
            x = stage(pool(x))
            maps.append(x)
        for level in reversed(range(len(self.decoder))):
            maps[level] = self.decoder[level](maps)
        if not self.training:
            return (self.heads[0](maps[0]),)
        return tuple(head(features) for head, features in zip(self.heads, maps, strict=False))
