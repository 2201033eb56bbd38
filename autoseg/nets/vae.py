"""The variational branch of Myronenko 2018 (section 2.3, table 2), and the residual block that it shares.

The branch reads the deepest map of an encoder, squeezes it into a normal distribution, draws from it, and rebuilds
the image with a decoder of its own. It is there to teach the encoder: nothing of it is needed after training.

Shapes for S stages, widths f, R(s) the patch divided by the strides up to stage s, and a grid G of latent cells:
    squeeze     (b, f[S-1], *R(S-1)) -> GroupNorm, ReLU, 3x3x3 with stride 2 -> (b, 16, *G)
    dense       16 |G| -> 2 latent: means and standard deviations; a draw of ``latent`` values
    expand      latent -> 16 |G|, ReLU -> (b, 16, *G) -> 1x1x1 -> (b, f[S-1], *G) -> resized (b, f[S-1], *R(S-1))
    step s      1x1x1 to f[s] -> resized to R(s) -> residual block, for s = S-2 .. 0; no skips
    image       1x1x1 -> (b, c, *R(0))

The dense layers tie the original to one size of patch: 160 x 192 x 128 makes a grid of 10 x 12 x 8. Generalised:
the grid follows from the patch that the network is built for, up to ``MAX_CELLS``; maps of other sizes are averaged
onto it, and the decoder resizes to the shapes that the encoder really has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.nets.blocks import CONV, resize
from autoseg.schema.fingerprint import Shape

CHANNELS = 16
# The paper's grid has 960. Dense layers have about 6000 weights for every cell.
MAX_CELLS = 1024


class ResidualBlock(nn.Module):
    """Twice GroupNorm, ReLU and convolution, plus the input: ``(b, c, *spatial)`` to the same shape."""

    def __init__(self, channels: int, *, kernel: Shape, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *norm_act(channels, groups),
            convolution(channels, channels, kernel=kernel),
            *norm_act(channels, groups),
            convolution(channels, channels, kernel=kernel),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def norm_act(channels: int, groups: int) -> tuple[nn.Module, nn.Module]:
    """GroupNorm and ReLU; of a width that ``groups`` does not divide, the groups are the greatest common divisor."""
    return nn.GroupNorm(math.gcd(groups, channels), channels), nn.ReLU(inplace=True)


def convolution(c_in: int, c_out: int, *, kernel: Shape, stride: Shape | int = 1) -> nn.Module:
    """A convolution without bias that keeps the size at stride 1."""
    padding = tuple((size - 1) // 2 for size in kernel)
    return CONV[len(kernel)](c_in, c_out, kernel, stride, padding=padding, bias=False)


def latent_grid(shape: Shape) -> Shape:
    """Half of the coarsest shape on every axis, and the longest axis halved until there are at most ``MAX_CELLS``."""
    grid = [math.ceil(size / 2) for size in shape]
    while math.prod(grid) > MAX_CELLS:
        longest = grid.index(max(grid))
        grid[longest] = math.ceil(grid[longest] / 2)
    return tuple(grid)


class VariationalBranch(nn.Module):
    """Rebuilds an image from the deepest map of an encoder; see the module for shapes.

    Args:
        features: widths of the encoder, finest first.
        coarsest: shape of the deepest map for the patch that the network is built for.
        latent: values that are drawn.
    """

    def __init__(
        self,
        *,
        features: Sequence[int],
        kernels: Sequence[Shape],
        coarsest: Shape,
        image_channels: int,
        latent: int,
        groups: int,
    ) -> None:
        super().__init__()
        ndim, deepest = len(coarsest), features[-1]
        one = (1,) * ndim
        self.grid = latent_grid(coarsest)
        cells = CHANNELS * math.prod(self.grid)
        self.squeeze = nn.Sequential(
            *norm_act(deepest, groups), convolution(deepest, CHANNELS, kernel=kernels[-1], stride=2)
        )
        self.encode = nn.Linear(cells, 2 * latent)
        self.decode = nn.Linear(latent, cells)
        self.expand = convolution(CHANNELS, deepest, kernel=one)
        steps = range(len(features) - 1)
        self.narrow = nn.ModuleList(convolution(features[s + 1], features[s], kernel=one) for s in steps)
        self.blocks = nn.ModuleList(ResidualBlock(features[s], kernel=kernels[s], groups=groups) for s in steps)
        self.image = CONV[ndim](features[0], image_channels, 1)

    def forward(self, deepest: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, Tensor, Tensor]:
        """A reconstruction for a map ``(b, f, *shapes[-1])`` of an encoder with these spatial shapes, finest first.

        Returns:
            The image ``(b, c, *shapes[0])``; means and standard deviations ``(b, latent)`` in float32.
        """
        mean, std = self.distribution(deepest)
        x = F.relu(self.decode(mean + std * torch.randn_like(mean)))
        x = self.expand(x.unflatten(1, (CHANNELS, *self.grid)))
        x = resize(x, shapes[-1])
        for step in reversed(range(len(self.blocks))):
            x = self.blocks[step](resize(self.narrow[step](x), shapes[step]))
        return self.image(x), mean, std

    def distribution(self, deepest: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations ``(b, latent)`` in float32."""
        x = self.squeeze(deepest)
        if tuple(x.shape[2:]) != self.grid:
            x = _POOL[len(self.grid)](x, self.grid)
        # In half precision exponentials and squares of a latent value overflow. The softplus has a gradient
        # everywhere, and its floor keeps the logarithm in the divergence finite.
        mean, raw = self.encode(x.flatten(1)).float().chunk(2, dim=1)
        return mean, F.softplus(raw) + 1e-3


_POOL: dict[int, Any] = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def penalties(image: Tensor, rebuilt: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction and Kullback-Leibler penalty of the paper (equations 3 and 4) as scalars in float32.

    The first is the squared error. The second is the divergence of N(mean, std) from N(0, 1), without the factor
    of one half, summed over latent values; the paper divides it by the number of voxels, and so the squared error
    has to be a mean too: that is a Gaussian likelihood and its divergence, per voxel.

    Args:
        image: ``(b, c, *spatial)``, and ``rebuilt`` of the same shape.
        mean: ``(b, latent)``, and ``std`` of the same shape.
    """
    error = F.mse_loss(rebuilt.float(), image.float())
    variance = std.square()
    terms = mean.square() + variance - variance.log() - 1
    return error, terms.sum(dim=1).mean() / math.prod(image.shape[2:])
