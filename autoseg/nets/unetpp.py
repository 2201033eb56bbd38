"""UNet++: a U-Net whose skips are nests of convolution nodes, and which can be pruned after training, 2D and 3D.

Zhou et al. 2018 (DLMIA, figure 1 and equation 1) and Zhou et al. 2020 (IEEE TMI 39, sections III-A to III-C).
Node X(i, j) sits at level i (0 is the finest) and column j, 0 <= j <= L - i, for L + 1 stages:

    X(i, 0) = H(X(i - 1, 0) halved)
    X(i, j) = H([up(X(i + 1, j - 1)), X(i, 0), ..., X(i, j - 1)])      H: two convolution blocks; up: transposed

Shapes, with widths f and R(i) the patch divided by the strides up to stage i:
    X(i, j)       (b, f[i], *R(i)), from (b, (j + 1) f[i], *R(i)) after concatenation
    head j        1x1 convolution on X(0, j), j = 1..L -> (b, heads, *patch): every head has full resolution

A head's output depends on the nodes with i + j <= its number and on no others. So a trained network can drop the
rest (``prune``): the weights that remain have the names and shapes that they had, and the output of the head is
the same to the last bit.

Generalised: strides, kernels, widths and the number of levels come from the plan, which has five stages at most
because nodes grow with the square of them. Paper and code differ:
    normalisation   none in the 2D code. The default follows the authors' 3D code: instance normalisation, LeakyReLU,
                    strided convolutions in place of pooling; the 2D code is reached through arguments.
    supervision     the paper sums the losses of all heads; the authors' 3D code at its last commit trains only the
                    shallowest. All heads are trained here, with equal weights.
    optimiser       the 2D code has Adam without a schedule; the default is that of the authors' 3D code, nnU-Net's.
    kernels         the 3D code gives nodes the kernel of the level below; here nodes have the kernel of their own.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autoseg.errors import SettingError
from autoseg.nets.blocks import CONV, MAX_POOL, SLOPE, TRANSPOSED_CONV, check_topology, initialize, norm
from autoseg.nets.outputs import equal_weights
from autoseg.schema.architecture import PaperMode, Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology


def _paper_modes() -> tuple[PaperMode, ...]:
    flat = Topology(strides=((1, 1), *((2, 2),) * 4), kernels=((3, 3),) * 5, features=(32, 64, 128, 256, 512))
    keras: dict[str, Any] = {"norm_kind": "none", "slope": 0.0, "pooling": "max", "dropout": 0.5}

    def in_2d(name: str, parameters: int, note: str = "", **arguments: Any) -> PaperMode:
        return PaperMode(
            name=name,
            topology=flat,
            patch_size=(96, 96),
            in_channels=1,
            num_heads=1,
            parameters=parameters,
            arguments=keras | arguments,
            note=note,
        )

    return (
        in_2d("2D", 9_041_601, "the paper prints 9.04 M, without deep supervision", deep_supervision=False),
        in_2d("2D, deep supervision", 9_041_700, "33 parameters for each of three more heads"),
        in_2d("2D, pruned to L1", 100_961, prune=1),
        in_2d("2D, pruned to L2", 511_105, prune=2),
        in_2d("2D, pruned to L3", 2_204_961, prune=3),
        in_2d("2D, pruned to L4", 9_041_601, prune=4),
        PaperMode(
            name="3D",
            topology=Topology(
                strides=((1, 1, 1), *((2, 2, 2),) * 5),
                kernels=((3, 3, 3),) * 6,
                features=(32, 64, 128, 256, 320, 320),
            ),
            patch_size=(128, 128, 128),
            in_channels=1,
            num_heads=3,
            parameters=45_966_784,
            arguments={"up_bias": False, "head_bias": False},
            note="the authors' 3D code, except that all heads are trained",
        ),
    )


class UNetPlusPlus(nn.Module):
    """Nested U-Net; L logits of full resolution in training, head L first; their mean in evaluation.

    Args:
        deep_supervision: heads on X(0, 1..L); otherwise one, on X(0, L).
        prune: build only the nodes that head 1..L needs, and only this head.
        norm_kind: ``instance``, ``batch`` or ``none``.
        slope: of the LeakyReLU; 0 makes it a ReLU.
        pooling: ``conv`` halves with strided convolutions, ``max`` with max-pooling.
        dropout: after every convolution block.
        up_bias: whether transposed convolutions have one; ``head_bias`` likewise.

    Raises:
        SettingError: fewer than two stages, a patch that the strides do not divide, or a value that is not offered.
    """

    traits: ClassVar[Traits] = Traits(
        paper="Zhou et al. 2018, 2020",
        summary="nested dense skips, heads of every depth at full resolution; can be pruned after training",
        base_width=24,
        base_width_cpu=8,
        max_stages=5,
        prunable=True,
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
        deep_supervision: bool = True,
        prune: int | None = None,
        norm_kind: str = "instance",
        slope: float = SLOPE,
        pooling: str = "conv",
        dropout: float = 0.0,
        up_bias: bool = True,
        head_bias: bool = True,
    ) -> None:
        super().__init__()
        check_topology(topology, patch_size)
        levels = topology.num_stages - 1
        _check(levels, prune, pooling)
        self.depth = levels if prune is None else prune
        every_head = deep_supervision and prune is None
        self.outputs = tuple(range(self.depth, 0, -1)) if every_head else (self.depth,)
        blocks = {"norm_kind": norm_kind, "slope": slope, "dropout": dropout}
        widths = topology.features
        # Named by their indices, so that a pruned network finds its weights in the state of the full one.
        self.nodes = nn.ModuleDict()
        for level in range(self.depth + 1):
            kernel, stride = topology.kernels[level], topology.strides[level]
            c_in = widths[level - 1] if level else in_channels
            self.nodes[f"{level}_0"] = EncoderNode(
                c_in, widths[level], kernel=kernel, stride=stride, pooling=pooling, **blocks
            )
            for column in range(1, self.depth + 1 - level):
                self.nodes[f"{level}_{column}"] = NestedNode(
                    widths[level + 1],
                    widths[level],
                    skips=column,
                    kernel=kernel,
                    stride=topology.strides[level + 1],
                    up_bias=up_bias,
                    **blocks,
                )
        self.heads = nn.ModuleDict(
            {str(column): CONV[ndim](widths[0], num_heads, 1, bias=head_bias) for column in reversed(self.outputs)}
        )
        self.output_weights = equal_weights(len(self.outputs))
        self.apply(initialize)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, *spatial)`` to logits ``(b, heads, *spatial)``: of every head, or their mean in evaluation."""
        rows: list[list[Tensor]] = []
        for diagonal in range(self.depth + 1):
            x = self.nodes[f"{diagonal}_0"](x)
            rows.append([x])
            for level in reversed(range(diagonal)):
                node = self.nodes[f"{level}_{diagonal - level}"]
                rows[level].append(node(rows[level + 1][-1], rows[level]))
        outputs = tuple(self.heads[str(column)](rows[0][column]) for column in self.outputs)
        if self.training or len(outputs) == 1:
            return outputs
        return (sum(outputs[1:], start=outputs[0]) / len(outputs),)


class EncoderNode(nn.Module):
    """X(i, 0): ``(b, c_in, *spatial)`` to ``(b, c_out, *spatial / stride)``, by max-pooling or by the first block."""

    def __init__(self, c_in: int, c_out: int, *, kernel: Shape, stride: Shape, pooling: str, **blocks: Any) -> None:
        super().__init__()
        ndim = len(kernel)
        one = (1,) * ndim
        pools = pooling == "max" and stride != one
        self.pool = MAX_POOL[ndim](stride) if pools else nn.Identity()
        self.blocks = _two_blocks(c_in, c_out, kernel=kernel, stride=one if pools else stride, **blocks)

    def forward(self, x: Tensor) -> Any:
        return self.blocks(self.pool(x))


class NestedNode(nn.Module):
    """X(i, j) from the node below, ``(b, c_below, *spatial / stride)``, and j ``skips`` of ``(b, c, *spatial)``."""

    def __init__(
        self, c_below: int, c: int, *, skips: int, kernel: Shape, stride: Shape, up_bias: bool, **blocks: Any
    ) -> None:
        super().__init__()
        self.up = TRANSPOSED_CONV[len(kernel)](c_below, c, stride, stride, bias=up_bias)
        self.blocks = _two_blocks((skips + 1) * c, c, kernel=kernel, stride=(1,) * len(kernel), **blocks)

    def forward(self, below: Tensor, skips: list[Tensor]) -> Any:
        return self.blocks(torch.cat((self.up(below), *skips), dim=1))


def _two_blocks(
    c_in: int, c_out: int, *, kernel: Shape, stride: Shape, norm_kind: str, slope: float, dropout: float
) -> nn.Sequential:
    """Twice convolution, normalisation, LeakyReLU and dropout; the first one strides and changes the width."""
    ndim = len(kernel)
    padding = tuple((size - 1) // 2 for size in kernel)
    parts: list[nn.Module] = []
    for channels, step in ((c_in, stride), (c_out, (1,) * ndim)):
        parts += [
            CONV[ndim](channels, c_out, kernel, step, padding=padding),
            norm(norm_kind, c_out, ndim=ndim),
            nn.LeakyReLU(slope, inplace=True),
        ]
        if dropout:
            parts.append(nn.Dropout(dropout))
    return nn.Sequential(*parts)


def _check(levels: int, prune: int | None, pooling: str) -> None:
    if prune is not None and not 1 <= prune <= levels:
        raise SettingError(
            f"a UNet++ of {levels + 1} stages cannot be pruned to head {prune}",
            hint=f"its heads are numbered 1 to {levels}; leave prune out for all of them",
        )
    if pooling not in {"conv", "max"}:
        raise SettingError(f"there is no pooling {pooling!r}", hint="choose one of: conv, max")
