"""Swin-Unet: a U of Swin Transformer blocks without convolutions between embedding and head, 2D and 3D.

Cao et al. 2021 (arXiv 2105.05537, figure 1 and sections 3.1 to 3.6) and the authors' code. The last (up to) four stages
of the topology are S1.. with widths C, 2C, 4C, 8C; the strided stages before S1 are the patch embedding. So six stages
of stride 2 have an embedding of 4, and a base width of 24 makes tiny, C = 96. Shapes, with R(i) the patch divided by
the strides up to S(i), maps channels-last, and p the number of voxels that a stride merges (4 in 2D):

    embedding       (b, c, *patch) -> one conv, kernel = stride, LN -> (b, *R(1), C)
    encoder S(i)    two blocks, of which the second has shifted windows -> (b, *R(i), C(i)); the skip
    merging         p neighbours concatenated, LN, linear without bias: p C(i) -> C(i + 1)
    expanding       linear without bias C(i + 1) -> p C(i), rearranged to R(i), LN
    decoder step i  concatenated with the skip, linear 2 C(i) -> C(i), two blocks
    head            expanding to the patch (b, *patch, f[0]), LN, 1x1 conv without bias -> (b, heads, *patch)

Block: x += project(attention in windows of LN(x)); x += MLP(LN(x)), GELU, four times the width.

Generalised: strides and windows per axis, every map size, 2 to 4 stages. Windows have the size of the last stage's
map as in the paper (7 for 224), at most 12 (2D) or 7 (3D) voxels, and are cut down to the map. The paper's head
has C channels at full resolution; here it has the width that the topology gives to the finest stage, a quarter of
C behind an embedding of 4: in 3D the paper's would take more memory than all the rest.

Depths differ between the code's configuration, which lists a decoder stage with a single block, and what the code
builds, which is two blocks at each of three steps; the latter is followed, and has the published size. Its windows see
padding, which no published map has; here they do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from autoseg.nets.blocks import CONV, check_topology, stage_shapes
from autoseg.nets.windows import (
    SMALLEST_WINDOW,
    DropPath,
    WindowMixer,
    first_stage,
    fit_window,
    given_windows,
    head_size,
    join,
    per_stage,
    ramp,
    split,
)
from autoseg.schema.architecture import PaperMode, Preset, Recipe, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

# The largest of Swin Transformers in 2D (12, for images of 384) and of those for volumes.
LARGEST_WINDOW = {2: 12, 3: 7}


def _paper_modes() -> tuple[PaperMode, ...]:
    topology = Topology(strides=((1, 1), *((2, 2),) * 5), kernels=((3, 3),) * 6, features=(96, 48, 96, 192, 384, 768))
    return (
        PaperMode(
            name="tiny, 224",
            topology=topology,
            patch_size=(224, 224),
            in_channels=3,
            num_heads=9,
            parameters=27_168_900,
            arguments={"windows": [7, 7, 7, 7], "drop_path": 0.2},
            note="two blocks at every decoder step, as the code builds whatever its configuration says",
        ),
    )


class SwinUNet(nn.Module):
    """Swin-Unet; one logits tensor, in training and evaluation.

    Args:
        windows: for each of the last (up to) four stages a number of voxels, or one per axis; None: from the patch.
        depths: blocks of each encoder stage, or a list; ``decoder_depths`` likewise, finest first.
        drop_path: rate of stochastic depth of the deepest block, 0.2 in the paper's code; encoder and decoder rise to
            it from 0. A plan trains from scratch, for as long as there is time, and does without.

    Raises:
        SettingError: fewer than three stages, a patch that the strides do not divide, or lists of the wrong length.
    """

    # The paper's SGD at 0.05 fine-tunes weights pretrained on ImageNet. From scratch, Swin Transformers are trained
    # with AdamW, decay 0.05, warm-up and cosine (Liu et al. 2021, section 4.1); their 1e-3 is for batches of 1024, and
    # batches of a few patches need less.
    traits: ClassVar[Traits] = Traits(
        paper="Cao et al. 2021",
        summary="pure transformer: shifted windows in encoder and decoder; cheap and smooth, for large structures",
        base_width=24,
        base_width_cpu=16,
        max_width={2: 1024, 3: 1024},
        min_stages=3,
        max_stages=6,
        recipe=Recipe(
            optimizer="adamw", lr=3e-4, weight_decay=0.05, momentum=0.9, schedule="cosine", warmup=0.05, clip_norm=12.0
        ),
        presets={"tiny": Preset(base_width=24), "base": Preset(base_width=32)},
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
        depths: int | Sequence[int] = 2,
        decoder_depths: int | Sequence[int] = 2,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_topology(topology, patch_size)
        first = first_stage(topology)
        widths, strides = topology.features[first:], topology.strides[first:]
        shapes = stage_shapes(topology, patch_size)[first:]
        stages, steps = range(len(widths)), range(len(widths) - 1)
        reach = given_windows(windows, shapes) if windows is not None else default_windows(shapes)
        depth = per_stage(depths, len(stages), name="depths")
        back = per_stage(decoder_depths, len(steps), name="decoder_depths")
        rates = ramp(drop_path, sum(depth))
        begins = [sum(depth[:i]) for i in stages]
        size = head_size(widths)

        def blocks(i: int, count: int) -> nn.Sequential:
            # Decoder steps have the rates of their encoder stage; further blocks keep its last one.
            own = [rates[begins[i] + min(j, depth[i] - 1)] for j in range(count)]
            return nn.Sequential(
                *(
                    Block(widths[i], widths[i] // size, reach[i], shifted=j % 2 == 1, drop_path=rate)
                    for j, rate in enumerate(own)
                )
            )

        pitch = tuple(math.prod(stride[axis] for stride in topology.strides[: first + 1]) for axis in range(ndim))
        self.embed = CONV[ndim](in_channels, widths[0], pitch, pitch)
        self.embed_norm = nn.LayerNorm(widths[0])
        self.encoder = nn.ModuleList(blocks(i, depth[i]) for i in stages)
        self.merge = nn.ModuleList(Merging(widths[i], widths[i + 1], stride=strides[i + 1]) for i in steps)
        self.norm = nn.LayerNorm(widths[-1])
        self.expand = nn.ModuleList(Expanding(widths[i + 1], widths[i], stride=strides[i + 1]) for i in steps)
        self.fuse = nn.ModuleList(nn.Linear(2 * widths[i], widths[i]) for i in steps)
        self.decoder = nn.ModuleList(blocks(i, back[i]) for i in steps)
        self.decoder_norm = nn.LayerNorm(widths[0])
        self.to_patch = Expanding(widths[0], topology.features[0], stride=pitch)
        self.head = CONV[ndim](topology.features[0], num_heads, 1, bias=False)
        self.output_weights = (1.0,)
        self.apply(_initialize)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, *spatial)`` to logits ``(b, heads, *spatial)``."""
        x = self.embed_norm(self.embed(x).movedim(1, -1))
        skips: list[Tensor] = []
        for i, stage in enumerate(self.encoder):
            x = stage(self.merge[i - 1](x) if i else x)
            skips.append(x)
        x = self.norm(skips.pop())
        for step in reversed(range(len(self.fuse))):
            x = torch.cat((self.expand[step](x), skips.pop()), dim=-1)
            x = self.decoder[step](self.fuse[step](x))
        x = self.to_patch(self.decoder_norm(x))
        return (self.head(x.movedim(-1, 1)),)


class Block(nn.Module):
    """Attention within windows, then an MLP, each behind its layer norm; ``(b, *spatial, c)`` stays."""

    def __init__(self, width: int, heads: int, window: Shape, *, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.mixer = WindowMixer(width, heads=heads, window=window, shifted=shifted)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mixer(self.attention_norm(x)))
        out: Tensor = x + self.drop_path(self.mlp(x))
        return out


class Merging(nn.Module):
    """``(b, *spatial, c_in)`` to ``(b, *spatial / stride, c_out)``: neighbours side by side, then a projection."""

    def __init__(self, c_in: int, c_out: int, *, stride: Shape) -> None:
        super().__init__()
        self.stride = stride
        self.norm = nn.LayerNorm(math.prod(stride) * c_in)
        self.reduce = nn.Linear(math.prod(stride) * c_in, c_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        counts = [size // step for size, step in zip(x.shape[1:-1], self.stride, strict=True)]
        x = split(x, self.stride).reshape(x.shape[0], *counts, -1)
        merged: Tensor = self.reduce(self.norm(x))
        return merged


class Expanding(nn.Module):
    """``(b, *spatial, c_in)`` to ``(b, *spatial * stride, c_out)``: a projection makes every voxel its block."""

    def __init__(self, c_in: int, c_out: int, *, stride: Shape) -> None:
        super().__init__()
        self.stride = stride
        self.grow = nn.Linear(c_in, math.prod(stride) * c_out, bias=False)
        self.norm = nn.LayerNorm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        spatial = tuple(size * step for size, step in zip(x.shape[1:-1], self.stride, strict=True))
        voxels = self.grow(x).reshape(-1, math.prod(self.stride), *self.norm.normalized_shape)
        expanded: Tensor = self.norm(join(voxels, self.stride, spatial))
        return expanded


def default_windows(shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """The last stage's map at every stage, at least ``SMALLEST_WINDOW`` and at most ``LARGEST_WINDOW`` voxels."""
    last = fit_window(shapes[-1], LARGEST_WINDOW[len(shapes[0])])
    edges = tuple(max(edge, SMALLEST_WINDOW) for edge in last)
    return given_windows([edges] * len(shapes), shapes)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
