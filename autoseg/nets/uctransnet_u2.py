"""UCTransNet with two-branch downsampling and a decoder of small U-Nets, 2D and 3D.

A variant of UCTransNet (Wang et al. 2022) that was described in a report only; the file published with it cannot run
(a branch expects other widths than it gets, and the transformer other widths than the encoder makes). This is our
runnable interpretation of it, with UCTransNet's widths. CCT, CCA and the U-shape are in ``channel_transformer``.

Shapes for S stages of widths f, R(s) the patch divided by the strides up to stage s:
    encoder stage 0    one convolution -> (b, f[0], *R(0))
    encoder stage s    max-pooling by the stage's stride, then two branches of two convolutions each, ordinary and
                       dilated by 2, of (b, f[s] / 2, *R(s)) each, concatenated -> (b, f[s], *R(s))
    CCT                stages 0..S-2 -> as many maps of the same shapes
    decoder step s     nearest enlargement, the skip through CCA, both concatenated, then a U-Net of two levels whose
                       pooling is the stride into stage s + 1 -> (b, w, *R(s)), w = f[s - 1], at the finest step f[0]:
                           two convolutions -> a; pooling, two convolutions, transposed convolution -> b;
                           a and b concatenated, two convolutions
    head               1x1 convolution -> (b, heads, *R(0))

Generalised as UCTransNet is. An axis whose map has fewer than 7 voxels is not dilated: two dilated convolutions would
see mostly padding there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autoseg.nets.blocks import MAX_POOL, check_topology, stage_shapes, upsampler
from autoseg.nets.channel_transformer import ChannelTransformerUNet, ConvNormReLU, conv_pair, decoder_width
from autoseg.nets.uctransnet import PAPER, PAPER_TOPOLOGY, RECIPE
from autoseg.schema.architecture import PaperMode, Preset, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

# An axis with fewer voxels than this is not dilated.
LEAST_DILATED = 7


def _mode(name: str, parameters: int, note: str, **arguments: Any) -> PaperMode:
    settings: Mapping[str, Any] = PAPER | arguments
    return PaperMode(
        name=name,
        topology=PAPER_TOPOLOGY,
        patch_size=(224, 224),
        in_channels=3,
        num_heads=1,
        parameters=parameters,
        arguments=settings,
        note=note,
    )


class DualDown(nn.Module):
    """Max-pooling, then an ordinary and a dilated pair of convolutions side by side.

    ``(b, c_in, *spatial)`` to ``(b, sum of branches, *spatial / stride)``.

    Args:
        branches: channels of the ordinary and of the dilated branch.
    """

    def __init__(
        self, c_in: int, branches: tuple[int, int], *, kernel: Shape, stride: Shape, dilation: Shape, norm_kind: str
    ) -> None:
        super().__init__()
        self.pool = MAX_POOL[len(stride)](stride, stride)
        self.ordinary = conv_pair(c_in, branches[0], kernel=kernel, norm_kind=norm_kind)
        self.dilated = conv_pair(c_in, branches[1], kernel=kernel, norm_kind=norm_kind, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        return torch.cat((self.ordinary(x), self.dilated(x)), dim=1)


class SmallUNet(nn.Module):
    """A U-Net of two levels and a single width: ``(b, c_in, *spatial)`` to ``(b, c_out, *spatial)``.

    Args:
        kernels: of the fine and of the coarse level.
        stride: between the levels.
    """

    def __init__(self, c_in: int, c_out: int, *, kernels: tuple[Shape, Shape], stride: Shape, norm_kind: str) -> None:
        super().__init__()
        fine, coarse = kernels
        self.before = conv_pair(c_in, c_out, kernel=fine, norm_kind=norm_kind)
        self.below = nn.Sequential(
            MAX_POOL[len(stride)](stride, stride),
            conv_pair(c_out, c_out, kernel=coarse, norm_kind=norm_kind),
            upsampler(c_out, c_out, stride=stride),
        )
        self.after = conv_pair(2 * c_out, c_out, kernel=fine, norm_kind=norm_kind)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        result: Tensor = self.after(torch.cat((x, self.below(x)), dim=1))
        return result


class UCTransNetU2(ChannelTransformerUNet):
    """The two-branch variant of UCTransNet; one output of full resolution in training and in evaluation.

    Args:
        half_width: the branches have half of a stage's width each, so that the stage keeps it; otherwise both have
            all of it, and every stage but the first has twice the width of the topology.
        cca: without it the decoder takes the transformer's maps as they are.
        u2_decoder: decoder steps are small U-Nets; otherwise two convolutions, as in UCTransNet.
        layers, attention_heads, mlp_ratio, norm, dropout: as for ``UCTransNet``.

    Raises:
        SettingError: a patch that the strides do not divide, or a number of layers, heads ... that makes no sense.
    """

    traits: ClassVar[Traits] = Traits(
        paper="a variant of Wang et al. 2022",
        summary="UCTransNet with dilated branches and a decoder of small U-Nets",
        base_width=32,
        # Dilated bfloat16 convolutions of 20 or 24 channels have NaN gradients in oneDNN, as of torch 2.13.
        base_width_cpu=16,
        min_stages=3,
        max_stages=6,
        minimum_edge=8,
        recipe=RECIPE,
        presets={"paper": Preset(arguments={"attention_heads": 4, "dropout": 0.1}, base_width=64)},
    )
    paper_modes: ClassVar[tuple[PaperMode, ...]] = (
        _mode("2D", 68_124_865, "our runnable interpretation: the published file cannot run"),
        _mode("2D, plain decoder", 63_702_721, "as 2D, decoder steps of two convolutions", u2_decoder=False),
        _mode("2D, without CCA", 67_426_625, "as 2D, without channel cross attention", cca=False),
    )

    def __init__(
        self,
        *,
        topology: Topology,
        ndim: int,
        in_channels: int,
        num_heads: int,
        patch_size: Shape,
        half_width: bool = True,
        cca: bool = True,
        u2_decoder: bool = True,
        layers: int = 4,
        attention_heads: int = 2,
        mlp_ratio: int = 4,
        norm: str = "instance",
        dropout: float = 0.0,
    ) -> None:
        check_topology(topology, patch_size)
        branches = [_branches(width, half_width=half_width) for width in topology.features]
        widths = (topology.features[0], *(sum(pair) for pair in branches[1:]))
        shapes = stage_shapes(topology, patch_size)
        kernels, strides = topology.kernels, topology.strides
        encoder: list[nn.Module] = [ConvNormReLU(in_channels, widths[0], kernel=kernels[0], norm_kind=norm)]
        encoder += [
            DualDown(
                widths[s - 1],
                branches[s],
                kernel=kernels[s],
                stride=strides[s],
                dilation=tuple(2 if size >= LEAST_DILATED else 1 for size in shapes[s]),
                norm_kind=norm,
            )
            for s in range(1, topology.num_stages)
        ]
        super().__init__(
            encoder=encoder,
            decoder=_decoder(topology, widths, norm_kind=norm, u2_decoder=u2_decoder),
            widths=widths,
            topology=topology,
            patch_size=patch_size,
            num_heads=num_heads,
            layers=layers,
            attention_heads=attention_heads,
            mlp_ratio=mlp_ratio,
            norm_kind=norm,
            dropout=dropout,
            cca=cca,
        )


def _branches(width: int, *, half_width: bool) -> tuple[int, int]:
    return (width - width // 2, width // 2) if half_width else (width, width)


def _decoder(topology: Topology, widths: tuple[int, ...], *, norm_kind: str, u2_decoder: bool) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    for s in range(topology.num_stages - 1):
        c_in, c_out = decoder_width(widths, s + 1) + widths[s], decoder_width(widths, s)
        if u2_decoder:
            kernels, stride = (topology.kernels[s], topology.kernels[s + 1]), topology.strides[s + 1]
            blocks.append(SmallUNet(c_in, c_out, kernels=kernels, stride=stride, norm_kind=norm_kind))
        else:
            blocks.append(conv_pair(c_in, c_out, kernel=topology.kernels[s], norm_kind=norm_kind))
    return blocks
