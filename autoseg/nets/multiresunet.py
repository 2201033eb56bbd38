"""MultiResUNet: three chained convolutions per block stand in for kernels of 3, 5 and 7, and skips are refined.

Ibtehaz & Rahman 2020, sections 3.1 to 3.3. A stage of the plan with width U has a budget of W = 1.67 U, split among
the chain as floor(0.167 W), floor(0.333 W) and floor(0.5 W): for U = 32 to 512 the stages are 51, 105, 212, 426 and
853 wide. A Res path of 4, 3, 2, 1 residual units (finest first) with width U narrows the gap between encoder and
decoder.

Shapes for S stages, widths U, block widths f of them, and R(s) the patch divided by the strides up to stage s:
    encoder stage s    (b, f[s-1], *R(s-1)) -> max-pool -> MultiRes block -> (b, f[s], *R(s))
    Res path s         (b, f[s], *R(s)) -> (b, U[s], *R(s))
    decoder step s     (b, f[s+1], *R(s+1)) -> transposed convolution -> (b, U[s], *R(s)) -> concatenated with the
                       Res path (b, 2 U[s], *R(s)) -> MultiRes block -> (b, f[s], *R(s))
    head               1x1 convolution -> (b, heads, *R(0)); there is one output, as in the paper

The authors' Keras code is followed, which gives the published sizes in Keras' accounting (running statistics are
counted): convolutions have no bias, the normalisation right behind one has no scale, which the next layer can absorb,
and sums pass ReLU before their normalisation. The authors' later PyTorch code differs in all three.

Generalised: 2D and 3D, any number of stages, kernels and strides from the plan, a Res path of min(4, S - 1 - s)
units, instance in place of batch normalisation. Two normalisations are only in the paper modes, that at the end of the
last block and that behind the head: over a single image they would give every image the same mean logit, whether it
shows the structure or not.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from autoseg.errors import SettingError
from autoseg.nets.blocks import CONV, MAX_POOL, check_topology, initialize, norm, upsampler
from autoseg.nets.outputs import equal_weights
from autoseg.schema.architecture import PaperMode, Recipe, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

# Share of each convolution of the chain, and the budget in multiples of the stage's width.
_SHARES = (0.167, 0.333, 0.5)
_BUDGET = 1.67
_LONGEST_PATH = 4


def _paper_mode(patch_size: Shape, *, in_channels: int, parameters: int) -> PaperMode:
    ndim = len(patch_size)
    return PaperMode(
        name=f"{ndim}D",
        topology=Topology(
            strides=((1,) * ndim, *((2,) * ndim,) * 4), kernels=((3,) * ndim,) * 5, features=(32, 64, 128, 256, 512)
        ),
        patch_size=patch_size,
        in_channels=in_channels,
        num_heads=1,
        parameters=parameters,
        arguments={"normalization": "batch", "final_norms": True},
        counted="stored",
        note="the authors' Keras code; their PyTorch code has another order, biases and scales",
    )


class MultiResUNet(nn.Module):
    """MultiResUNet; one output.

    Args:
        normalization: ``instance`` or ``batch``.
        final_norms: normalise at the end of the last block and behind the head's convolution, which then has no bias.

    Raises:
        SettingError: fewer than two stages, a patch that the strides do not divide, or another normalisation.
    """

    traits: ClassVar[Traits] = Traits(
        paper="Ibtehaz & Rahman 2020",
        summary="blocks of three chained convolutions, residual paths instead of plain skips",
        base_width_cpu=8,
        # The paper's rate is constant; a decay costs nothing and averages the last steps' noise.
        recipe=Recipe(optimizer="adam", lr=1e-3, weight_decay=0.0, momentum=0.9),
    )
    paper_modes: ClassVar[tuple[PaperMode, ...]] = (
        _paper_mode((192, 256), in_channels=3, parameters=7_262_750),
        _paper_mode((80, 80, 48), in_channels=4, parameters=18_657_689),
    )

    def __init__(
        self,
        *,
        topology: Topology,
        ndim: int,
        in_channels: int,
        num_heads: int,
        patch_size: Shape,
        normalization: str = "instance",
        final_norms: bool = False,
    ) -> None:
        super().__init__()
        check_topology(topology, patch_size)
        if normalization not in {"instance", "batch"}:
            raise SettingError(f"there is no normalisation {normalization!r} here", hint="choose instance or batch")
        widths, kernels, strides = topology.features, topology.kernels, topology.strides
        steps = range(topology.num_stages - 1)
        out = tuple(sum(branch_widths(width)) for width in widths)
        c_in = (in_channels, *out)
        self.pools = nn.ModuleList(MAX_POOL[ndim](stride, stride) for stride in strides[1:])
        self.encoder = nn.ModuleList(
            MultiResBlock(c_in[s], branch_widths(widths[s]), kernels[s], normalization)
            for s in range(topology.num_stages)
        )
        self.paths = nn.ModuleList(
            ResPath(out[s], widths[s], kernels[s], normalization, length=min(_LONGEST_PATH, len(steps) - s))
            for s in steps
        )
        self.up = nn.ModuleList(upsampler(out[s + 1], widths[s], stride=strides[s + 1]) for s in steps)
        self.decoder = nn.ModuleList(
            MultiResBlock(2 * widths[s], branch_widths(widths[s]), kernels[s], normalization) for s in steps
        )
        if not final_norms:
            self.decoder[0].norm_sum = nn.Identity()
        self.head = (
            conv_norm(out[0], num_heads, (1,) * ndim, normalization)
            if final_norms
            else CONV[ndim](out[0], num_heads, 1)
        )
        self.output_weights = equal_weights(1)
        self.apply(initialize)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, *spatial)`` to logits ``(b, heads, *spatial)``, in a tuple."""
        skips: list[Tensor] = []
        x = self.encoder[0](x)
        for pool, path, stage in zip(self.pools, self.paths, self.encoder[1:], strict=True):
            skips.append(path(x))
            x = stage(pool(x))
        for up, step in zip(reversed(self.up), reversed(self.decoder), strict=True):
            x = step(torch.cat((up(x), skips.pop()), dim=1))
        return (self.head(x),)


class MultiResBlock(nn.Module):
    """A chain of convolutions, all of whose outputs are kept, plus a 1x1 shortcut.

    ``(b, c_in, *spatial)`` becomes ``(b, sum(widths), *spatial)``.
    """

    def __init__(self, c_in: int, widths: tuple[int, ...], kernel: Shape, normalization: str) -> None:
        super().__init__()
        ndim, c_out = len(kernel), sum(widths)
        self.shortcut = conv_norm(c_in, c_out, (1,) * ndim, normalization)
        self.chain = nn.ModuleList(
            nn.Sequential(conv_norm(before, width, kernel, normalization), nn.ReLU(inplace=True))
            for before, width in zip((c_in, *widths), widths, strict=False)
        )
        self.norm_chain = norm(normalization, c_out, ndim=ndim)
        self.norm_sum = norm(normalization, c_out, ndim=ndim)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        branches: list[Tensor] = []
        for link in self.chain:
            x = link(x)
            branches.append(x)
        chained = self.norm_chain(torch.cat(branches, dim=1))
        total: Tensor = self.norm_sum(torch.relu_(shortcut + chained))
        return total


class ResPath(nn.Sequential):
    """``length`` residual units in a row: ``(b, c_in, *spatial)`` becomes ``(b, c_out, *spatial)``."""

    def __init__(self, c_in: int, c_out: int, kernel: Shape, normalization: str, *, length: int) -> None:
        super().__init__(*(_ResUnit(c_out if i else c_in, c_out, kernel, normalization) for i in range(length)))


class _ResUnit(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: Shape, normalization: str) -> None:
        super().__init__()
        self.shortcut = conv_norm(c_in, c_out, (1,) * len(kernel), normalization)
        self.conv = nn.Sequential(conv_norm(c_in, c_out, kernel, normalization), nn.ReLU(inplace=True))
        self.norm = norm(normalization, c_out, ndim=len(kernel))

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.norm(torch.relu_(self.shortcut(x) + self.conv(x)))
        return total


def branch_widths(width: int) -> tuple[int, ...]:
    """How wide each convolution of a chain is, in a stage of ``width``."""
    return tuple(max(1, int(_BUDGET * width * share)) for share in _SHARES)


def conv_norm(c_in: int, c_out: int, kernel: Shape, normalization: str) -> nn.Sequential:
    """A convolution without bias and a normalisation with a shift but no scale; keeps the size."""
    ndim = len(kernel)
    shift_only = norm(normalization, c_out, ndim=ndim)
    shift_only.register_parameter("weight", None)
    return nn.Sequential(CONV[ndim](c_in, c_out, kernel, padding="same", bias=False), shift_only)
