"""The plain U-Net in the form of nnU-Net, 2D and 3D, with its published ancestors as settings.

Ronneberger et al. 2015 (2D) and Çiçek et al. 2016 (3D) in the configuration of Isensee et al. 2021: strided
convolutions in place of pooling, transposed convolutions with kernel = stride, instance normalisation, LeakyReLU and
deep supervision. Generalised: kernel, stride and width of every stage come from the plan.

Shapes for S stages, widths f, and R(s) the patch divided by the strides up to stage s:
    encoder stage s    (b, f[s], *R(s)), two blocks, the first one with the stage's stride
    decoder step s     (b, f[s+1], *R(s+1)) -> up -> (b, f[s], *R(s)) -> concatenated with the skip (b, 2 f[s], *R(s))
                       -> two blocks with the kernel of encoder stage s -> (b, f[s], *R(s))
    head s             1x1 convolution -> (b, heads, *R(s))

Where paper and practice differ: the two papers convolve without padding and crop the skips; here convolutions keep the
size, which changes no weight. Their dropout (0.5 in the U-Net of Zhou et al. 2018) is left out. The 19,069,955
parameters of Çiçek et al. come out only with up-convolutions that keep the width and have no bias, and without the
affine parameters of batch normalisation.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from autoseg.nets.blocks import CONV, TRANSPOSED_CONV, check_topology, initialize
from autoseg.nets.outputs import halving_weights
from autoseg.nets.units import Style, UnitStack, decode, pools, regular_topology
from autoseg.schema.architecture import PaperMode, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

_SAME_PADDING = "the paper's convolutions have no padding; the weights are the same"
_OF_2015 = {"normalization": "none", "activation": "relu", "max_pool": True, "deep_supervision": False}


class UNet(nn.Module):
    """Plain U-Net; every decoder step has a head (S - 1 logits in training, the finest one in evaluation).

    Args:
        blocks_per_stage: convolution blocks of an encoder stage.
        blocks_per_step: convolution blocks of a decoder step.
        normalization: ``instance``, ``batch`` or ``none``.
        activation: ``leaky_relu`` or ``relu``.
        max_pool: pool between the stages instead of striding.
        deep_supervision: without it there is one head, the finest.
        widen_last: only the last block of an encoder stage has the stage's width, the others half of it.
        up_keeps_width: up-convolutions keep the width of the map that they enlarge, and have no bias.

    Raises:
        SettingError: fewer than two stages, a patch that the strides do not divide, or an unknown style.
    """

    traits: ClassVar[Traits] = Traits(
        paper="Ronneberger et al. 2015; Isensee et al. 2021", summary="plain U-Net in the form of nnU-Net"
    )
    paper_modes: ClassVar[tuple[PaperMode, ...]] = (
        PaperMode(
            name="U-Net 2015",
            topology=regular_topology((64, 128, 256, 512, 1024), ndim=2),
            patch_size=(512, 512),
            in_channels=1,
            num_heads=2,
            parameters=31_030_658,
            arguments=_OF_2015,
            note=_SAME_PADDING,
        ),
        PaperMode(
            name="U-Net of the UNet++ authors",
            topology=regular_topology((32, 64, 128, 256, 512), ndim=2),
            patch_size=(96, 96),
            in_channels=1,
            num_heads=1,
            parameters=7_759_521,
            arguments=_OF_2015,
            note="the code's dropout of 0.5 is left out",
        ),
        PaperMode(
            name="wide U-Net",
            topology=regular_topology((35, 70, 140, 280, 560), ndim=2),
            patch_size=(96, 96),
            in_channels=1,
            num_heads=1,
            parameters=9_282_246,
            arguments=_OF_2015,
            note="the code's count; the paper's 9.13 M does not follow from its own list of widths",
        ),
        PaperMode(
            name="3D U-Net 2016",
            topology=regular_topology((64, 128, 256, 512), ndim=3),
            patch_size=(128, 128, 112),
            in_channels=3,
            num_heads=3,
            parameters=19_069_955,
            arguments={**_OF_2015, "normalization": "batch", "widen_last": True, "up_keeps_width": True},
            counted="without norms",
            note=_SAME_PADDING,
        ),
        PaperMode(
            name="nnU-Net 3D, 6 stages",
            topology=regular_topology((32, 64, 128, 256, 320, 320), ndim=3),
            patch_size=(128, 128, 128),
            in_channels=1,
            num_heads=3,
            parameters=31_196_399,
        ),
        PaperMode(
            name="nnU-Net 2D, 8 stages",
            topology=regular_topology((32, 64, 128, 256, 512, 512, 512, 512), ndim=2),
            patch_size=(512, 512),
            in_channels=1,
            num_heads=2,
            parameters=46_324_558,
        ),
        PaperMode(
            name="nnU-Net 2D, 6 stages",
            topology=regular_topology((32, 64, 128, 256, 512, 512), ndim=2),
            patch_size=(224, 224),
            in_channels=1,
            num_heads=9,
            parameters=20_626_061,
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
        blocks_per_stage: int = 2,
        blocks_per_step: int = 2,
        normalization: str = "instance",
        activation: str = "leaky_relu",
        max_pool: bool = False,
        deep_supervision: bool = True,
        widen_last: bool = False,
        up_keeps_width: bool = False,
    ) -> None:
        super().__init__()
        check_topology(topology, patch_size)
        style = Style(normalization=normalization, activation=activation)
        widths, kernels, strides = topology.features, topology.kernels, topology.strides
        stages, steps = range(topology.num_stages), range(topology.num_stages - 1)
        c_in = (in_channels, *widths)
        first = [width // 2 if widen_last else width for width in widths]
        self.pools = pools(topology) if max_pool else nn.ModuleList(nn.Identity() for _ in stages)
        self.encoder = nn.ModuleList(
            UnitStack(
                c_in[s],
                (first[s],) * (blocks_per_stage - 1) + (widths[s],),
                kernel=kernels[s],
                stride=None if max_pool else strides[s],
                style=style,
            )
            for s in stages
        )
        c_up = [widths[s + 1] if up_keeps_width else widths[s] for s in steps]
        self.up = nn.ModuleList(
            TRANSPOSED_CONV[ndim](widths[s + 1], c_up[s], strides[s + 1], strides[s + 1], bias=not up_keeps_width)
            for s in steps
        )
        self.decoder = nn.ModuleList(
            UnitStack(c_up[s] + widths[s], (widths[s],) * blocks_per_step, kernel=kernels[s], style=style)
            for s in steps
        )
        num_outputs = len(steps) if deep_supervision else 1
        self.heads = nn.ModuleList(CONV[ndim](widths[s], num_heads, 1) for s in range(num_outputs))
        self.output_weights = halving_weights(num_outputs)
        self.apply(initialize)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, *spatial)`` to logits ``(b, heads, *spatial)``, finest first."""
        skips: list[Tensor] = []
        for pool, stage in zip(self.pools, self.encoder, strict=True):
            x = stage(pool(x))
            skips.append(x)
        del x
        return decode(skips, up=self.up, steps=self.decoder, heads=self.heads, every_output=self.training)
