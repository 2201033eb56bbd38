"""FCN: a classification network made convolutional, whose coarse class scores are upsampled and added up.

Long et al. 2015 and Shelhamer et al. 2017, in both figure 3. The encoder is VGG16's (Simonyan & Zisserman 2015), its
two hidden fully connected layers being a large convolution and a 1x1 one at the last stage. A score is a 1x1
convolution to the heads; FCN-32s upsamples that of the last stage at one go, 16s and 8s add those of one and two finer
levels on the way.

Shapes for S stages, widths f, and R(s) the patch divided by the strides up to stage s:
    encoder stage s    (b, f[s-1], *R(s-1)) -> max-pool -> 2 or 3 convolutions -> (b, f[s], *R(s))
    last stage         max-pool -> the kernel of the stage, then 1x1 -> (b, f[S-1], *R(S-1))
    score s            1x1 convolution -> (b, heads, *R(s))
    hop from t to s    (b, heads, *R(t)) -> transposed convolution -> (b, heads, *R(s)), plus score s; t = s + 1 except
                       for the last hop to stage 0 where not all levels are fused
``decoder="features"`` upsamples features in place of scores: a hop is transposed convolution -> norm -> ReLU at the
widths of the stages, from every stage to the next finer one, and a 1x1 convolution makes the logits at the end. The
simplification of FCN that tutorials show has ReLU -> norm (``norm_last``). With a normalisation over single images
that order would give every image the same mean logit, whether it shows the structure or not.

Generalised: 2D and 3D, any number of stages; kernels, strides and widths from the plan; instance normalisation behind
each convolution of the encoder, since the network is trained from scratch and not from ImageNet's weights. All levels
are fused, down to the voxels of the image: eight of them are wider than many a lesion. Scores are taken from the
stages, while the paper takes them from what the next stage's max-pool leaves (``taps="pools"``). Instead of training
32s, 16s and 8s one after another, each sum of scores is an output of its own; like there, the scores of the finer
levels start at zero.

Where paper and code differ: the text lets the network learn its upsampling from a bilinear start, the released nets
keep it bilinear. Here it is learned unless ``learned_upsampling`` is off. The paper pads the image by 100 pixels, so
that the unpadded 7x7 convolution has room, and crops the scores; here every convolution keeps the size.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from autoseg.errors import SettingError
from autoseg.nets.blocks import CONV, MAX_POOL, TRANSPOSED_CONV, check_topology, initialize, norm
from autoseg.nets.outputs import equal_weights, halving_weights
from autoseg.schema.architecture import PaperMode, Preset, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

DECODERS = ("scores", "features")
TAPS = ("stages", "pools")


def _vgg16(last_width: int, last_kernel: int) -> Topology:
    return Topology(
        strides=((1, 1), *((2, 2),) * 5),
        kernels=(*((3, 3),) * 5, (last_kernel, last_kernel)),
        features=(64, 128, 256, 512, 512, last_width),
    )


def _published(name: str, *, levels: int, parameters: int) -> PaperMode:
    return PaperMode(
        name=name,
        topology=_vgg16(4096, 7),
        patch_size=(512, 512),
        in_channels=3,
        num_heads=21,
        parameters=parameters,
        arguments={
            "levels": levels,
            "taps": "pools",
            "normalization": "none",
            "learned_upsampling": False,
            "deep_supervision": False,
            "dropout": 0.5,
        },
        note="the frozen bilinear upsampling is counted; sizes are kept in place of padding by 100 and cropping",
    )


class FCN(nn.Module):
    """Fully convolutional network with learned upsampling; by default one output per hop, as many as a U-Net's.

    Args:
        levels: how many levels are fused, from the coarsest on (1 is 32s, 3 is 8s); all if not given.
        decoder: ``scores`` adds class scores; ``features`` upsamples features and classifies at the end.
        decoder_widths: of ``features``, of all stages but the last; those of the encoder if not given.
        taps: take what is fused from the ``stages``, or from the ``pools`` in front of them.
        convs_per_stage: convolutions of each stage; 2, 2, 3, 3, ..., 2 as in VGG16 if not given.
        normalization: of the encoder: ``instance``, ``batch`` or ``none``.
        decoder_normalization: of ``features``.
        norm_last: of ``features``, normalise after the ReLU.
        learned_upsampling: of ``scores``, whether it learns or stays bilinear.
        deep_supervision: an output at every hop.
        dropout: rate behind each convolution of the last stage.

    Raises:
        SettingError: fewer than two stages, a patch that the strides do not divide, or an argument out of range.
    """

    traits: ClassVar[Traits] = Traits(
        paper="Long et al. 2015",
        summary="class scores of all stages, upsampled by learned convolutions and added; no decoder",
        # With no decoder, 48 is as cheap as a U-Net of 32.
        base_width=48,
        base_width_cpu=24,
        presets={
            "8s": Preset(arguments={"levels": 3}),
            "features": Preset(arguments={"decoder": "features"}),
        },
    )
    paper_modes: ClassVar[tuple[PaperMode, ...]] = (
        _published("FCN-32s", levels=1, parameters=136_152_917),
        _published("FCN-16s", levels=2, parameters=134_815_994),
        _published("FCN-8s", levels=3, parameters=134_489_759),
        PaperMode(
            name="VGG16 and five transposed convolutions",
            topology=_vgg16(512, 3),
            patch_size=(224, 224),
            in_channels=3,
            num_heads=21,
            parameters=18_644_373,
            arguments={
                "levels": 1,
                "decoder": "features",
                "decoder_widths": [32, 64, 128, 256, 512],
                "convs_per_stage": [2, 2, 3, 3, 3, 0],
                "normalization": "none",
                "decoder_normalization": "batch",
                "norm_last": True,
                "deep_supervision": False,
            },
            note="the tutorials' simplification: no fully connected layers, no fusion, everything learned",
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
        levels: int | None = None,
        decoder: str = "scores",
        decoder_widths: Sequence[int] | None = None,
        taps: str = "stages",
        convs_per_stage: Sequence[int] | None = None,
        normalization: str = "instance",
        decoder_normalization: str = "instance",
        norm_last: bool = False,
        learned_upsampling: bool = True,
        deep_supervision: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_topology(topology, patch_size)
        last = topology.num_stages - 1
        _check_choice("decoder", decoder, DECODERS)
        _check_choice("taps", taps, TAPS)
        depths = _per_stage(
            "convs_per_stage", convs_per_stage, (*(min(2 + s // 2, 3) for s in range(last)), 2), least=0
        )
        fused = _fused_levels(levels, last, finest=1 if taps == "pools" else 0)
        self.taps_pools = taps == "pools"
        self.deep_supervision = deep_supervision
        self.pools = nn.ModuleList(MAX_POOL[ndim](stride, stride) for stride in topology.strides[1:])
        self.encoder, widths = _encoder(topology, in_channels, depths, normalization, dropout)
        # Channels of what is tapped at each stage: a pool keeps those of the stage before it.
        tapped = (in_channels, *widths[:last]) if self.taps_pools else widths
        if decoder == "scores":
            self.levels = tuple(level for level in range(last) if level in fused or level == 0)
            z_widths = (num_heads,) * last
            self.start: nn.Module = CONV[ndim](widths[last], num_heads, 1)
        else:
            self.levels = tuple(range(last))
            z_widths = _per_stage("decoder_widths", decoder_widths, widths[:last], least=1)
            self.start = nn.Identity()
        self.hops = nn.ModuleList()
        self.heads = nn.ModuleList()
        for here, below in itertools.pairwise((*self.levels, last)):
            stride = _total_stride(topology, here, below)
            bias = decoder == "scores" or decoder_normalization == "none"
            lateral = CONV[ndim](tapped[here], z_widths[here], 1, bias=bias) if here in fused else None
            if decoder == "scores":
                self.hops.append(ScoreHop(num_heads, stride, lateral))
            else:
                c_in = widths[last] if below == last else z_widths[below]
                self.hops.append(
                    FeatureHop(c_in, z_widths[here], stride, lateral, decoder_normalization, norm_last=norm_last)
                )
            if deep_supervision or here == 0:
                self.heads.append(nn.Identity() if decoder == "scores" else CONV[ndim](z_widths[here], num_heads, 1))
        self.output_weights = halving_weights(len(self.heads)) if deep_supervision else equal_weights(1)
        self.apply(initialize)
        for hop in self.hops:
            if isinstance(hop, ScoreHop):
                hop.start_bilinear(learned=learned_upsampling)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, *spatial)`` to logits ``(b, heads, *spatial)``, finest first."""
        tapped: list[Tensor] = []
        for s, stage in enumerate(self.encoder):
            pooled = self.pools[s - 1](x) if s else x
            x = stage(pooled)
            tapped.append(pooled if self.taps_pools else x)
        z = self.start(x)
        outputs: list[Tensor] = []
        for index in reversed(range(len(self.hops))):
            z = self.hops[index](z, tapped[self.levels[index]])
            if index == 0 or (self.training and self.deep_supervision):
                outputs.append(self.heads[index](z))
        return tuple(reversed(outputs))


class ScoreHop(nn.Module):
    """``(b, heads, *coarse)`` scores to ``(b, heads, *coarse * stride)``, plus the scores of a finer level, if any."""

    def __init__(self, num_heads: int, stride: Shape, lateral: nn.Module | None) -> None:
        super().__init__()
        # The smallest kernel with which a transposed convolution can interpolate linearly.
        kernel = tuple(2 * step - step % 2 for step in stride)
        padding = tuple((size - step) // 2 for size, step in zip(kernel, stride, strict=True))
        self.up = TRANSPOSED_CONV[len(stride)](num_heads, num_heads, kernel, stride, padding=padding, bias=False)
        self.lateral = lateral
        self.stride = stride

    def start_bilinear(self, *, learned: bool) -> None:
        """Upsample every head by itself, linearly, and add nothing yet; ``learned`` lets the former change."""
        weight = self.up.get_parameter("weight")
        weight.data.copy_(bilinear(weight.shape[0], self.stride))
        weight.requires_grad_(learned)
        if self.lateral is not None:
            nn.init.zeros_(self.lateral.get_parameter("weight"))

    def forward(self, z: Tensor, tapped: Tensor) -> Tensor:
        z = self.up(z)
        return z if self.lateral is None else z + self.lateral(tapped)


class FeatureHop(nn.Module):
    """``(b, c_in, *coarse)`` to ``(b, c_out, *coarse * stride)``; adds a finer level, if any, before normalising."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        stride: Shape,
        lateral: nn.Module | None,
        normalization: str,
        *,
        norm_last: bool,
    ) -> None:
        super().__init__()
        ndim = len(stride)
        kernel = tuple(2 * step - 1 for step in stride)
        rest = tuple(step - 1 for step in stride)
        # A normalisation that follows at once takes a bias out again.
        bias = norm_last or normalization == "none"
        self.up = TRANSPOSED_CONV[ndim](c_in, c_out, kernel, stride, padding=rest, output_padding=rest, bias=bias)
        self.lateral = lateral
        self.norm = norm(normalization, c_out, ndim=ndim)
        self.norm_last = norm_last

    def forward(self, z: Tensor, tapped: Tensor) -> Tensor:
        z = self.up(z)
        if self.norm_last:
            z = torch.relu_(z)
        z = self.norm(z if self.lateral is None else z + self.lateral(tapped))
        return z if self.norm_last else torch.relu_(z)


def bilinear(channels: int, stride: Shape) -> Tensor:
    """Weights ``(channels, channels, *kernel)`` of a transposed convolution that interpolates each channel linearly."""
    ndim = len(stride)
    weights = torch.eye(channels).reshape(channels, channels, *(1,) * ndim)
    for axis, step in enumerate(stride):
        size = 2 * step - step % 2
        tent = 1 - (torch.arange(size) - (size - 1) / 2).abs() / step
        weights = weights * tent.reshape(*(size if other == axis else 1 for other in range(ndim)))
    return weights


def _encoder(
    topology: Topology, in_channels: int, depths: Sequence[int], normalization: str, dropout: float
) -> tuple[nn.ModuleList, tuple[int, ...]]:
    """The stages and their widths; one without convolutions keeps the width that it is given."""
    stages = nn.ModuleList()
    widths: list[int] = []
    c_in = in_channels
    for s, depth in enumerate(depths):
        kernel = topology.kernels[s]
        is_last = s == len(depths) - 1
        layers: list[nn.Module] = []
        for index in range(depth):
            # At the last stage: what the fully connected layers of a classifier become.
            size = (1,) * len(kernel) if is_last and index else kernel
            layers += _unit(c_in, topology.features[s], size, normalization, dropout if is_last else 0.0)
            c_in = topology.features[s]
        stages.append(nn.Sequential(*layers))
        widths.append(c_in)
    return stages, tuple(widths)


def _unit(c_in: int, c_out: int, kernel: Shape, normalization: str, dropout: float) -> list[nn.Module]:
    ndim = len(kernel)
    conv = CONV[ndim](c_in, c_out, kernel, padding="same", bias=normalization == "none")
    layers = [conv, norm(normalization, c_out, ndim=ndim), nn.ReLU(inplace=True)]
    return [*layers, nn.Dropout(dropout)] if dropout else layers


def _total_stride(topology: Topology, fine: int, coarse: int) -> Shape:
    total = topology.strides[fine + 1]
    for stride in topology.strides[fine + 2 : coarse + 1]:
        total = tuple(before * step for before, step in zip(total, stride, strict=True))
    return total


def _fused_levels(levels: int | None, last: int, *, finest: int) -> range:
    """The levels finer than the last one whose maps are added."""
    if levels is not None and levels < 1:
        raise SettingError(f"levels is {levels}", hint="fuse one level or more, or leave it out for all of them")
    return range(finest if levels is None else max(finest, last + 1 - levels), last)


def _per_stage(name: str, given: Sequence[int] | None, default: Sequence[int], *, least: int) -> tuple[int, ...]:
    if given is not None and (len(given) != len(default) or min(given) < least):
        raise SettingError(
            f"{name} is {list(given)}", hint=f"give {len(default)} numbers of {least} or more, finest stage first"
        )
    return tuple(default if given is None else given)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise SettingError(f"there is no {name} {value!r}", hint=f"choose one of: {', '.join(choices)}")
