"""A vision transformer over a grid of tokens, 2D and 3D: what UNETR and TransUNet share.

Vaswani et al. 2017 and Dosovitskiy et al. 2021 (section 3.1, eqs. 1-4): non-overlapping patches are projected to
tokens, a learned table of positions is added, and pre-norm blocks of self-attention and MLP follow. There is no class
token: every token is used.

Shapes for an image (b, c, *spatial), token pitch p and a grid g = spatial / p:
    embedding          (b, width, *g), a convolution whose kernel and stride are the pitch
    tokens             (b, prod(g), width)
    every block        x + attention(norm(x)), then x + mlp(norm(x)), the MLP four times as wide and with GELU
    outputs            (b, width, *g): the tokens after the tapped blocks as they are, and after the last one normalised

Generalised: pitch and grid have any anisotropy, and the table, which is kept as a grid, is interpolated linearly to
the grid of an image of another size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import Parameter

from autoseg.errors import SettingError
from autoseg.nets.blocks import CONV, resize
from autoseg.schema.fingerprint import Shape

# The standard deviation of truncated-normal weights (Dosovitskiy et al. 2021), and the width of one attention head.
SPREAD = 0.02
HEAD_WIDTH = 64


def attention_heads(width: int) -> int:
    """The fewest heads of at most 64 channels that divide a width: 12 of 768, as in ViT-B."""
    heads = -(-width // HEAD_WIDTH)
    while width % heads:
        heads += 1
    return heads


def initialize_transformer(module: nn.Module) -> None:
    """Truncated-normal weights and zero biases for linear layers; for ``apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=SPREAD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class PositionTable(nn.Module):
    """A learned vector for every place of a grid, added to a map ``(b, width, *grid)`` of any grid."""

    def __init__(self, width: int, grid: Shape) -> None:
        super().__init__()
        self.table = Parameter(torch.empty(1, width, *grid))
        nn.init.trunc_normal_(self.table, std=SPREAD)

    def forward(self, x: Tensor) -> Tensor:
        grid = tuple(x.shape[2:])
        if grid == tuple(self.table.shape[2:]):
            return x + self.table
        return x + resize(self.table, grid)


class SelfAttention(nn.Module):
    """Self-attention of all tokens with all tokens: ``(b, n, width)`` to the same.

    Args:
        bias: whether queries, keys and values have biases; the projection of the result always has one.
    """

    def __init__(self, width: int, heads: int, *, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=bias)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        per_head = self.queries_keys_values(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = per_head.unbind(0)
        attended = F.scaled_dot_product_attention(queries, keys, values)
        return self.projection(attended.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """A pre-norm block: ``(b, n, width)`` to the same.

    Args:
        bias: whether queries, keys and values have biases.
        dropout: after the attention and after both layers of the MLP, as in Vaswani et al. 2017.
    """

    def __init__(self, width: int, heads: int, *, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class VisionTransformer(nn.Module):
    """Tokens of an image, or of a feature map, through ``depth`` blocks.

    Args:
        pitch: voxels per token along each axis.
        grid: tokens along each axis for which the position table is made.
        taps: blocks (counted from 1, ascending) after which the tokens are handed out as well; a block may occur
            more than once.

    Raises:
        SettingError: no blocks, a width that is no multiple of the heads, or a tap that is no block.
    """

    def __init__(
        self,
        c_in: int,
        width: int,
        *,
        pitch: Shape,
        grid: Shape,
        depth: int,
        taps: Sequence[int] = (),
        heads: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        heads = heads or attention_heads(width)
        _check(width, heads, depth, taps)
        self.taps = tuple(taps)
        self.embedding = CONV[len(pitch)](c_in, width, pitch, pitch)
        self.positions = PositionTable(width, grid)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, bias=bias, dropout=dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.apply(initialize_transformer)
        self._initialize_embedding()

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """``(b, c, *spatial)`` to the maps ``(b, width, *grid)`` after each tap, and to the last one, normalised."""
        x = self.dropout(self.positions(self.embedding(x)))
        grid = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2)
        tapped: list[Tensor] = []
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            tapped += [_as_map(tokens, grid)] * self.taps.count(number)
        return tapped, _as_map(self.norm(tokens), grid)

    def _initialize_embedding(self) -> None:
        # A patch embedding is a linear layer that happens to be computed as a convolution.
        nn.init.trunc_normal_(self.embedding.get_parameter("weight"), std=SPREAD)
        nn.init.zeros_(self.embedding.get_parameter("bias"))


def _as_map(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, tuple(grid))


def _check(width: int, heads: int, depth: int, taps: Sequence[int]) -> None:
    if depth < 1:
        raise SettingError(f"a transformer needs at least one block, not {depth}")
    if width < 1 or heads < 1 or width % heads:
        raise SettingError(
            f"a transformer of width {width} cannot have {heads} heads",
            hint="the width has to be a multiple of the number of heads",
        )
    if list(taps) != sorted(taps) or any(not 1 <= tap <= depth for tap in taps):
        raise SettingError(
            f"a transformer of {depth} blocks has no taps {tuple(taps)}",
            hint="give ascending numbers of blocks, from 1",
        )
