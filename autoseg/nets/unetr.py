"""UNETR, a U-Net whose encoder is a vision transformer, 2D and 3D.

Hatamizadeh et al. 2021 (figure 2, section 3.1): twelve transformer blocks on patches of 16 voxels see the whole
volume from the first layer on; the tokens after blocks 3, 6 and 9 are brought up to 1/2, 1/4 and 1/8 resolution and
are the skips of a convolutional decoder that starts from the last tokens. No deep supervision.

Generalised: the pitch of the tokens is the product of the topology's strides, e.g. (2, 16, 16); every transposed
convolution has the stride of its stage; there is a skip at every stage between the image and the tokens, from evenly
spaced blocks; the transformer's width follows the decoder's. The last entry of the topology's widths has no use.

Shapes for S stages, widths f, R(s) the patch divided by the strides up to stage s, K = 48 f[0] the hidden size:
    transformer        (b, K, *R(S-1)) after the tapped blocks i depth / (S-1) for i = 1 .. S-2, and after the last
    skip 0             the image through a residual block -> (b, f[0], *R(0))
    skip s             block s depth / (S-1) -> up -> (b, f[s], *R(S-2)) -> {up, residual block} until R(s)
    decoder step s     (b, f[s+1] or K, *R(s+1)) -> up -> (b, f[s], *R(s)) -> concatenated with skip s
                       -> residual block -> (b, f[s], *R(s))
    head               1x1 convolution -> (b, heads, *R(0))

Where paper and code (MONAI) differ: blocks 3, 6 and 9 of twelve are tapped as in the paper, not 4, 7 and 10; the
convolutions are the code's (residual blocks with instance normalisation and LeakyReLU, in place of batch
normalisation and ReLU, and widths from 16 in place of 64). Normalisation with affine parameters is ours; paper mode
goes without, as the code does.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from autoseg.nets.blocks import CONV, INSTANCE_NORM, SLOPE, TRANSPOSED_CONV, check_topology, initialize, stage_shapes
from autoseg.nets.outputs import equal_weights
from autoseg.nets.vit import VisionTransformer
from autoseg.schema.architecture import PaperMode, Preset, Recipe, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

# The paper's hidden size of 768 for the code's feature size of 16.
HIDDEN_PER_FEATURE = 48

_PAPER_TOPOLOGY = Topology(
    strides=((1, 1, 1), *(((2, 2, 2),) * 4)), kernels=((3, 3, 3),) * 5, features=(16, 32, 64, 128, 256)
)
_PAPER_NOTE = (
    "MONAI's layers, whose normalisations have no parameters, without the cross-attention norms that it never uses; "
    "blocks 3, 6 and 9 are tapped as in the paper, which changes no count"
)


class UNETR(nn.Module):
    """UNETR; one output of full resolution.

    Args:
        hidden_size: width of the transformer, 48 times the width of the first stage if not given.
        transformer_blocks: depth of the transformer.
        attention_bias: whether queries, keys and values have biases.
        dropout: of the transformer.
        affine: whether the instance normalisations have parameters.

    Raises:
        SettingError: fewer than two stages, a patch that the strides do not divide, or a transformer without blocks.
    """

    traits: ClassVar[Traits] = Traits(
        paper="Hatamizadeh et al. 2021",
        summary="vision transformer as encoder, convolutional decoder with a skip from every third block",
        base_width=16,
        base_width_cpu=6,
        # Five stages of stride 2 make the paper's tokens of 16 voxels; it found tokens of 32 to be worse.
        max_stages=5,
        recipe=Recipe(optimizer="adamw", lr=1e-4, weight_decay=1e-5, momentum=0.9, schedule="cosine", warmup=0.01),
        presets={
            "base": Preset(base_width=16),
            "wide": Preset(base_width=32, arguments={"hidden_size": 768}),
        },
    )
    paper_modes: ClassVar[tuple[PaperMode, ...]] = (
        PaperMode(
            name="BTCV 96x96x96",
            topology=_PAPER_TOPOLOGY,
            patch_size=(96, 96, 96),
            in_channels=1,
            num_heads=14,
            parameters=92_784_046,
            arguments={"affine": False},
            note=_PAPER_NOTE,
        ),
        PaperMode(
            name="BraTS 128x128x128",
            topology=_PAPER_TOPOLOGY,
            patch_size=(128, 128, 128),
            in_channels=4,
            num_heads=3,
            parameters=102_449_715,
            arguments={"affine": False},
            note=_PAPER_NOTE,
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
        attention_bias: bool = False,
        dropout: float = 0.0,
        affine: bool = True,
    ) -> None:
        super().__init__()
        check_topology(topology, patch_size)
        widths, kernels, strides = topology.features, topology.kernels, topology.strides
        hidden = hidden_size or HIDDEN_PER_FEATURE * widths[0]
        steps = range(topology.num_stages - 1)
        self.image_skip = ResidualBlock(in_channels, widths[0], kernel=kernels[0], affine=affine)
        self.token_skips = nn.ModuleList(TokenSkip(hidden, topology, stage=s, affine=affine) for s in steps[1:])
        self.decoder = nn.ModuleList(
            DecoderStep(
                hidden if s == steps[-1] else widths[s + 1],
                widths[s],
                kernel=kernels[s],
                stride=strides[s + 1],
                affine=affine,
            )
            for s in steps
        )
        self.head = CONV[ndim](widths[0], num_heads, 1)
        self.apply(initialize)
        self.transformer = VisionTransformer(
            in_channels,
            hidden,
            pitch=topology.divisor,
            grid=stage_shapes(topology, patch_size)[-1],
            depth=transformer_blocks,
            taps=evenly_spaced(transformer_blocks, len(self.token_skips)),
            bias=attention_bias,
            dropout=dropout,
        )
        self.output_weights = equal_weights(1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, *spatial)`` to one tensor of logits ``(b, heads, *spatial)``."""
        tapped, tokens = self.transformer(x)
        skips = [self.image_skip(x), *(skip(tap) for skip, tap in zip(self.token_skips, tapped, strict=True))]
        x = tokens
        for step, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = step(x, skip)
        return (self.head(x),)


def evenly_spaced(depth: int, count: int) -> tuple[int, ...]:
    """Blocks, counted from 1, that cut a transformer into ``count + 1`` equal parts: 3, 6 and 9 of 12."""
    return tuple(max(1, round(depth * part / (count + 1))) for part in range(1, count + 1))


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, projected where the width changes.

    ``(b, c_in, *spatial)`` becomes ``(b, c_out, *spatial)``.
    """

    def __init__(self, c_in: int, c_out: int, *, kernel: Shape, affine: bool) -> None:
        super().__init__()
        one = (1,) * len(kernel)
        self.body = nn.Sequential(
            *_conv_norm(c_in, c_out, kernel=kernel, affine=affine),
            nn.LeakyReLU(SLOPE, inplace=True),
            *_conv_norm(c_out, c_out, kernel=kernel, affine=affine),
        )
        self.shortcut = nn.Sequential(*(_conv_norm(c_in, c_out, kernel=one, affine=affine) if c_in != c_out else ()))
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.shortcut(x))


class TokenSkip(nn.Sequential):
    """Tokens up to the resolution of a stage: ``(b, hidden, *R(S-1))`` to ``(b, f[stage], *R(stage))``."""

    def __init__(self, hidden: int, topology: Topology, *, stage: int, affine: bool) -> None:
        width, strides = topology.features[stage], topology.strides
        layers = [_enlarge(hidden, width, stride=strides[-1])]
        for reached in reversed(range(stage, topology.num_stages - 2)):
            layers.append(_enlarge(width, width, stride=strides[reached + 1]))
            layers.append(ResidualBlock(width, width, kernel=topology.kernels[reached], affine=affine))
        super().__init__(*layers)


class DecoderStep(nn.Module):
    """``(b, c_in, *spatial / stride)`` and a skip ``(b, c_out, *spatial)`` to ``(b, c_out, *spatial)``."""

    def __init__(self, c_in: int, c_out: int, *, kernel: Shape, stride: Shape, affine: bool) -> None:
        super().__init__()
        self.enlarge = _enlarge(c_in, c_out, stride=stride)
        self.block = ResidualBlock(2 * c_out, c_out, kernel=kernel, affine=affine)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(torch.cat((self.enlarge(x), skip), dim=1))


def _conv_norm(c_in: int, c_out: int, *, kernel: Shape, affine: bool) -> tuple[nn.Module, nn.Module]:
    ndim = len(kernel)
    padding = tuple((size - 1) // 2 for size in kernel)
    return (
        CONV[ndim](c_in, c_out, kernel, padding=padding, bias=False),
        INSTANCE_NORM[ndim](c_out, eps=1e-5, affine=affine),
    )


def _enlarge(c_in: int, c_out: int, *, stride: Shape) -> nn.Module:
    return TRANSPOSED_CONV[len(stride)](c_in, c_out, stride, stride, bias=False)
