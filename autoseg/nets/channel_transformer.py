"""The parts of UCTransNet (Wang et al. 2022, AAAI 36) and the U-shape around them, 2D and 3D.

The skips of a U-Net go through a transformer whose attention runs over channels (CCT: ``ChannelTransformer``), and
the decoder chooses channels of what comes out (CCA: ``ChannelCrossAttention``).

Shapes for S stages of widths C[i], the scales i = 0..S-2, KV = sum of C[i] over the scales, N the number of voxels
of the coarsest map, P[i] the divisor of the topology over the strides up to stage i:
    embedding       (b, C[i], *R(i)) -> convolution with kernel = stride = P[i] -> (b, N, C[i]): the same N for all
    layer           attention over channels and an MLP, both residual, each scale with weights of its own
    reconstruction  (b, N, C[i]) -> (b, C[i], *grid) -> 1x1 convolution, normalisation, ReLU -> nearest, by P[i], added
                    to the embedded map: (b, C[i], *R(i))

Generalised: any number of scales, 2D and 3D, strides per axis; the grid of tokens is carried along in place of the
paper's square root of N, and the position table is interpolated for other sizes than that of the plan.

Paper and authors' code differ on CCA, and the code is followed: it halves the sum of the two linear maps and applies
a ReLU to the scaled skip, while the paper's equations have neither the half nor this place of the ReLU.

Unlike in the code, a reconstruction is convolved and normalised before it is enlarged. Repeated voxels change neither
a 1x1 convolution nor means and variances, so only time and memory differ (and the running variance of batch
normalisation, which counts the voxels, in its last digits).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.nets.blocks import CONV, initialize, norm, resize
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology


class ConvNormReLU(nn.Sequential):
    """Convolution with "same" padding, normalisation, ReLU: ``(b, c_in, *spatial)`` to ``(b, c_out, *spatial)``."""

    def __init__(self, c_in: int, c_out: int, *, kernel: Shape, norm_kind: str, dilation: Shape | None = None) -> None:
        ndim = len(kernel)
        dilation = dilation or (1,) * ndim
        padding = tuple(step * (size - 1) // 2 for size, step in zip(kernel, dilation, strict=True))
        super().__init__(
            CONV[ndim](c_in, c_out, kernel, padding=padding, dilation=dilation),
            norm(norm_kind, c_out, ndim=ndim),
            nn.ReLU(inplace=True),
        )


def conv_pair(c_in: int, c_out: int, *, kernel: Shape, norm_kind: str, dilation: Shape | None = None) -> nn.Sequential:
    """Two ``ConvNormReLU``, the first of which changes the width."""
    return nn.Sequential(
        ConvNormReLU(c_in, c_out, kernel=kernel, norm_kind=norm_kind, dilation=dilation),
        ConvNormReLU(c_out, c_out, kernel=kernel, norm_kind=norm_kind, dilation=dilation),
    )


class ChannelAttention(nn.Module):
    """Attention of the channels of every scale to the channels of all scales together.

    Per head, with queries Q of one scale and keys K and values V of all: A = softmax(IN(Q^T K / sqrt(KV))) of size
    C x KV, where IN normalises every head's map by itself; the heads' A V^T are averaged. No head is split: each has
    the full width. No linear map has a bias, and all start as torch leaves them, as in the authors' code.

    Args:
        widths: channels of every scale.
        dropout: of A.
    """

    def __init__(self, widths: Sequence[int], *, heads: int, dropout: float) -> None:
        super().__init__()
        total = sum(widths)
        self.heads = heads
        self.scale = total**-0.5
        self.query = nn.ModuleList(nn.Linear(width, heads * width, bias=False) for width in widths)
        self.key = nn.Linear(total, heads * total, bias=False)
        self.value = nn.Linear(total, heads * total, bias=False)
        self.out = nn.ModuleList(nn.Linear(width, width, bias=False) for width in widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, scales: list[Tensor], everything: Tensor) -> list[Tensor]:
        """Tokens of every scale, each ``(b, n, C[i])``, and of all together ``(b, n, KV)``, to one map per scale."""
        keys = self.key(everything).unflatten(-1, (self.heads, -1)) * self.scale
        values = self.value(everything).unflatten(-1, (self.heads, -1))
        results = []
        for tokens, query, out in zip(scales, self.query, self.out, strict=True):
            queries = query(tokens).unflatten(-1, (self.heads, -1))
            scores = torch.einsum("bnhc,bnhk->bhck", queries, keys)
            weights = self.dropout(F.instance_norm(scores).softmax(dim=-1))
            results.append(out(torch.einsum("bhck,bnhk->bnc", weights, values) / self.heads))
        return results


class Perceptron(nn.Sequential):
    """Linear, GELU, linear on the last axis; initialised as in the authors' code (and in ViT's)."""

    def __init__(self, width: int, hidden: int) -> None:
        linears = nn.Linear(width, hidden), nn.Linear(hidden, width)
        super().__init__(linears[0], nn.GELU(), linears[1])
        for linear in linears:
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)


class ChannelTransformerLayer(nn.Module):
    """Pre-normalised channel attention and MLP, both residual: tokens of every scale keep their shapes.

    Keys and values come from the raw tokens of all scales side by side, normalised together.
    """

    def __init__(self, widths: Sequence[int], *, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.norm_everything = nn.LayerNorm(sum(widths), eps=1e-6)
        self.norm_scales = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width in widths)
        self.attention = ChannelAttention(widths, heads=heads, dropout=dropout)
        self.norm_mlp = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width in widths)
        self.mlp = nn.ModuleList(Perceptron(width, mlp_ratio * width) for width in widths)

    def forward(self, scales: list[Tensor]) -> list[Tensor]:
        everything = self.norm_everything(torch.cat(scales, dim=-1))
        normed = [normalise(tokens) for normalise, tokens in zip(self.norm_scales, scales, strict=True)]
        mixed = self.attention(normed, everything)
        scales = [tokens + change for tokens, change in zip(scales, mixed, strict=True)]
        return [
            tokens + mlp(normalise(tokens))
            for tokens, normalise, mlp in zip(scales, self.norm_mlp, self.mlp, strict=True)
        ]


class PatchEmbedding(nn.Module):
    """``(b, c, *spatial)`` to ``(b, c, *spatial / pitch)``, one token per voxel, with a learned position (zero first).

    Args:
        grid: tokens per axis that the position table is made for; for others it is interpolated.
    """

    def __init__(self, width: int, *, pitch: Shape, grid: Shape, dropout: float) -> None:
        super().__init__()
        self.project = CONV[len(pitch)](width, width, pitch, pitch)
        self.position = nn.Parameter(torch.zeros(1, width, *grid))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        grid = tuple(x.shape[2:])
        position = self.position if grid == tuple(self.position.shape[2:]) else resize(self.position, grid)
        embedded: Tensor = self.dropout(x + position)
        return embedded


class ChannelTransformer(nn.Module):
    """CCT: the skips of all scales ``(b, C[i], *R(i))``, finest first, to as many maps of the same shapes.

    Args:
        topology: its strides give the pitch of the tokens; the scales are all stages but the last.
        widths: channels of every scale.
        grid: voxels of the coarsest map, for which the position tables are made.
    """

    def __init__(
        self,
        *,
        topology: Topology,
        widths: Sequence[int],
        grid: Shape,
        layers: int,
        heads: int,
        mlp_ratio: int,
        norm_kind: str,
        dropout: float,
    ) -> None:
        super().__init__()
        one = (1,) * len(grid)
        self.embeddings = nn.ModuleList(
            PatchEmbedding(width, pitch=pitch, grid=grid, dropout=dropout)
            for width, pitch in zip(widths, token_pitches(topology), strict=True)
        )
        self.layers = nn.ModuleList(
            ChannelTransformerLayer(widths, heads=heads, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width in widths)
        self.reconstruct = nn.ModuleList(
            ConvNormReLU(width, width, kernel=one, norm_kind=norm_kind) for width in widths
        )

    def forward(self, skips: list[Tensor]) -> list[Tensor]:
        maps = [embed(skip) for embed, skip in zip(self.embeddings, skips, strict=True)]
        grid = maps[0].shape[2:]
        scales = [tokens.flatten(2).transpose(1, 2) for tokens in maps]
        for layer in self.layers:
            scales = layer(scales)
        results = []
        for skip, tokens, normalise, convolve in zip(skips, scales, self.norms, self.reconstruct, strict=True):
            coarse = convolve(normalise(tokens).transpose(1, 2).unflatten(2, grid))
            results.append(skip + resize(coarse, tuple(skip.shape[2:]), smooth=False))
        return results


class ChannelCrossAttention(nn.Module):
    """CCA: the channels of a skip scaled by what skip and decoder hold on average over space.

    ReLU(skip * sigmoid((W_x mean(skip) + W_g mean(gate)) / 2)), with biases in both linear maps.
    """

    def __init__(self, c_skip: int, c_gate: int) -> None:
        super().__init__()
        self.from_skip = nn.Linear(c_skip, c_skip)
        self.from_gate = nn.Linear(c_gate, c_skip)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """``(b, c_skip, *spatial)`` and ``(b, c_gate, *spatial)`` to ``(b, c_skip, *spatial)``."""
        wanted = self.from_skip(skip.flatten(2).mean(dim=2)) + self.from_gate(gate.flatten(2).mean(dim=2))
        scale = torch.sigmoid(wanted / 2)
        return F.relu(skip * scale.reshape(*scale.shape, *(1,) * (skip.ndim - 2)))


class ChannelTransformerUNet(nn.Module):
    """Encoder, CCT on the skips, and a decoder with CCA: what the networks of this family share.

    One output of full resolution, in ``train()`` as in ``eval()``: the paper has no deep supervision.

    Args:
        encoder: one block per stage; ``encoder[s]`` makes ``(b, widths[s], *R(s))`` of what stage s - 1 made.
        decoder: one block per step; ``decoder[s]`` makes ``decoder_width(widths, s)`` channels of
            ``decoder_width(widths, s + 1) + widths[s]``.
        widths: channels after every stage of the encoder.
        cca: without it the decoder takes the CCT's maps as they are.

    Raises:
        SettingError: numbers of layers or heads, an MLP ratio or a dropout that make no sense.
    """

    def __init__(
        self,
        *,
        encoder: Sequence[nn.Module],
        decoder: Sequence[nn.Module],
        widths: Sequence[int],
        topology: Topology,
        patch_size: Shape,
        num_heads: int,
        layers: int,
        attention_heads: int,
        mlp_ratio: int,
        norm_kind: str,
        dropout: float,
        cca: bool = True,
    ) -> None:
        super().__init__()
        if min(layers, attention_heads, mlp_ratio) < 1 or not 0 <= dropout < 1:
            raise SettingError(
                f"a channel transformer cannot have {layers} layers of {attention_heads} heads, MLPs {mlp_ratio} times "
                f"as wide and a dropout of {dropout}",
                hint="give layers, attention_heads and mlp_ratio of at least 1 and a dropout from 0 to below 1",
            )
        grid = tuple(size // step for size, step in zip(patch_size, topology.divisor, strict=True))
        self.encoder = nn.ModuleList(encoder)
        self.transformer = ChannelTransformer(
            topology=topology,
            widths=widths[:-1],
            grid=grid,
            layers=layers,
            heads=attention_heads,
            mlp_ratio=mlp_ratio,
            norm_kind=norm_kind,
            dropout=dropout,
        )
        steps = range(topology.num_stages - 1)
        self.cca = nn.ModuleList(ChannelCrossAttention(widths[s], decoder_width(widths, s + 1)) for s in steps if cca)
        self.decoder = nn.ModuleList(decoder)
        self.head = CONV[len(grid)](decoder_width(widths, 0), num_heads, 1)
        self.output_weights = (1.0,)
        self.apply(initialize)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, *spatial)`` to one ``(b, heads, *spatial)`` of logits."""
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips = self.transformer(skips[:-1])
        for step in reversed(range(len(self.decoder))):
            skip = skips.pop()
            x = resize(x, tuple(skip.shape[2:]), smooth=False)
            if self.cca:
                skip = self.cca[step](skip, x)
            x = self.decoder[step](torch.cat((skip, x), dim=1))
        return (self.head(x),)


def decoder_width(widths: Sequence[int], step: int) -> int:
    """Channels after decoder step ``step``: those of the skip above it, which CCA compares it with.

    The step past the last one is the encoder's end.
    """
    return widths[-1] if step == len(widths) - 1 else widths[max(step - 1, 0)]


def token_pitches(topology: Topology) -> tuple[Shape, ...]:
    """Voxels between tokens at every scale, so that all scales have the tokens of the coarsest stage."""
    pitches = []
    rest = topology.divisor
    for stride in topology.strides[:-1]:
        rest = tuple(left // step for left, step in zip(rest, stride, strict=True))
        pitches.append(rest)
    return tuple(pitches)
