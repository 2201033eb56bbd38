"""Windows to a volume of logits, plane by plane, without ever holding the volume.

Windows are visited in z order. Weighted logits and weights gather in ring buffers that span the windows in flight;
as soon as no further window can reach a plane, the plane is divided by its weights and handed on. Memory is
``channels * patch_z * y * x`` numbers, whatever the length of the volume. What gathers are logits, or the features
below a linear head that is applied to finished planes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from autoseg.errors import DivergenceError
from autoseg.inference.tiles import NARROW_FLOOR, WEIGHT_FLOOR, Group, centred_padding, gaussian_window, tile_groups
from autoseg.schema.fingerprint import Shape

Evaluate = Callable[[Tensor], Tensor]
Head = Callable[[Tensor], Tensor]

# Finished planes are handed on in pieces of about this size.
_PIECE_BYTES = 64_000_000
# A change of the order of axes is several times faster in blocks that fit the cache of a core.
_BLOCK_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """How windows pass over a volume. ``patch`` is (z, y, x); a patch of one plane visits every plane.

    ``per_batch`` windows go through the network at once. The accumulators lie on ``device`` in ``dtype``; they hold
    ``heads`` logits per voxel, or ``features`` where these are given.
    """

    patch: Shape
    heads: int
    features: int | None = None
    step: float = 0.5
    per_batch: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    @property
    def channels(self) -> int:
        return self.features or self.heads


def ring_bytes(shape: Shape, sweep: Sweep) -> int:
    """Bytes that the accumulators take for an image of shape (z, y, x)."""
    padded = _padded(shape, sweep.patch)
    _, span = tile_groups(padded, sweep.patch, sweep.step, per_batch=sweep.per_batch)
    voxels = span * padded[1] * padded[2]
    return voxels * (sweep.channels * sweep.dtype.itemsize + torch.float32.itemsize)


def stitch(image: np.ndarray, evaluate: Evaluate, sweep: Sweep, *, head: Head | None = None) -> Iterator[np.ndarray]:
    """Logits of an image, in z order.

    Args:
        image: (c, z, y, x) float32. Where it is smaller than the patch, zeros surround it.
        evaluate: windows (b, c, *patch) on the CPU to (b, channels, *patch) of any floating type on any device.
        head: mean features (n, features) float32 to logits (n, heads), on the device of the sums; None where
            ``evaluate`` returns logits.

    Yields:
        Weighted means of the logits, (heads, dz, y, x) float32, which cover the z axis without gap or overlap.

    Raises:
        DivergenceError: a logit is NaN or infinite.
        SettingError: a step size outside (0, 1].
    """
    volume = torch.from_numpy(image)
    shape = tuple(image.shape[1:])
    padding = centred_padding(shape, sweep.patch)
    before = tuple(low for low, _ in padding)
    padded = _padded(shape, sweep.patch)
    groups, span = tile_groups(padded, sweep.patch, sweep.step, per_batch=sweep.per_batch)
    ring = _Ring(span, padded, sweep, head)
    inside = (slice(before[1], before[1] + shape[1]), slice(before[2], before[2] + shape[2]))
    for group in groups:
        _gather(volume, group, before, evaluate, ring, sweep)
        for first, piece in ring.take(group.first, group.done):
            low = max(before[0] - first, 0)
            high = min(before[0] + shape[0] - first, piece.shape[1])
            if low < high:
                yield _checked(piece[:, low:high, inside[0], inside[1]])


def _padded(shape: Shape, patch: Shape) -> Shape:
    return tuple(max(length, size) for length, size in zip(shape, patch, strict=True))


def _gather(volume: Tensor, group: Group, before: Shape, evaluate: Evaluate, ring: _Ring, sweep: Sweep) -> None:
    for index in range(0, len(group.corners), sweep.per_batch):
        corners = group.corners[index : index + sweep.per_batch]
        batch = torch.zeros((len(corners), volume.shape[0], *sweep.patch))
        for window, corner in zip(batch, corners, strict=True):
            _copy_window(volume, window, tuple(start - low for start, low in zip(corner, before, strict=True)))
        for corner, values in zip(corners, evaluate(batch).to(sweep.device), strict=True):
            ring.add(corner, values)


def _copy_window(volume: Tensor, window: Tensor, start: Shape) -> None:
    """Copy what ``window`` (c, *patch) at ``start`` sees of the volume; the rest keeps its zeros."""
    source, target = [slice(None)], [slice(None)]
    for first, size, length in zip(start, window.shape[1:], volume.shape[1:], strict=True):
        low, high = max(first, 0), min(first + size, length)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    window[tuple(target)] = volume[tuple(source)]


def _checked(logits: Tensor) -> np.ndarray:
    # One pass without a second array; NaN is passed on by both.
    if not all(torch.isfinite(bound) for bound in torch.aminmax(logits)):
        raise DivergenceError(
            "the network returned NaN or infinite values",
            hint="look whether the image holds extreme values and whether training went well; --device cpu avoids "
            "half precision",
        )
    return logits.cpu().contiguous().numpy()


class _Ring:
    """Sums over the planes in flight, (z, y, x, channels); plane z lies in slot z modulo the span.

    Channels come last because that is how convolutions of channels-last images leave their results: adding windows in
    that order is ten times faster on a CPU, and every voxel changes its order once instead of once per window.
    """

    def __init__(self, span: int, padded: Shape, sweep: Sweep, head: Head | None) -> None:
        self._span = span
        self._heads = sweep.heads
        self._head = head
        self._sums = torch.zeros((span, *padded[1:], sweep.channels), dtype=sweep.dtype, device=sweep.device)
        self._weights = torch.zeros((span, *padded[1:], 1), device=sweep.device)
        floor = NARROW_FLOOR if sweep.dtype == torch.float16 else WEIGHT_FLOOR
        self._window = torch.from_numpy(gaussian_window(sweep.patch, floor=floor))[..., None].to(sweep.device)

    def add(self, corner: tuple[int, int, int], values: Tensor) -> None:
        """Add the weighted values (channels, *patch) of a window at a corner (z, y, x)."""
        z, y, x = corner
        depth, height, width, _ = self._window.shape
        values = values.permute(1, 2, 3, 0)
        # On a CPU one plane at a time, which stays in the cache of a core; a GPU takes all that lie together.
        most = depth if values.is_cuda else 1
        taken = 0
        while taken < depth:
            slot = (z + taken) % self._span
            count = min(most, depth - taken, self._span - slot)
            place = (slice(slot, slot + count), slice(y, y + height), slice(x, x + width))
            window = self._window[taken : taken + count]
            self._sums[place] += values[taken : taken + count] * window
            self._weights[place] += window
            taken += count

    def take(self, first: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """Mean logits of planes ``first`` to ``stop`` as (plane, (heads, dz, y, x)); their slots are free then."""
        plane_bytes = self._weights[0].numel() * self._heads * torch.float32.itemsize
        depth = max(1, _PIECE_BYTES // plane_bytes)
        while first < stop:
            slot = first % self._span
            count = min(depth, stop - first, self._span - slot)
            planes = slice(slot, slot + count)
            yield first, self._means(planes)
            self._sums[planes].zero_()
            self._weights[planes].zero_()
            first += count

    def _means(self, planes: slice) -> Tensor:
        """Logits of the sums over weights of some slots, (heads, dz, y, x) float32."""
        sums, weights = self._sums[planes], self._weights[planes]
        if sums.is_cuda:
            return self._logits(sums / weights).permute(3, 0, 1, 2).contiguous()
        depth, height, width, channels = sums.shape
        result = torch.empty((self._heads, depth, height, width))
        rows = max(1, _BLOCK_BYTES // (width * max(self._heads, channels) * torch.float32.itemsize))
        for plane in range(depth):
            for row in range(0, height, rows):
                block = (plane, slice(row, row + rows))
                result[:, plane, row : row + rows] = self._logits(sums[block] / weights[block]).permute(2, 0, 1)
        return result

    def _logits(self, means: Tensor) -> Tensor:
        """Means (..., channels) float32 to logits (..., heads)."""
        if self._head is None:
            return means
        return self._head(means.reshape(-1, means.shape[-1])).reshape(*means.shape[:-1], self._heads)
