"""The residual-encoder U-Net of nnU-Net (Isensee et al. 2024, "nnU-Net Revisited"), 2D and 3D.

Isensee et al. show in their table 2 that a U-Net whose encoder is a deep residual network, and whose decoder is as
thin as possible, gains most from more memory: the presets M, L and XL are one network planned for 9, 24 and 40 GB.

Shapes for S stages, widths f, blocks n, and R(s) the patch divided by the strides up to stage s:
    stem               (b, c, *R(0)) -> one convolution, norm, LeakyReLU -> (b, f[0], *R(0))
    encoder stage s    (b, f[s], *R(s)), n[s] residual blocks, the first one with the stage's stride
    decoder step s     (b, f[s+1], *R(s+1)) -> up -> (b, f[s], *R(s)) -> concatenated with the skip (b, 2 f[s], *R(s))
                       -> one convolution -> (b, f[s], *R(s))
    head s             1x1 convolution -> (b, heads, *R(s))

A residual block is conv-norm-LeakyReLU-conv-norm, added to its input, LeakyReLU. Where the block strides, the input is
averaged over the stride; where it changes the width, a bias-free 1x1 convolution and a norm follow (ResNet-D).

The paper leaves blocks, stem and decoder to its code, which is followed, but for the start: the scale of the last norm
of a block is 0.001 and not 0. The blocks are identities to three digits just the same (Goyal et al. 2017, 5.1), and
their convolutions learn from the first step. Generalised: nothing; the code as well takes kernel, stride and width of
every stage from a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from autoseg.errors import SettingError
from autoseg.nets.blocks import CONV, check_topology, initialize, upsampler
from autoseg.nets.outputs import halving_weights
from autoseg.nets.units import ConvUnit, Style, UnitStack, activation, decode, regular_topology
from autoseg.schema.architecture import PaperMode, Preset, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

AVERAGE_POOL: dict[int, Callable[..., nn.Module]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
_GIGABYTE = 10**9
_FIRST_SCALE = 0.001
_ACTIVE = Style()
_LINEAR = Style(activation="none")


class ResidualBlock(nn.Module):
    """``(b, c_in, *x)`` to ``(b, c_out, *x / stride)``."""

    def __init__(self, c_in: int, c_out: int, *, kernel: Shape, stride: Shape) -> None:
        super().__init__()
        ndim = len(kernel)
        one = (1,) * ndim
        last = ConvUnit(c_out, c_out, kernel=kernel, style=_LINEAR)
        nn.init.constant_(last.get_parameter("1.weight"), _FIRST_SCALE)
        self.residual = nn.Sequential(ConvUnit(c_in, c_out, kernel=kernel, stride=stride, style=_ACTIVE), last)
        self.skip = nn.Sequential()
        if stride != one:
            self.skip.append(AVERAGE_POOL[ndim](stride, stride))
        if c_in != c_out:
            self.skip.append(ConvUnit(c_in, c_out, kernel=one, style=_LINEAR, bias=False))
        self.act = activation(_ACTIVE.activation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.residual(x) + self.skip(x))
        return out


class ResidualStage(nn.Sequential):
    """``depth`` blocks in a row; the first one strides and changes the width."""

    def __init__(self, c_in: int, c_out: int, *, kernel: Shape, stride: Shape, depth: int) -> None:
        one = (1,) * len(kernel)
        super().__init__(
            *(
                ResidualBlock(c_out if i else c_in, c_out, kernel=kernel, stride=one if i else stride)
                for i in range(depth)
            )
        )


class ResidualEncoderUNet(nn.Module):
    """U-Net with a residual encoder; every decoder step has a head, as in ``UNet``.

    Args:
        blocks_per_stage: residual blocks of each encoder stage, finest first; stages beyond the list have as many as
            the last of it.
        blocks_per_step: convolution blocks of a decoder step.

    Raises:
        SettingError: fewer than two stages, a patch that the strides do not divide, or a stage without blocks.
    """

    traits: ClassVar[Traits] = Traits(
        paper="Isensee et al. 2024",
        summary="U-Net with a deep residual encoder and a thin decoder (nnU-Net ResEnc)",
        base_width_cpu=12,
        presets={
            "M": Preset(memory_bytes=9 * _GIGABYTE),
            "L": Preset(memory_bytes=24 * _GIGABYTE),
            "XL": Preset(memory_bytes=40 * _GIGABYTE),
        },
    )
    paper_modes: ClassVar[tuple[PaperMode, ...]] = (
        PaperMode(
            name="nnU-Net ResEnc 3D, 6 stages",
            topology=regular_topology((32, 64, 128, 256, 320, 320), ndim=3),
            patch_size=(128, 128, 128),
            in_channels=1,
            num_heads=3,
            parameters=102_350_575,
            note="the code's layout; the paper gives no count",
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
        blocks_per_stage: Sequence[int] = (1, 3, 4, 6),
        blocks_per_step: int = 1,
    ) -> None:
        super().__init__()
        check_topology(topology, patch_size)
        if not blocks_per_stage or min(blocks_per_stage) < 1:
            raise SettingError(
                f"blocks_per_stage is {list(blocks_per_stage)}",
                hint="give every stage at least one block, for instance [1, 3, 4, 6]",
            )
        widths, kernels, strides = topology.features, topology.kernels, topology.strides
        c_in = (widths[0], *widths)
        self.stem = ConvUnit(in_channels, widths[0], kernel=kernels[0], style=_ACTIVE)
        self.encoder = nn.ModuleList(
            ResidualStage(
                c_in[s],
                widths[s],
                kernel=kernels[s],
                stride=strides[s],
                depth=blocks_per_stage[min(s, len(blocks_per_stage) - 1)],
            )
            for s in range(topology.num_stages)
        )
        steps = range(topology.num_stages - 1)
        self.up = nn.ModuleList(upsampler(widths[s + 1], widths[s], stride=strides[s + 1]) for s in steps)
        self.decoder = nn.ModuleList(
            UnitStack(2 * widths[s], (widths[s],) * blocks_per_step, kernel=kernels[s], style=_ACTIVE) for s in steps
        )
        self.heads = nn.ModuleList(CONV[ndim](widths[s], num_heads, 1) for s in steps)
        self.output_weights = halving_weights(len(steps))
        self.apply(initialize)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, *spatial)`` to logits ``(b, heads, *spatial)``, finest first."""
        skips: list[Tensor] = []
        x = self.stem(x)
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        del x
        return decode(skips, up=self.up, steps=self.decoder, heads=self.heads, every_output=self.training)
