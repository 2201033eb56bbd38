"""Attention within windows of a map, for any number of axes: what the networks with shifted windows share.

Liu et al. 2021 (Swin Transformer), section 3.2: equation 4 (relative position bias), figures 2 and 4 (shifted windows
by cyclic shift and mask). Maps are channels-last here, ``(b, *spatial, c)``, windows ``(b * windows, tokens, c)``.

Generalised: windows and shifts are per axis, and nothing remembers the size of an image. A window that a map does not
fill is cut down to the map, and then uses the middle of its bias table; a map that windows do not divide is padded at
its ends. Padding lies in a region of its own, so no voxel of the image attends to it (the papers' maps need none).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.errors import SettingError
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

# Finer windows have so few tokens that attention has nothing to choose from.
SMALLEST_WINDOW = 4
# Stages with windows; the strided stages before them are the stem.
MOST_STAGES = 4


def first_stage(topology: Topology) -> int:
    """The stage of the topology at which the windows begin: the last four have them, and the stem strides once or more.

    Raises:
        SettingError: fewer than three stages.
    """
    if topology.num_stages < 3:
        raise SettingError(
            f"a stem and two stages of windows need a topology of three stages, not {topology.num_stages}",
            hint="give a larger patch, or choose a convolutional architecture",
        )
    return max(1, topology.num_stages - MOST_STAGES)


def fit_window(shape: Shape, limit: int) -> Shape:
    """A window for a map: all of an axis up to ``limit``, else its largest divisor from half the limit on, else it."""
    return tuple(
        size if size <= limit else next((w for w in range(limit, limit // 2 - 1, -1) if size % w == 0), limit)
        for size in shape
    )


def head_size(widths: Sequence[int]) -> int:
    """Channels per attention head, at all stages: 32, or 16 where not all widths are multiples of 32.

    Where they are not multiples of 16 either, the largest number below 32 that divides them: a head costs a map of
    tokens x tokens whatever its size, so few large ones are better than many small ones.
    """
    common = math.gcd(*widths)
    size: int = next(size for size in (32, 16, *range(31, 0, -1)) if common % size == 0)
    return size


def per_stage(values: int | Sequence[int], stages: int, *, name: str) -> tuple[int, ...]:
    """One number for each stage, from one for all or from a list.

    Raises:
        SettingError: a list of another length, or a number below one.
    """
    numbers = (values,) * stages if isinstance(values, int) else tuple(values)
    if len(numbers) != stages or min(numbers) < 1:
        raise SettingError(
            f"{name} is {values!r} and the network has {stages} such stages",
            hint=f"give one number from 1, or a list of {stages}",
        )
    return numbers


def given_windows(windows: Sequence[int | Sequence[int]], shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """Windows as a person writes them, a number or one per axis for each stage, cut down to the maps.

    Raises:
        SettingError: another number of stages or axes, or a window without voxels.
    """
    if len(windows) != len(shapes):
        raise SettingError(f"there are {len(windows)} windows", hint=f"give one for each of {len(shapes)} stages")
    result = []
    for window, shape in zip(windows, shapes, strict=True):
        edges = (window,) * len(shape) if isinstance(window, int) else tuple(window)
        if len(edges) != len(shape) or min(edges) < 1:
            raise SettingError(f"the window {window!r} does not fit {len(shape)} axes", hint="give numbers from 1")
        result.append(tuple(min(edge, size) for edge, size in zip(edges, shape, strict=True)))
    return tuple(result)


def ramp(last: float, count: int) -> tuple[float, ...]:
    """``count`` numbers from 0 to ``last`` in equal steps: rates of stochastic depth, from the first block on."""
    return tuple(last * i / max(count - 1, 1) for i in range(count))


def split(x: Tensor, window: Shape) -> Tensor:
    """``(b, *spatial, c)``, a multiple of the window, to ``(b * windows, tokens, c)``."""
    ndim = len(window)
    counts = [size // edge for size, edge in zip(x.shape[1:-1], window, strict=True)]
    pairs = [number for pair in zip(counts, window, strict=True) for number in pair]
    x = x.reshape(x.shape[0], *pairs, x.shape[-1])
    x = x.permute(0, *range(1, 2 * ndim, 2), *range(2, 2 * ndim + 1, 2), 2 * ndim + 1)
    return x.reshape(x.shape[0] * math.prod(counts), math.prod(window), x.shape[-1])


def join(windows: Tensor, window: Shape, spatial: Shape) -> Tensor:
    """What ``split`` took apart: ``(b * windows, tokens, c)`` to ``(b, *spatial, c)``."""
    ndim = len(window)
    counts = [size // edge for size, edge in zip(spatial, window, strict=True)]
    x = windows.reshape(windows.shape[0] // math.prod(counts), *counts, *window, windows.shape[-1])
    order = [axis for i in range(ndim) for axis in (1 + i, 1 + ndim + i)]
    x = x.permute(0, *order, 2 * ndim + 1)
    return x.reshape(x.shape[0], *spatial, x.shape[-1])


@dataclass(frozen=True)
class WindowGrid:
    """How a map is cut: padded at its ends to a multiple of ``window``, then rolled back by ``shift``."""

    spatial: Shape
    window: Shape
    shift: Shape

    @classmethod
    def fit(cls, spatial: Shape, window: Shape, *, shifted: bool) -> WindowGrid:
        """Windows no larger than the map; an axis with a single window is not shifted, as it has no other borders."""
        window = tuple(min(edge, size) for edge, size in zip(window, spatial, strict=True))
        shift = tuple(edge // 2 if shifted and size > edge else 0 for edge, size in zip(window, spatial, strict=True))
        return cls(tuple(spatial), window, shift)

    @property
    def padded(self) -> Shape:
        return tuple(-(-size // edge) * edge for size, edge in zip(self.spatial, self.window, strict=True))

    def lay_out(self, x: Tensor) -> Tensor:
        """``(b, *spatial, c)`` to ``(b, *padded, c)``, ready for ``split``."""
        if self.padded != self.spatial:
            ends = [after - before for after, before in zip(self.padded, self.spatial, strict=True)]
            x = F.pad(x, [0, 0, *(number for end in reversed(ends) for number in (0, end))])
        if any(self.shift):
            x = torch.roll(x, [-step for step in self.shift], dims=list(range(1, x.ndim - 1)))
        return x

    def take_back(self, x: Tensor) -> Tensor:
        """What ``lay_out`` did, undone: ``(b, *padded, c)`` to ``(b, *spatial, c)``."""
        if any(self.shift):
            x = torch.roll(x, list(self.shift), dims=list(range(1, x.ndim - 1)))
        for axis, size in enumerate(self.spatial, start=1):
            x = x.narrow(axis, 0, size)
        return x

    def forbidden(self, device: torch.device) -> Tensor | None:
        """Pairs of tokens that share a window and are no neighbours: ``(windows, tokens, tokens)``, None if there are
        none. A region is what lies on one side of the seam of the roll on every axis, or all of the padding.
        """
        if self.padded == self.spatial and not any(self.shift):
            return None
        region = torch.ones((1,) * len(self.window), dtype=torch.int32, device=device)
        inside = torch.ones((1,) * len(self.window), dtype=torch.bool, device=device)
        for axis, (size, padded, shift) in enumerate(zip(self.spatial, self.padded, self.shift, strict=True)):
            position = torch.arange(padded, device=device) + shift
            along = [padded if i == axis else 1 for i in range(len(self.window))]
            region = 2 * region + (position >= padded).int().view(along)
            inside = inside & (position % padded < size).view(along)
        regions = split((region * inside)[None, ..., None], self.window)
        return regions != regions.transpose(1, 2)


def relative_index(window: Shape, largest: Shape, device: torch.device) -> Tensor:
    """The row of the bias table for every pair of tokens of a window: ``(tokens, tokens)``.

    Offsets from ``-(w - 1)`` to ``w - 1`` per axis are the digits of a number in mixed radix, last axis fastest, so
    that no two offsets share a row. The table is that of the ``largest`` window.
    """
    ndim = len(window)
    index = torch.zeros((1,) * (2 * ndim), dtype=torch.int64, device=device)
    for axis, (edge, most) in enumerate(zip(window, largest, strict=True)):
        position = torch.arange(edge, device=device)
        offset = position[:, None] - position[None, :] + (most - 1)
        along = [edge if i % ndim == axis else 1 for i in range(2 * ndim)]
        index = index * (2 * most - 1) + offset.view(along)
    return index.reshape(math.prod(window), math.prod(window))


class WindowAttention(nn.Module):
    """Multi-head self-attention of the tokens of each window, with a learned bias per offset and head.

    ``(b * windows, tokens, c)`` keeps its shape. Heads are merged and not yet projected.
    """

    def __init__(self, width: int, *, heads: int, window: Shape) -> None:
        super().__init__()
        self.window = window
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.bias_table = nn.Parameter(torch.empty(math.prod(2 * edge - 1 for edge in window), heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)

    def forward(self, x: Tensor, window: Shape, forbidden: Tensor | None) -> Tensor:
        """``window`` is the shape of the windows in x; ``forbidden`` comes from ``WindowGrid``."""
        groups, tokens, width = x.shape
        qkv = self.qkv(x).view(groups, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        bias = self.bias_table[relative_index(window, self.window, x.device)].permute(2, 0, 1)
        # In place: of all these maps of tokens x tokens, only what softmax returns is kept for backward.
        logits = torch.matmul(query * (width // self.heads) ** -0.5, key.transpose(-2, -1))
        logits += bias
        if forbidden is not None:
            per_image = logits.view(-1, forbidden.shape[0], *logits.shape[1:])
            logits = per_image.masked_fill_(forbidden[:, None], -math.inf).view(logits.shape)
        mixed = torch.matmul(logits.softmax(-1), value)
        return mixed.transpose(1, 2).reshape(groups, tokens, width)


class WindowMixer(nn.Module):
    """Attention within windows, shifted by half of them or not, and a projection; ``(b, *spatial, c)`` stays.

    Args:
        window: the largest; cut down where a map is smaller.
        beside: a channels-first module over the padded and shifted map, added before the projection.
    """

    def __init__(
        self, width: int, *, heads: int, window: Shape, shifted: bool, beside: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.window = window
        self.shifted = shifted
        self.attention = WindowAttention(width, heads=heads, window=window)
        self.beside = beside
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        grid = WindowGrid.fit(tuple(x.shape[1:-1]), self.window, shifted=self.shifted)
        x = grid.lay_out(x)
        mixed = self.attention(split(x, grid.window), grid.window, grid.forbidden(x.device))
        mixed = join(mixed, grid.window, grid.padded)
        if self.beside is not None:
            mixed = mixed + self.beside(x.movedim(-1, 1)).movedim(1, -1)
        return grid.take_back(self.project(mixed))


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of every voxel of a channels-first map, ``(b, c, *spatial)``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, whole samples of a branch are zero with ``rate``.

    The others are scaled up, so that the mean stays.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)
