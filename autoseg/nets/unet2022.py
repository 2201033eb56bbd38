"""UNet-2022: self-attention and convolution side by side in every block of a U, 2D and 3D.

Guo et al. 2022 (arXiv 2210.15566, figure 2 and section 3) and the authors' code. The last (up to) four stages of the
topology are S1.. with widths C, 2C, 4C, 8C; the strided stages before S1 are the stem. So six stages of stride 2 have
a stem of 4, and a base width of 24 makes Tiny, C = 96. Shapes, with R(i) the patch divided by the strides up to S(i):

    stem            (b, c, *patch) -> (b, C, *R(1)); per strided stage: conv, stride, GELU, LN, conv (, GELU, LN)
    encoder S(i)    (b, C(i), *R(i)), three blocks; its layer norm is the skip, or at the last stage the bottleneck
    down            GELU, LN, strided conv, from the stage before its layer norm
    up              LN, transposed conv, + the skip (added, not concatenated), three blocks -> (b, C(i), *R(i))
    head i          upsampling by the stem's stride -> (b, heads, *patch / (R(1) / R(i))): 1, 1/2, 1/4 of the patch

Block: x += scale * MLP(LN(depthwise(x))), which is a block of ConvNeXt (Liu et al. 2022), and then
x += project(attention in windows + depthwise conv), both of LN(x) padded and shifted. The paper's words are "simple
parallelization"; in the code, which is followed, the ConvNeXt block comes first and the second half has no MLP.

Generalised: strides, kernels and windows per axis; every map size (the code has squares of one size); 2 to 4 stages.
    windows       those of the code follow from the crop: R(4), twice that at S3 (the whole map), computed here from
                  the patch, at least 4 and at most 20 (2D) or 8 (3D) voxels; the code's for 512 are an argument
    depthwise     kernel 7 in 2D; 3 in 3D, where 7 costs a fifth more operations and the same memory
    axes          with a topology kernel of 1 have kernels of 1 in every convolution of that stage
    padding       is attended to in the code, where no published map has any; here it is not
    heads         beyond the published strides 4 and 8: one transposed convolution inverts the two finest strides (one
                  for a stem of 2), and each one before takes a step of its own
    training      theirs is Adam with a constant rate and ImageNet weights of ConvNeXt; for ours see ``traits``
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, full, nn

from autoseg.errors import SettingError
from autoseg.nets.blocks import CONV, TRANSPOSED_CONV, check_topology, stage_shapes, upsampler
from autoseg.nets.windows import (
    SMALLEST_WINDOW,
    ChannelNorm,
    DropPath,
    WindowMixer,
    first_stage,
    fit_window,
    given_windows,
    head_size,
    per_stage,
    ramp,
)
from autoseg.schema.architecture import PaperMode, Preset, Recipe, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

# Windows of 400 to 512 voxels: maps of tokens x tokens stay below the memory of the convolutions.
LARGEST_WINDOW = {2: 20, 3: 8}
DEPTHWISE_KERNEL = {2: 7, 3: 3}


def _topology(base_width: int, *, ndim: int, stem: Sequence[Shape]) -> Topology:
    strides = ((1,) * ndim, *stem, *((2,) * ndim,) * 3)
    features = tuple(base_width * 2**stage for stage in range(len(strides)))
    return Topology(strides=strides, kernels=((3,) * ndim,) * len(strides), features=features)


def _paper_modes() -> tuple[PaperMode, ...]:
    two, three, flat = (2, 2), (2, 2, 2), (1, 2, 2)

    def mode(
        name: str,
        parameters: int,
        base_width: int,
        patch: Shape,
        *,
        heads: int = 2,
        channels: int = 1,
        stem: Sequence[Shape] = (two, two),
        note: str = "",
        **arguments: Any,
    ) -> PaperMode:
        return PaperMode(
            name=name,
            topology=_topology(base_width, ndim=len(patch), stem=stem),
            patch_size=patch,
            in_channels=channels,
            num_heads=heads,
            parameters=parameters,
            arguments={"drop_path": 0.2, **arguments},
            note=note,
        )

    def cube(name: str, parameters: int, base_width: int, edge: int, windows: list[int], kernel: int = 3) -> PaperMode:
        note = "measured on another implementation of the same generalisation"
        shape = (edge,) * 3
        return mode(name, parameters, base_width, shape, stem=(three, three), note=note, windows=windows, kernel=kernel)

    square, wide, fine = (224, 224), (320, 320), (512, 512)
    return (
        mode("Tiny, 224", 41_194_674, 24, square, heads=4),
        mode("Synapse_224", 72_929_187, 32, square, heads=9, note="Base; the trainer of the authors prints 72.93 M"),
        mode("ACDC_224", 163_080_024, 48, square, heads=4, note="Large; coarse heads exist and, unlike there, train"),
        mode("Synapse_320", 41_329_665, 24, wide, heads=9),
        mode("Synapse_320 as Base", 73_037_475, 32, wide, heads=9, note="the sizes of the code's first commits"),
        mode("EM_512", 42_065_940, 12, fine, stem=(two,) * 3, windows=[16, 16, 16, 8]),
        mode("ISIC_512", 42_026_628, 12, fine, channels=3, stem=(two,) * 3, windows=[8, 8, 16, 8]),
        cube("3D, kernel 7", 53_982_432, 24, 128, [4, 4, 8, 4], kernel=7),
        cube("3D, kernel 5", 51_219_936, 24, 128, [4, 4, 8, 4], kernel=5),
        cube("3D, kernel 3", 49_978_080, 24, 128, [4, 4, 8, 4]),
        cube("3D, windows 8", 50_141_808, 24, 128, [8, 8, 8, 4]),
        cube("3D, C=48", 12_844_344, 12, 128, [4, 4, 8, 4]),
        cube("3D, 96", 49_803_444, 24, 96, [3, 3, 6, 3]),
        cube("3D, 160", 50_277_564, 24, 160, [5, 5, 10, 5]),
        mode(
            "3D, thick slices",
            51_765_984,
            24,
            (16, 256, 256),
            stem=(flat, flat),
            windows=[[4, 8, 8], [4, 8, 8], [4, 16, 16], [2, 8, 8]],
            kernel=[3, 7, 7],
            note="measured on another implementation of the same generalisation",
        ),
    )


class UNet2022(nn.Module):
    """UNet-2022; every decoder stage has a head (one to three logits in training, the finest one in evaluation).

    Args:
        windows: for each of the last (up to) four stages a number of voxels, or one per axis; None: from the patch.
        kernel: of the depthwise convolutions, or one per axis; None: 7 in 2D and 3 in 3D.
        depths: blocks of each encoder stage, or a list; ``decoder_depths`` likewise, finest first.
        drop_path: rate of stochastic depth of the deepest block, 0.2 in the paper's code; encoder and decoder rise to
            it from 0. A plan trains from scratch, for as long as there is time, and does without.

    Raises:
        SettingError: fewer than three stages, a patch that the strides do not divide, or lists of the wrong length.
    """

    # The paper's constant rate of Adam relies on pretrained weights and on picking the best epoch. Without either:
    # decoupled decay against overfitting, a warm-up (at first the scale of 1e-6 makes half of every block an identity,
    # and gradients of attention are erratic), and a rate that anneals, so that the last epoch is a good one. 3e-4 lies
    # between the 1e-4 of fine-tuning and the 7e-4 that the authors use for EM.
    traits: ClassVar[Traits] = Traits(
        paper="Guo et al. 2022",
        summary="attention in windows beside depthwise convolution, behind a strided stem; for large structures",
        base_width=24,
        base_width_cpu=12,
        max_width={2: 1536, 3: 1536},
        min_stages=3,
        max_stages=6,
        recipe=Recipe(
            optimizer="adamw", lr=3e-4, weight_decay=0.05, momentum=0.9, schedule="cosine", warmup=0.05, clip_norm=12.0
        ),
        presets={
            "tiny": Preset(base_width=24),
            "base": Preset(base_width=32),
            "large": Preset(base_width=48),
        },
    )
    paper_modes: ClassVar[tuple[PaperMode, ...]] = _paper_modes()

    def __init__(
        self,
        *,
        topology: Topology,
        ndim: int,
        in_channels: int,
        num_heads: int,
        patch_size: Shape,
        windows: Sequence[int | Sequence[int]] | None = None,
        kernel: int | Sequence[int] | None = None,
        depths: int | Sequence[int] = 3,
        decoder_depths: int | Sequence[int] = 3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_topology(topology, patch_size)
        first = first_stage(topology)
        widths, strides = topology.features[first:], topology.strides[first:]
        kernels, shapes = topology.kernels[first:], stage_shapes(topology, patch_size)[first:]
        stages, steps = range(len(widths)), range(len(widths) - 1)
        reach = given_windows(windows, shapes) if windows is not None else default_windows(shapes)
        taps = [_depthwise_kernel(kernel, allowed) for allowed in kernels]
        size = head_size(widths)

        def blocks(counts: int | Sequence[int], number: int, name: str) -> nn.ModuleList:
            depth = per_stage(counts, number, name=name)
            rates = ramp(drop_path, sum(depth))
            begins = [sum(depth[:i]) for i in range(number)]
            return nn.ModuleList(
                BlockStack(widths[i], widths[i] // size, taps[i], reach[i], rates=rates[begin : begin + depth[i]])
                for i, begin in enumerate(begins)
            )

        self.stem = _stem(topology, first, in_channels)
        self.encoder = blocks(depths, len(stages), "depths")
        self.norms = nn.ModuleList(ChannelNorm(width) for width in widths)
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.GELU(),
                ChannelNorm(widths[i]),
                _conv(widths[i], widths[i + 1], kernel=kernels[i + 1], stride=strides[i + 1]),
            )
            for i in steps
        )
        self.up = nn.ModuleList(
            nn.Sequential(ChannelNorm(widths[i + 1]), upsampler(widths[i + 1], widths[i], stride=strides[i + 1]))
            for i in steps
        )
        self.decoder = blocks(decoder_depths, len(steps), "decoder_depths")
        self.heads = nn.ModuleList(_head(topology, first, widths[i], num_heads) for i in steps)
        # 4/7, 2/7, 1/7: here the coarsest counts too, having a quarter of the patch's resolution.
        self.output_weights = tuple(2 ** (len(steps) - 1 - i) / (2 ** len(steps) - 1) for i in steps)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, *spatial)`` to logits ``(b, heads, *spatial / stride)``, finest first."""
        x = self.stem(x)
        skips: list[Tensor] = []
        for i, stage in enumerate(self.encoder):
            x = stage(self.down[i - 1](x) if i else x)
            skips.append(self.norms[i](x))
        x = skips.pop()
        outputs: list[Tensor] = []
        for step in reversed(range(len(self.up))):
            x = self.decoder[step](self.up[step](x) + skips.pop())
            if self.training or step == 0:
                outputs.append(self.heads[step](x))
        return tuple(reversed(outputs))


class BlockStack(nn.Module):
    """Blocks of one stage, every second one with shifted windows; ``(b, c, *spatial)`` stays."""

    def __init__(self, width: int, heads: int, kernel: Shape, window: Shape, *, rates: Sequence[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(width, heads, kernel, window, shifted=i % 2 == 1, drop_path=rate) for i, rate in enumerate(rates)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        for block in self.blocks:
            x = block(x)
        return x.movedim(-1, 1)


class Block(nn.Module):
    """A block of ConvNeXt, then attention and convolution side by side; ``(b, *spatial, c)`` stays."""

    def __init__(
        self, width: int, heads: int, kernel: Shape, window: Shape, *, shifted: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.depthwise = _conv(width, width, kernel=kernel, groups=width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.scale = nn.Parameter(full((width,), 1e-6))
        self.norm = nn.LayerNorm(width)
        beside = _conv(width, width, kernel=kernel, groups=width)
        self.mixer = WindowMixer(width, heads=heads, window=window, shifted=shifted, beside=beside)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.scale * self.mlp(self.depthwise(x.movedim(-1, 1)).movedim(1, -1)))
        out: Tensor = x + self.drop_path(self.mixer(self.norm(x)))
        return out


def default_windows(shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """The windows behind the published numbers, from the maps of S1..: the whole map at the last two stages, and the
    last one's size at the others; between ``SMALLEST_WINDOW`` and ``LARGEST_WINDOW``, no larger than the map.
    """
    limit = LARGEST_WINDOW[len(shapes[0])]
    last = fit_window(shapes[-1], limit)
    before = (
        tuple(min(size, max(edge, SMALLEST_WINDOW)) for size, edge in zip(shape, last, strict=True))
        for shape in shapes[:-2]
    )
    return (*before, fit_window(shapes[-2], limit), last)


def _depthwise_kernel(kernel: int | Sequence[int] | None, allowed: Shape) -> Shape:
    wanted = DEPTHWISE_KERNEL[len(allowed)] if kernel is None else kernel
    sizes = (wanted,) * len(allowed) if isinstance(wanted, int) else tuple(wanted)
    if len(sizes) != len(allowed) or any(size % 2 == 0 for size in sizes):
        raise SettingError(f"kernel is {kernel!r}", hint=f"give an odd number, or {len(allowed)} of them")
    return tuple(1 if most == 1 else size for size, most in zip(sizes, allowed, strict=True))


def _conv(c_in: int, c_out: int, *, kernel: Shape, stride: Shape | int = 1, groups: int = 1) -> nn.Module:
    padding = tuple((size - 1) // 2 for size in kernel)
    return CONV[len(kernel)](c_in, c_out, kernel, stride, padding=padding, groups=groups)


def _stem(topology: Topology, first: int, in_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    c_in = in_channels
    for stage in range(1, first + 1):
        width, kernel = topology.features[stage], topology.kernels[stage]
        layers += [_conv(c_in, width, kernel=kernel, stride=topology.strides[stage]), nn.GELU(), ChannelNorm(width)]
        layers += [_conv(width, width, kernel=kernel)]
        if stage < first:
            layers += [nn.GELU(), ChannelNorm(width)]
        c_in = width
    return nn.Sequential(*layers, ChannelNorm(c_in))


def _head(topology: Topology, first: int, width: int, num_heads: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for stage in range(first, 2, -1):
        half = max(1, width // 2)
        stride, kernel = topology.strides[stage], topology.kernels[stage]
        layers += [upsampler(width, half, stride=stride), nn.GELU(), ChannelNorm(half)]
        layers += [_conv(half, half, kernel=kernel), nn.GELU(), ChannelNorm(half)]
        width = half
    ndim = len(topology.strides[0])
    rest = tuple(topology.strides[1][axis] * (topology.strides[2][axis] if first > 1 else 1) for axis in range(ndim))
    return nn.Sequential(*layers, TRANSPOSED_CONV[ndim](width, num_heads, rest, rest))
