"""UCTransNet: a U-Net whose skips pass through a transformer over channels, 2D and 3D.

Wang et al. 2022 (AAAI 36, "UCTransNet: rethinking the skip connections in U-Net from a channel-wise perspective with
transformer"). The transformer (CCT), the channel cross attention (CCA) and the U-shape are in ``channel_transformer``.

Shapes for S stages of widths f, R(s) the patch divided by the strides up to stage s:
    encoder stage 0    one convolution -> (b, f[0], *R(0))
    encoder stage s    max-pooling by the stage's stride, two convolutions -> (b, f[s], *R(s))
    CCT                stages 0..S-2 -> as many maps of the same shapes
    decoder step s     nearest enlargement by the stride into stage s + 1, the skip through CCA, both concatenated,
                       two convolutions -> (b, f[s - 1], *R(s)), at the finest step (b, f[0], *R(0))
    head               1x1 convolution -> (b, heads, *R(0))

Generalised: strides, kernels, widths and the number of stages come from the plan; the token pitch (16 in the paper)
is the product of all strides. Instance normalisation replaces batch normalisation, and two attention heads the
paper's four, whose keys and values hold most of the weights; the paper's choices are arguments. The authors' code
has a sigmoid at its end for a single class; logits are given here.
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from autoseg.nets.blocks import MAX_POOL, check_topology
from autoseg.nets.channel_transformer import ChannelTransformerUNet, ConvNormReLU, conv_pair, decoder_width
from autoseg.schema.architecture import PaperMode, Preset, Recipe, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

# The paper's Adam at 1e-3; the authors' code lets the rate fall along cosines. No warm-up: attention scores are
# normalised, so early steps cannot saturate the softmax, and in trials no gradient's norm rose above 4.
RECIPE = Recipe(optimizer="adam", lr=1e-3, weight_decay=0.0, momentum=0.9, schedule="cosine")
PAPER = {"norm": "batch", "attention_heads": 4, "dropout": 0.1}
PAPER_TOPOLOGY = Topology(strides=((1, 1), *((2, 2),) * 4), kernels=((3, 3),) * 5, features=(64, 128, 256, 512, 512))


class UCTransNet(ChannelTransformerUNet):
    """UCTransNet; one output of full resolution in training and in evaluation.

    Args:
        layers: of the channel transformer.
        attention_heads: each has the full width; they are averaged.
        mlp_ratio: hidden width of the transformer's MLPs over their width.
        norm: ``instance``, or ``batch`` as in the paper, after convolutions.
        dropout: of tokens and of attention weights.

    Raises:
        SettingError: a patch that the strides do not divide, or a number of layers, heads ... that makes no sense.
    """

    traits: ClassVar[Traits] = Traits(
        paper="Wang et al. 2022",
        summary="U-Net whose skips exchange channels through a transformer",
        base_width=32,
        base_width_cpu=16,
        min_stages=3,
        max_stages=6,
        # Channels attend to each other by how they correlate over the tokens, so a few tokens would not do. With 8 per
        # axis the planner gives the paper's patch the paper's five stages and 14 tokens per axis.
        minimum_edge=8,
        recipe=RECIPE,
        presets={"paper": Preset(arguments={"attention_heads": 4, "dropout": 0.1}, base_width=64)},
    )
    paper_modes: ClassVar[tuple[PaperMode, ...]] = (
        PaperMode(
            name="2D",
            topology=PAPER_TOPOLOGY,
            patch_size=(224, 224),
            in_channels=3,
            num_heads=1,
            parameters=66_430_657,
            arguments=PAPER,
            note="the size of the authors' code, which is followed; the paper prints 65.6 M",
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
        layers: int = 4,
        attention_heads: int = 2,
        mlp_ratio: int = 4,
        norm: str = "instance",
        dropout: float = 0.0,
    ) -> None:
        check_topology(topology, patch_size)
        widths, kernels, strides = topology.features, topology.kernels, topology.strides
        encoder: list[nn.Module] = [ConvNormReLU(in_channels, widths[0], kernel=kernels[0], norm_kind=norm)]
        encoder += [
            nn.Sequential(
                MAX_POOL[ndim](strides[s], strides[s]),
                conv_pair(widths[s - 1], widths[s], kernel=kernels[s], norm_kind=norm),
            )
            for s in range(1, topology.num_stages)
        ]
        decoder = [
            conv_pair(
                decoder_width(widths, s + 1) + widths[s],
                decoder_width(widths, s),
                kernel=kernels[s],
                norm_kind=norm,
            )
            for s in range(topology.num_stages - 1)
        ]
        super().__init__(
            encoder=encoder,
            decoder=decoder,
            widths=widths,
            topology=topology,
            patch_size=patch_size,
            num_heads=num_heads,
            layers=layers,
            attention_heads=attention_heads,
            mlp_ratio=mlp_ratio,
            norm_kind=norm,
            dropout=dropout,
        )
