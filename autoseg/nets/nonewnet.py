"""No New-Net: a plain, well-trained U-Net without any convolution in its upsampling.

Isensee et al. 2018 (second place of BraTS 2018). Its code was never released; structure and size are those of the
first nnU-Net's network with 30 filters, 4 max-pools and trilinear upsampling, which the authors published later. The
last convolution of a stage already has the width of the next finer stage, so that the upsampled map can be
concatenated as it is.

Shapes for S stages, widths f, and R(s) the patch divided by the strides up to stage s:
    encoder stage s    (b, f[s-1], *R(s-1)) -> max-pool -> two blocks -> (b, f[s], *R(s))
    bottleneck S-1     (b, f[S-2], *R(S-2)) -> max-pool -> (b, f[S-1], *R(S-1)) -> (b, f[S-2], *R(S-1))
    decoder step s     (b, f[s], *R(s+1)) -> linear upsampling -> concatenated with the skip (b, 2 f[s], *R(s))
                       -> (b, f[s], *R(s)) -> (b, f[s-1], *R(s)); f[0] at the finest step
    head               1x1 convolution -> (b, heads, *R(0)); there is one output, as in the paper

Generalised: any number of stages, kernels and strides per axis from the plan, bilinear in 2D. The network that the
authors' class builds also has 639 parameters of auxiliary heads that nothing reads; they are left out. Regions instead
of exclusive labels, the paper's other lesson, come from the dataset's labels and not from the network.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from autoseg.nets.blocks import CONV, MAX_POOL, check_topology, initialize, resize
from autoseg.nets.outputs import equal_weights
from autoseg.nets.units import Style, UnitStack
from autoseg.schema.architecture import PaperMode, Recipe, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology


class NoNewNet(nn.Module):
    """U-Net with max-pools and linear upsampling; one output.

    Raises:
        SettingError: fewer than two stages, or a patch that the strides do not divide.
    """

    traits: ClassVar[Traits] = Traits(
        paper="Isensee et al. 2018",
        summary="plain U-Net with max-pools and upsampling without convolutions",
        base_width=30,
        max_width={2: 480, 3: 480},
        # The paper divides the rate by 5 whenever the loss stalls; a planned decay does without watching it.
        recipe=Recipe(optimizer="adam", lr=1e-4, weight_decay=1e-5, momentum=0.9),
    )
    paper_modes: ClassVar[tuple[PaperMode, ...]] = (
        PaperMode(
            name="BraTS 2018",
            topology=Topology(
                strides=((1,) * 3, *((2,) * 3,) * 4), kernels=((3,) * 3,) * 5, features=(30, 60, 120, 240, 480)
            ),
            patch_size=(128, 128, 128),
            in_channels=4,
            num_heads=3,
            parameters=14_493_063,
            note="without the 639 parameters of auxiliary heads that the authors' class builds and never uses",
        ),
    )

    def __init__(self, *, topology: Topology, ndim: int, in_channels: int, num_heads: int, patch_size: Shape) -> None:
        super().__init__()
        check_topology(topology, patch_size)
        widths, kernels = topology.features, topology.kernels
        coarsest = topology.num_stages - 1
        c_in = (in_channels, *widths)
        self.pools = nn.ModuleList(MAX_POOL[ndim](stride, stride) for stride in topology.strides[1:])
        self.encoder = nn.ModuleList(_pair(c_in[s], widths[s], widths[s], kernels[s]) for s in range(coarsest))
        self.bottleneck = _pair(widths[coarsest - 1], widths[coarsest], widths[coarsest - 1], kernels[coarsest])
        self.decoder = nn.ModuleList(
            _pair(2 * widths[s], widths[s], widths[max(s - 1, 0)], kernels[s]) for s in range(coarsest)
        )
        self.head = CONV[ndim](widths[0], num_heads, 1)
        self.output_weights = equal_weights(1)
        self.apply(initialize)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, *spatial)`` to logits ``(b, heads, *spatial)``, in a tuple."""
        skips: list[Tensor] = []
        for stage, pool in zip(self.encoder, self.pools, strict=True):
            skips.append(stage(x))
            x = pool(skips[-1])
        x = self.bottleneck(x)
        for step in reversed(self.decoder):
            skip = skips.pop()
            x = step(torch.cat((resize(x, tuple(skip.shape[2:])), skip), dim=1))
        return (self.head(x),)


def _pair(c_in: int, c_between: int, c_out: int, kernel: Shape) -> UnitStack:
    return UnitStack(c_in, (c_between, c_out), kernel=kernel, style=Style())
