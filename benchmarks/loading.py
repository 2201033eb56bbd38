"""What both programs of the stage "loading" measure and note of their batches; needs numpy alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

Box = list[list[int]]

_MOST_LABELS = 64


class Stopwatch:
    """Wall time and processor time of this process, added up over the blocks that count."""

    def __init__(self) -> None:
        self.seconds = self.processor_seconds = 0.0

    @contextmanager
    def running(self, counts: bool) -> Iterator[None]:
        wall, processor = time.perf_counter(), time.process_time()
        yield
        if counts:
            self.seconds += time.perf_counter() - wall
            self.processor_seconds += time.process_time() - processor


class Answer:
    """Statistics of every sample, for a comparison of distributions.

    Args:
        random_samples: that many first samples of a batch lie anywhere, the others must show foreground.
    """

    def __init__(self, *, random_samples: int) -> None:
        self._random_samples = random_samples
        self._rows: list[np.ndarray] = []
        self._forced: list[bool] = []
        self._shapes: set[tuple[int, ...]] = set()

    def add(self, image: np.ndarray, label: np.ndarray) -> None:
        """Note a batch: image (b, c, *patch), label (b, 1, *patch)."""
        self._shapes.add((*image.shape, *label.shape[1:]))
        for index, (one, marked) in enumerate(zip(image, label, strict=True)):
            axes = tuple(range(1, one.ndim))
            steps = [np.abs(np.diff(one, axis=axis)).mean(dtype=np.float64) for axis in axes]
            shares = np.bincount(marked.ravel(), minlength=_MOST_LABELS) / marked.size
            values = (one.mean(axes, dtype=np.float64), one.std(axes, dtype=np.float64), steps, shares)
            self._rows.append(np.concatenate(values))
            self._forced.append(index >= self._random_samples)

    def write(self, path: Path, crops: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Also ``crops``, which are not augmented: images (c, z, y, x) and labels (1, z, y, x)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {}
        for index, (image, label) in enumerate(crops):
            arrays[f"image{index}"] = np.asarray(image, dtype=np.float32)
            arrays[f"label{index}"] = np.maximum(label, 0).astype(np.int16)
        np.savez(
            path,
            rows=np.array(self._rows),
            forced=np.array(self._forced),
            shapes=np.array(sorted(self._shapes)),
            labels=_MOST_LABELS,
            **arrays,
        )


def crop_boxes(shape: Sequence[int], patch_size: Sequence[int]) -> list[Box]:
    """Three places of a patch in an image (z, y, x): over its near corner, in its middle, at its far end."""
    patch = (1,) * (3 - len(patch_size)) + tuple(patch_size)
    room = [length - size for length, size in zip(shape, patch, strict=True)]
    starts = [[-2 if size > 1 else 0 for size in patch], [space // 2 for space in room], room]
    return [[[first, first + size] for first, size in zip(start, patch, strict=True)] for start in starts]
