"""Resizing of images as one small matrix per axis, and the rules of when to do it slice by slice.

The result equals ``skimage.transform.resize(order, mode="edge", anti_aliasing=False)``, clip included, up to float32
rounding; the work is matrix products in float32 instead of a spline evaluated per voxel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np

from autoseg.ops.labels import resize_labels
from autoseg.ops.linear import axis_table
from autoseg.ops.spline import bands, resize_matrix

# Planes that are worked on together: few enough for the cache of a core.
_SLAB = 4


def target_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """Voxels per axis after resampling from ``spacing`` to ``target`` (mm, same axis order); at least one."""
    return tuple(max(1, round(old / new * length)) for length, old, new in zip(shape, spacing, target, strict=True))


def separate_axis(
    current_spacing: Sequence[float], target_spacing: Sequence[float], threshold: float = 3.0
) -> int | None:
    """The axis that is resized apart from the others, or None (nnU-Net's rule).

    The coarsest axis of the current spacing if it is more than ``threshold`` times the finest, else that of the
    target spacing; None where two axes are equally coarse.
    """
    for spacing in (current_spacing, target_spacing):
        if max(spacing) / min(spacing) > threshold:
            coarsest = [axis for axis, value in enumerate(spacing) if value == max(spacing)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resize(
    array: np.ndarray,
    shape: Sequence[int],
    *,
    order: int,
    separate_axis: int | None = None,
    order_z: int = 0,
    device: str | None = None,
) -> np.ndarray:
    """Resize every channel of (c, z, y, x) to ``shape`` (z, y, x) with splines of ``order``; float32.

    Values are clipped to the range of the channel. With ``separate_axis`` each slice across that axis is resized on
    its own (and clipped to its own range), then the axis itself with ``order_z``. ``device`` names a torch device
    to compute on (one channel at a time); None means numpy.

    Raises:
        ValueError: not four axes, or an unknown order.
    """
    target = tuple(int(length) for length in shape)
    if array.ndim != 4 or len(target) != 3:
        raise ValueError(f"an image must have four axes and its shape three, not {array.ndim} and {len(target)}")
    if array.shape[1:] == target:
        return array.astype(np.float32)
    result = np.empty((array.shape[0], *target), dtype=np.float32)
    for source, out in zip(array, result, strict=True):
        resize_planes(
            partial(_planes, source),
            source.shape,
            out,
            order=order,
            separate_axis=separate_axis,
            order_z=order_z,
            device=device,
        )
    return result


def _planes(source: np.ndarray, start: int, stop: int) -> np.ndarray:
    return np.ascontiguousarray(source[start:stop], dtype=np.float32)


def resize_planes(
    planes: Callable[[int, int], np.ndarray],
    shape: Sequence[int],
    out: np.ndarray,
    *,
    order: int,
    separate_axis: int | None = None,
    order_z: int = 0,
    device: str | None = None,
) -> None:
    """Resize one channel of ``shape`` (z, y, x) into ``out``, C-contiguous float32; rules as ``resize``.

    ``planes(start, stop)`` gives float32 (z, y, x) of some planes. Where planes do not depend on each other, only a
    few of them are in memory at a time, beside ``out``.
    """
    shape, target = tuple(shape), out.shape
    if shape == target or (separate_axis == 0 and (order_z == 0 or shape[0] == target[0])):
        _plane_by_plane(planes, shape, out, order, apart=True, device=device)
        return
    # In the plane first, unless that would grow planes of which most are lost along z.
    wasteful = target[0] < shape[0] and math.prod(target[1:]) > math.prod(shape[1:])
    if separate_axis is None and order > 0 and device is None and not wasteful:
        inner = out if shape[0] == target[0] else np.empty((shape[0], *target[1:]), dtype=np.float32)
        low, high = _plane_by_plane(planes, shape, inner, order, apart=False, device=None)
        if inner is not out:
            _multiply(inner, 0, target[0], order, out)
        if order > 1:
            np.clip(out, low, high, out=out)
        return
    channel = planes(0, shape[0])
    for axes, clip_axes, axis_order in _steps(shape, target, order, separate_axis, order_z):
        stop = tuple(target[i] if i in axes else channel.shape[i] for i in range(3))
        channel = _resize_channel(channel, stop, axis_order, clip_axes, device)
    out[...] = channel


def _plane_by_plane(
    planes: Callable[[int, int], np.ndarray],
    shape: tuple[int, ...],
    out: np.ndarray,
    order: int,
    *,
    apart: bool,
    device: str | None,
) -> tuple[np.float32, np.float32]:
    """Resize y and x, and pick the nearest planes; each is clipped to its own range if they are ``apart``.

    Returns the range of the planes before they were resized.
    """
    nearest = axis_table(shape[0], out.shape[0], 0).nearest
    low, high = np.float32(np.inf), np.float32(-np.inf)
    for start in range(0, len(out), _SLAB):
        used, back = np.unique(nearest[start : start + _SLAB], return_inverse=True)
        slab = planes(int(used[0]), int(used[-1]) + 1)
        slab = slab if len(used) == len(slab) else slab[used - used[0]]
        low, high = min(low, slab.min()), max(high, slab.max())
        slab = _resize_channel(slab, (len(slab), *out.shape[1:]), order, (1, 2) if apart else None, device)
        out[start : start + _SLAB] = slab if len(used) == len(back) else slab[back]
    return low, high


def _steps(
    shape: tuple[int, ...], target: tuple[int, ...], order: int, separate: int | None, order_z: int
) -> list[tuple[tuple[int, ...], tuple[int, ...] | None, int]]:
    """What to resize one after the other: (axes, axes over which the range to clip to is taken, order)."""
    if separate is None:
        return [((0, 1, 2), (0, 1, 2), order)]
    across = tuple(axis for axis in range(3) if axis != separate)
    steps = [(across, across, order), ((separate,), None, order_z)]
    # Nearest slices can be picked before the others are resized in vain.
    return steps[::-1] if order_z == 0 and target[separate] < shape[separate] else steps


def _resize_channel(
    channel: np.ndarray, shape: tuple[int, ...], order: int, clip_axes: tuple[int, ...] | None, device: str | None
) -> np.ndarray:
    if channel.shape == shape:
        return channel
    if order == 0:
        return _pick(channel, shape)
    multiply = _multiply if device is None else _multiply_on(device)
    resized = channel
    for axis in _cheapest_order(channel.shape, shape, order):
        resized = multiply(resized, axis, shape[axis], order)
    # Linear weights are positive and sum to one; only higher orders overshoot.
    if clip_axes is None or order < 2:
        return resized
    low, high = (limit(axis=clip_axes, keepdims=True) for limit in (channel.min, channel.max))
    return np.clip(resized, low, high, out=resized)


def _pick(channel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    for axis, length in enumerate(shape):
        if channel.shape[axis] != length:
            channel = np.take(channel, axis_table(channel.shape[axis], length, 0).nearest, axis=axis)
    return channel


def _cheapest_order(shape: tuple[int, ...], target: tuple[int, ...], order: int) -> tuple[int, ...]:
    """The order of the axes that change with the fewest multiplications."""
    changing = [axis for axis in range(3) if shape[axis] != target[axis]]

    def work(sequence: tuple[int, ...]) -> float:
        current, total = list(shape), 0.0
        for axis in sequence:
            blocks = bands(current[axis], target[axis], order)
            current[axis] = target[axis]
            width = sum(block.weights.size for block in blocks) / target[axis]
            total += math.prod(current) * width
        return total

    return min(permutations(changing), key=work)


def _multiply(array: np.ndarray, axis: int, length: int, order: int, into: np.ndarray | None = None) -> np.ndarray:
    shape = list(array.shape)
    shape[axis] = length
    result = np.empty(shape, dtype=np.float32) if into is None else into
    # The last axis is multiplied from the right, any other as rows of a (rows, everything behind) matrix.
    trailing = math.prod(array.shape[axis + 1 :])
    tail = () if trailing == 1 else (trailing,)
    source = array.reshape(-1, array.shape[axis], *tail)
    out = result.reshape(-1, length, *tail)
    for block in bands(array.shape[axis], length, order):
        if trailing == 1:
            np.matmul(source[:, block.first : block.last], block.weights.T, out=out[:, block.start : block.stop])
        else:
            np.matmul(block.weights, source[:, block.first : block.last], out=out[:, block.start : block.stop])
    return result


def _multiply_on(device: str) -> Any:
    import torch

    def multiply(array: np.ndarray, axis: int, length: int, order: int) -> np.ndarray:
        matrix = torch.from_numpy(resize_matrix(array.shape[axis], length, order).astype(np.float32)).to(device)
        with _full_precision():
            product = torch.tensordot(matrix, torch.from_numpy(array).to(device), dims=([1], [axis]))
        return np.ascontiguousarray(torch.movedim(product, 0, axis).cpu().numpy())

    return multiply


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TensorFloat-32, whatever training has chosen: its ten bits would show in an image."""
    import torch

    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen)


__all__ = ["resize", "resize_labels", "resize_matrix", "resize_planes", "separate_axis", "target_shape"]
