"""V-Net: residual stages without pooling, PReLU everywhere.

Milletari et al. 2016, figure 2. A stage is a chain of convolutions whose input is added to the last one before that
one's PReLU; convolutions with kernel = stride 2 go down and transposed ones go up.

Shapes for S stages, widths f, and R(s) the patch divided by the strides up to stage s:
    encoder stage 0    (b, c, *R(0)) -> (b, f[0], *R(0)), plus the image repeated to f[0] channels
    encoder stage s    (b, f[s-1], *R(s-1)) -> strided convolution -> (b, f[s], *R(s)) -> residual chain, same shape
    decoder step s     (b, 2 f[s+1] or f[S-1], *R(s+1)) -> transposed convolution -> (b, f[s], *R(s))
                       -> concatenated with the skip (b, 2 f[s], *R(s)) -> residual chain, same shape
    head               1x1 convolution -> (b, heads, *R(0)); there is one output, as in the paper

Where paper and code differ: the figure has 1, 2, 3, 3, 3 convolutions in the encoder and 3, 3, 2, 1 in the decoder,
that is min(s + 1, 3) at stage s both ways, and a head of 1x1x1; the released prototxt has 1, 1, 2, 3, 3 and 3, 2, 1, 1,
and a head of 5x5x5 to the classes, PReLU, 1x1x1. The default follows the figure; both are paper modes.

Generalised: 2D too, any number of stages, strides and kernels from the plan. The original has no normalisation, and
trains only with its own small learning rate; by default every convolution is followed by an instance normalisation
(the last of a chain before the sum), and the recipe is the common one. The kernels of the plan are 3, or 1 across an
axis whose spacing is twice the finest or more. ``kernel=5`` widens the threes to the paper's size, for 4.6 times the
parameters and operations in 3D, which is why it is not the default. Convolutions in front of a normalisation have no
bias: it would be taken out again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.nets.blocks import CONV, TRANSPOSED_CONV, check_topology, initialize, norm
from autoseg.nets.outputs import equal_weights
from autoseg.schema.architecture import PaperMode, Preset, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

_PAPER_TOPOLOGY = Topology(
    strides=((1,) * 3, *((2,) * 3,) * 4), kernels=((5,) * 3,) * 5, features=(16, 32, 64, 128, 256)
)


class VNet(nn.Module):
    """V-Net; one output.

    Args:
        convs_per_stage: convolutions of stage s in the encoder and in the decoder; min(s + 1, 3) if not given.
        kernel: the size along axes for which the plan has more than 1; the plan's own if not given.
        normalization: ``instance``, ``batch`` or ``none``.
        wide_head: a convolution with the kernel of the finest stage and a PReLU in front of the 1x1 convolution.

    Raises:
        SettingError: fewer than two stages, a patch that the strides do not divide, a number of entries in
            ``convs_per_stage`` that is not the number of stages, or an even kernel.
    """

    traits: ClassVar[Traits] = Traits(
        paper="Milletari et al. 2016",
        summary="residual stages, strided convolutions for pooling, PReLU",
        base_width=16,
        base_width_cpu=8,
        max_width={2: 256, 3: 256},
        presets={"kernel5": Preset(arguments={"kernel": 5})},
    )
    paper_modes: ClassVar[tuple[PaperMode, ...]] = (
        PaperMode(
            name="released prototxt",
            topology=_PAPER_TOPOLOGY,
            patch_size=(128, 128, 64),
            in_channels=1,
            num_heads=2,
            parameters=61_982_682,
            arguments={"convs_per_stage": [1, 1, 2, 3, 3], "normalization": "none", "wide_head": True},
            note="the code: 1, 1, 2, 3, 3 and 3, 2, 1, 1 convolutions, two convolutions as head",
        ),
        PaperMode(
            name="figure 2",
            topology=_PAPER_TOPOLOGY,
            patch_size=(128, 128, 64),
            in_channels=1,
            num_heads=2,
            # 65,171,858 of convolutions and 3,456 slopes.
            parameters=65_175_314,
            arguments={"normalization": "none"},
            note="the paper: 1, 2, 3, 3, 3 and 3, 3, 2, 1 convolutions, a 1x1x1 head",
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
        convs_per_stage: Sequence[int] | None = None,
        kernel: int | None = None,
        normalization: str = "instance",
        wide_head: bool = False,
    ) -> None:
        super().__init__()
        check_topology(topology, patch_size)
        stages = topology.num_stages
        depths = _depths(convs_per_stage, stages)
        kernels = tuple(_widened(shape, kernel) for shape in topology.kernels)
        widths, strides = topology.features, topology.strides
        first = ResidualChain(in_channels, widths[0], kernels[0], depth=depths[0], normalization=normalization)
        self.encoder = nn.ModuleList([first])
        self.down = nn.ModuleList()
        for s in range(1, stages):
            self.down.append(_down(widths[s - 1], widths[s], strides[s], normalization))
            self.encoder.append(
                ResidualChain(widths[s], widths[s], kernels[s], depth=depths[s], normalization=normalization)
            )
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for s in range(stages - 1):
            c_below = widths[s + 1] if s + 1 == stages - 1 else 2 * widths[s + 1]
            self.up.append(_up(c_below, widths[s], strides[s + 1], normalization))
            self.decoder.append(
                ResidualChain(2 * widths[s], 2 * widths[s], kernels[s], depth=depths[s], normalization=normalization)
            )
        self.head = _head(2 * widths[0], num_heads, kernels[0], wide=wide_head)
        self.output_weights = equal_weights(1)
        self.apply(initialize)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, *spatial)`` to logits ``(b, heads, *spatial)``, in a tuple."""
        x = self.encoder[0](x)
        skips: list[Tensor] = []
        for down, stage in zip(self.down, self.encoder[1:], strict=True):
            skips.append(x)
            x = stage(down(x))
        for up, step in zip(reversed(self.up), reversed(self.decoder), strict=True):
            x = step(torch.cat((up(x), skips.pop()), dim=1))
        return (self.head(x),)


class PReLU(nn.PReLU):
    """One slope per channel, in the type of its input.

    Autocast casts both, but not on the meta device, where the planner traces what a step costs.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight.to(x.dtype))


class ResidualChain(nn.Module):
    """``depth`` convolutions, and their input added before the last PReLU.

    ``(b, c_in, *spatial)`` becomes ``(b, c_out, *spatial)``. Where the widths differ, the input's channels are
    repeated in turn until they are ``c_out``.
    """

    def __init__(self, c_in: int, c_out: int, kernel: Shape, *, depth: int, normalization: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(depth):
            conv = CONV[len(kernel)](
                c_out if index else c_in, c_out, kernel, padding="same", bias=normalization == "none"
            )
            layers += [PReLU(c_out)] if index else []
            layers += [conv, norm(normalization, c_out, ndim=len(kernel))]
        self.chain = nn.Sequential(*layers)
        self.act = PReLU(c_out)
        self.repeats = math.ceil(c_out / c_in)

    def forward(self, x: Tensor) -> Tensor:
        y = self.chain(x)
        if x.shape[1] != y.shape[1]:
            x = x.repeat(1, self.repeats, *(1,) * (x.ndim - 2))[:, : y.shape[1]]
        total: Tensor = self.act(y + x.to(y.dtype))
        return total


def _depths(convs_per_stage: Sequence[int] | None, stages: int) -> tuple[int, ...]:
    if convs_per_stage is None:
        return tuple(min(s + 1, 3) for s in range(stages))
    if len(convs_per_stage) != stages or min(convs_per_stage) < 1:
        raise SettingError(
            f"convs_per_stage is {list(convs_per_stage)} and the topology has {stages} stages",
            hint="give one number above zero per stage, or leave it out",
        )
    return tuple(convs_per_stage)


def _widened(shape: Shape, kernel: int | None) -> Shape:
    if kernel is None:
        return shape
    if kernel < 1 or kernel % 2 == 0:
        raise SettingError(f"kernel is {kernel}, which has no middle", hint="give an odd number, 3 or 5")
    return tuple(kernel if size > 1 else 1 for size in shape)


def _down(c_in: int, c_out: int, stride: Shape, normalization: str) -> nn.Sequential:
    ndim = len(stride)
    conv = CONV[ndim](c_in, c_out, stride, stride, bias=normalization == "none")
    return nn.Sequential(conv, norm(normalization, c_out, ndim=ndim), PReLU(c_out))


def _up(c_in: int, c_out: int, stride: Shape, normalization: str) -> nn.Sequential:
    ndim = len(stride)
    conv = TRANSPOSED_CONV[ndim](c_in, c_out, stride, stride, bias=normalization == "none")
    return nn.Sequential(conv, norm(normalization, c_out, ndim=ndim), PReLU(c_out))


def _head(c_in: int, num_heads: int, kernel: Shape, *, wide: bool) -> nn.Module:
    conv = CONV[len(kernel)]
    if not wide:
        return conv(c_in, num_heads, 1)
    return nn.Sequential(conv(c_in, num_heads, kernel, padding="same"), PReLU(num_heads), conv(num_heads, num_heads, 1))
