"""TransUNet, a vision transformer between a convolutional encoder and decoder, 2D and 3D.

Chen et al. 2021 (figure 1, sections 3.1 and 3.2): a ResNet-50 without its last stage (group normalisation and
weight-standardised convolutions, as in the hybrid R50-ViT-B/16 of Dosovitskiy et al. 2021) brings the image to 1/16,
twelve transformer blocks relate all places of that map, and a cascaded upsampler goes back up with three skips from
the ResNet. No deep supervision.

Generalised: resolutions, kernels and widths are the topology's. The root convolution makes the first strided stage, a
max pooling the second, strided bottlenecks all further ones. The position table has the grid of the last stage. In
3D all layers have one axis more and bilinear upsampling becomes trilinear. Weights are random: ImageNet's exist for
2D colour images only, so the published recipe (SGD on pretrained weights) gives way to one for transformers from
scratch.

Shapes for S stages, widths f, R(s) the patch divided by the strides up to stage s, K = 12 f[1] the hidden size:
    root               7x7 convolution -> (b, f[1], *R(1)), skip 1
    encoder stage s    max pooling (s = 2), bottlenecks of inner width f[s] / 2 -> (b, 2 f[s], *R(s)), skip s
    transformer        1x1 embedding, positions, blocks -> (b, K, *R(S-1))
    widening           convolution -> (b, f[S-1], *R(S-1))
    decoder step s     resized to R(s), concatenated with skip s (none at s = 0), two convolutions -> (b, f[s], *R(s))
    head               convolution -> (b, heads, *R(0))
The paper's widths are 16, 64, 128, 256, 512; those of a plan double per stage.

The decoder has batch normalisation in paper mode and instance normalisation otherwise. Resizing aligns pixel centres,
where the released code aligns corners; its pooling, which loses a row of pixels, is padded here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import Parameter

from autoseg.errors import SettingError
from autoseg.nets.blocks import CONV, MAX_POOL, check_topology, initialize, norm, resize, stage_shapes
from autoseg.nets.outputs import equal_weights
from autoseg.nets.vit import VisionTransformer
from autoseg.schema.architecture import PaperMode, Preset, Recipe, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

# ViT-B's hidden size of 768 for ResNet-50's root of 64.
HIDDEN_PER_FEATURE = 12
# Bottlenecks narrower than this cannot be standardised: few weights with mean 0 and variance 1 have no freedom left.
NARROWEST = 4

_CONVOLVE: dict[int, Callable[..., Tensor]] = {2: F.conv2d, 3: F.conv3d}
_PAPER_TOPOLOGY = Topology(strides=((1, 1), *(((2, 2),) * 4)), kernels=((3, 3),) * 5, features=(16, 64, 128, 256, 512))


class TransUNet(nn.Module):
    """TransUNet; one output of full resolution.

    Args:
        hidden_size: width of the transformer, 12 times the width of the second stage if not given.
        transformer_blocks: depth of the transformer.
        encoder_blocks: bottlenecks of the third stage and of each one after it; surplus entries are ignored.
        root_kernel: edge of the first convolution, on axes where the topology has kernels larger than 1.
        dropout: of the transformer.
        norm_kind: of the decoder, ``instance`` or ``batch``.

    Raises:
        SettingError: fewer than two stages, a patch that the strides do not divide, a stage without bottlenecks, a
            root kernel without a centre, or a transformer without blocks.
    """

    traits: ClassVar[Traits] = Traits(
        paper="Chen et al. 2021",
        summary="ResNet encoder, vision transformer on its coarsest map, cascaded upsampler",
        base_width=32,
        base_width_cpu=8,
        # Five stages of stride 2 make the paper's map of 1/16 for the transformer.
        max_stages=5,
        recipe=Recipe(optimizer="adamw", lr=3e-4, weight_decay=1e-4, momentum=0.9, schedule="cosine", warmup=0.05),
        presets={
            "base": Preset(base_width=32),
            "large": Preset(base_width=32, arguments={"hidden_size": 1024, "transformer_blocks": 24}),
        },
    )
    paper_modes: ClassVar[tuple[PaperMode, ...]] = (
        PaperMode(
            name="Synapse 224x224",
            topology=_PAPER_TOPOLOGY,
            patch_size=(224, 224),
            in_channels=3,
            num_heads=9,
            parameters=105_277_081,
            arguments={"norm_kind": "batch", "dropout": 0.1},
            note="R50-ViT-B/16 of the released code; without its pretrained weights",
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
        hidden_size: int | None = None,
        transformer_blocks: int = 12,
        encoder_blocks: Sequence[int] = (3, 4, 9, 3),
        root_kernel: int = 7,
        dropout: float = 0.0,
        norm_kind: str = "instance",
    ) -> None:
        super().__init__()
        check_topology(topology, patch_size)
        widths, kernels = topology.features, topology.kernels
        hidden = hidden_size or HIDDEN_PER_FEATURE * widths[1]
        self.encoder = _encoder(in_channels, topology, encoder_blocks, root_kernel)
        encoder_width = _encoder_width(topology, topology.num_stages - 1)
        self.widening = ConvNormReLU(hidden, widths[-1], kernel=kernels[-1], norm_kind=norm_kind)
        self.decoder = nn.ModuleList(
            DecoderStep(
                widths[s + 1] + (_encoder_width(topology, s) if s else 0),
                widths[s],
                kernel=kernels[s],
                norm_kind=norm_kind,
            )
            for s in range(topology.num_stages - 1)
        )
        padding = tuple((size - 1) // 2 for size in kernels[0])
        self.head = CONV[ndim](widths[0], num_heads, kernels[0], padding=padding)
        self.apply(initialize)
        self.transformer = VisionTransformer(
            encoder_width,
            hidden,
            pitch=(1,) * ndim,
            grid=stage_shapes(topology, patch_size)[-1],
            depth=transformer_blocks,
            dropout=dropout,
        )
        self.output_weights = equal_weights(1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, *spatial)`` to one tensor of logits ``(b, heads, *spatial)``."""
        shapes = [tuple(x.shape[2:])]
        skips: list[Tensor | None] = [None]
        for stage in self.encoder:
            x = stage(x)
            shapes.append(tuple(x.shape[2:]))
            skips.append(x)
        _, x = self.transformer(x)
        x = self.widening(x)
        for s in reversed(range(len(self.decoder))):
            x = self.decoder[s](x, skips[s], shapes[s])
        return (self.head(x),)


class StandardizedConv(nn.Module):
    """A convolution without bias whose weights have mean 0 and variance 1 per output channel (Qiao et al. 2019).

    ``(b, c_in, *spatial)`` becomes ``(b, c_out, *spatial / stride)``.
    """

    def __init__(self, c_in: int, c_out: int, *, kernel: Shape, stride: Shape | None = None) -> None:
        super().__init__()
        self.weight = Parameter(torch.empty(c_out, c_in, *kernel))
        self.stride = stride or (1,) * len(kernel)
        self.padding = tuple((size - 1) // 2 for size in kernel)
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(1, self.weight.ndim))
        variance, mean = torch.var_mean(self.weight, dim=axes, correction=0, keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(variance + 1e-5)
        return _CONVOLVE[self.weight.ndim - 2](x, weight, stride=self.stride, padding=self.padding)


class Bottleneck(nn.Module):
    """Convolutions of 1, of the stage's kernel and of 1 around a narrow middle, with a shortcut (He et al. 2016).

    ``(b, c_in, *spatial)`` becomes ``(b, c_out, *spatial / stride)``.
    """

    def __init__(self, c_in: int, c_out: int, *, kernel: Shape, stride: Shape) -> None:
        super().__init__()
        inner = max(NARROWEST, c_out // 4)
        one = (1,) * len(kernel)
        self.body = nn.Sequential(
            StandardizedConv(c_in, inner, kernel=one),
            _group_norm(inner),
            nn.ReLU(inplace=True),
            StandardizedConv(inner, inner, kernel=kernel, stride=stride),
            _group_norm(inner),
            nn.ReLU(inplace=True),
            StandardizedConv(inner, c_out, kernel=one),
            _group_norm(c_out),
        )
        same = c_in == c_out and stride == one
        self.shortcut = nn.Sequential(
            *(() if same else (StandardizedConv(c_in, c_out, kernel=one, stride=stride), _group_norm(c_out)))
        )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.shortcut(x))


class ConvNormReLU(nn.Sequential):
    """Convolution without bias, normalisation, ReLU: ``(b, c_in, *spatial)`` to ``(b, c_out, *spatial)``."""

    def __init__(self, c_in: int, c_out: int, *, kernel: Shape, norm_kind: str) -> None:
        ndim = len(kernel)
        super().__init__(
            CONV[ndim](c_in, c_out, kernel, padding=tuple((size - 1) // 2 for size in kernel), bias=False),
            norm(norm_kind, c_out, ndim=ndim),
            nn.ReLU(inplace=True),
        )


class DecoderStep(nn.Module):
    """A coarser map and a skip to ``(b, c_out, *shape)``; ``c_in`` counts the channels of both."""

    def __init__(self, c_in: int, c_out: int, *, kernel: Shape, norm_kind: str) -> None:
        super().__init__()
        self.block = nn.Sequential(
            ConvNormReLU(c_in, c_out, kernel=kernel, norm_kind=norm_kind),
            ConvNormReLU(c_out, c_out, kernel=kernel, norm_kind=norm_kind),
        )

    def forward(self, x: Tensor, skip: Tensor | None, shape: Shape) -> Tensor:
        x = resize(x, shape)
        return self.block(x if skip is None else torch.cat((x, skip), dim=1))


def _encoder_width(topology: Topology, stage: int) -> int:
    """The root is as wide as the decoder at its resolution, all further stages twice as wide, as in ResNet-50."""
    return topology.features[stage] * (1 if stage == 1 else 2)


def _encoder(in_channels: int, topology: Topology, encoder_blocks: Sequence[int], root_kernel: int) -> nn.ModuleList:
    """One module per stage after the first."""
    blocks = list(encoder_blocks)[: topology.num_stages - 2]
    if len(blocks) < topology.num_stages - 2 or any(count < 1 for count in blocks):
        raise SettingError(
            f"encoder_blocks {list(encoder_blocks)} leaves a stage of {topology.num_stages} without bottlenecks",
            hint=f"give {topology.num_stages - 2} positive numbers, for the third stage and those after it",
        )
    stages = [_root(in_channels, topology, root_kernel)]
    for s, count in enumerate(blocks, start=2):
        c_in, c_out = _encoder_width(topology, s - 1), _encoder_width(topology, s)
        stride, one = topology.strides[s], (1,) * len(topology.strides[s])
        layers: list[nn.Module] = []
        if s == 2:
            layers.append(_max_pool(stride))
            stride = one
        for i in range(count):
            layers.append(
                Bottleneck(c_out if i else c_in, c_out, kernel=topology.kernels[s], stride=one if i else stride)
            )
        stages.append(nn.Sequential(*layers))
    return nn.ModuleList(stages)


def _root(in_channels: int, topology: Topology, root_kernel: int) -> nn.Module:
    if root_kernel < 1 or root_kernel % 2 == 0:
        raise SettingError(f"root_kernel is {root_kernel}", hint="give an odd number, so that the kernel has a centre")
    width, stride = topology.features[1], topology.strides[1]
    # Where kernels are 1, slices are far apart; a stride still has to see every voxel.
    kernel = tuple(
        root_kernel if size > 1 else 2 * step - 1 for size, step in zip(topology.kernels[1], stride, strict=True)
    )
    return nn.Sequential(
        StandardizedConv(in_channels, width, kernel=kernel, stride=stride), _group_norm(width), nn.ReLU(inplace=True)
    )


def _max_pool(stride: Shape) -> nn.Module:
    """Windows of 3 for a stride of 2, and of 1 along axes that keep their size."""
    return MAX_POOL[len(stride)](
        tuple(2 * step - 1 for step in stride), stride, padding=tuple(step - 1 for step in stride)
    )


def _group_norm(channels: int) -> nn.Module:
    """ResNet's 32 groups, or fewer, so that every group has at least two channels."""
    return nn.GroupNorm(math.gcd(32, channels // 2) if channels % 2 == 0 else 1, channels)
