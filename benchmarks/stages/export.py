"""Logits at the resolution of the network to a label map on the grid of the image, in memory, 25 and 117 classes.

Both read the same float16 logits from a file: the peer as the array that it is given after prediction, we plane by
plane, as our windows hand them on. Writing the label map is no part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.ops.resample import target_shape
from benchmarks import data, networks
from benchmarks.bench import Differs, Row, Setting, Side

Shape = tuple[int, int, int]

_FINE, _COARSE = (0.8, 0.8, 0.8), (1.5, 1.5, 1.5)
# float16 logits in float32 and float64 arithmetic: voxels between two classes may go to either.
_LEAST_ALIKE = 0.9999


@dataclass(frozen=True, kw_only=True)
class _Task:
    """``shape`` is the image's grid (z, y, x)."""

    classes: int
    shape: Shape
    quick: Shape
    least_time: float
    least_memory: float


_TASKS = (
    _Task(classes=25, shape=(400, 512, 512), quick=(100, 192, 192), least_time=10.0, least_memory=6.0),
    # The largest that the peer finishes in about three minutes; of 512x512x400 it would need 45 GB.
    _Task(classes=117, shape=(240, 320, 320), quick=(64, 128, 128), least_time=20.0, least_memory=20.0),
)


def rows(setting: Setting) -> list[Row]:
    """A row for 25 and one for 117 classes."""
    return [_row(setting, task) for task in _TASKS]


def _row(setting: Setting, task: _Task) -> Row:
    shape = task.quick if setting.quick else task.shape
    coarse = target_shape(shape, _FINE, _COARSE)
    work = setting.work / "export"
    logits = _logits(work / f"{task.classes}_{'x'.join(map(str, coarse))}.npy", coarse, task.classes)
    design = networks.Design(width=8, stages=2, patch=(32, 32, 32), spacing=_COARSE, classes=task.classes)
    plans = networks.write_peer_plans(work / f"plans{task.classes}", design)
    ours, theirs = work / "ours.npy", work / "theirs.npy"
    asked = ",".join(map(str, shape))
    read = task.classes * np.prod(coarse) * 2 + np.prod(shape)
    return Row(
        stage="export",
        task=f"{shape[2]}x{shape[1]}x{shape[0]}, {task.classes} classes",
        ours=Side(
            command=setting.program("ours.export", logits, ours, asked),
            before=lambda: ours.unlink(missing_ok=True),
        ),
        peer=Side(
            command=setting.program("theirs.export", logits, theirs, asked, plans),
            before=lambda: theirs.unlink(missing_ok=True),
        ),
        least_time=task.least_time,
        least_memory=task.least_memory,
        compare=lambda *_: _compare(ours, theirs),
        limit_seconds=float(read) / setting.machine.bandwidth,
        limit="reading the logits (float16) and writing the label map once",
        repeats=1,
    )


def _compare(ours: Path, theirs: Path) -> str:
    a, b = np.load(ours, mmap_mode="r"), np.load(theirs, mmap_mode="r")
    share = float((a == b).mean()) if a.shape == b.shape else 0.0
    words = f"{100 * share:.4f}% of voxels alike, {len(np.unique(a))} classes"
    if share < _LEAST_ALIKE:
        raise Differs(words)
    return words


def _logits(path: Path, shape: Shape, classes: int) -> Path:
    """float16 (classes, z, y, x): high inside a class's organs and falling off within a few voxels beside them."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(classes)
    label = data.organs(shape, classes=classes - 1, generator=generator)
    partial = path.with_name("partial.npy")
    array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=(classes, *shape))
    for value, out in enumerate(array):
        noise = generator.standard_normal(shape, dtype=np.float32)
        out[...] = 12 * _smooth((label == value).astype(np.float32)) + 2 * _smooth(noise) - 4
    array.flush()
    del array
    partial.rename(path)
    return path


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean over 3x3x3 voxels, edges continued."""
    for axis in range(3):
        padded = np.pad(values, [(1, 1) if axis == other else (0, 0) for other in range(3)], mode="edge")
        parts = [np.take(padded, range(start, start + values.shape[axis]), axis=axis) for start in range(3)]
        values = sum(parts[1:], start=parts[0]) / np.float32(3)
    return values
