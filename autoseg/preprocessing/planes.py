"""Class probabilities on the image's own grid, plane by plane: what several models need to decide together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from autoseg.preprocessing.restore import _WORK, Restorer, _probabilities
from autoseg.preprocessing.trace import Trace
from autoseg.schema.dataset import Labels
from autoseg.schema.plan import Resampling


class PlaneProbabilities(Restorer):
    """Takes planes of logits as ``Restorer`` does, and hands out planes of probabilities instead of a label map.

    Planes lie across ``axis`` of the image (z, y, x), which is the first axis of the network. Of the probabilities
    only the planes between two planes of logits are in memory.
    """

    def __init__(self, trace: Trace, *, labels: Labels, resampling: Resampling) -> None:
        super().__init__(trace, labels=labels, resampling=resampling)
        self.axis = trace.transpose[0]
        self._box = trace.box
        self._extent = tuple(trace.shape[axis] for axis in trace.transpose)
        self._swapped = trace.transpose[1] > trace.transpose[2]
        self._ready: list[np.ndarray] = []
        # The label map that is not made here.
        self._result = self._target = np.empty(0, dtype=self._values.dtype)

    def planes(self, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Probabilities (heads, rows, columns) float32 of every plane of the image, in order.

        The rows and columns are the other two axes of the image, in its own order; outside of the crop is background.

        Args:
            pieces: logits (heads, dz, y, x) as ``add`` takes them, all planes in order; drawn as they are needed.

        Raises:
            ValueError: as ``add``, and planes are missing.
        """
        return self.placed(self._within(pieces))

    def placed(self, planes: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Every plane of the image, from probabilities of the planes of the crop, axes transposed (``fields``)."""
        (start, stop), length = self._box[0], self._extent[0]
        for _ in range(start):
            yield self._background()
        for plane in planes:
            yield self._placed(plane)
        for _ in range(stop, length):
            yield self._background()

    def _within(self, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for piece in pieces:
            for index in range(piece.shape[1]):
                self.add(piece[:, index : index + 1])
                while self._ready:
                    yield self._ready.pop(0)
        self.finish()

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """The integers of the dataset for probabilities (heads, ...): the largest, or the last region above 0.5."""
        return self._values[self._decide(probabilities - 0.5 if self._regions else probabilities)]

    def _write(self, z: int) -> None:
        lower, upper = self._planes[self._depth.low[z]], self._planes[self._depth.high[z]]
        heads, height, width = self._shape[0], len(self._rows.low), len(self._columns.low)
        result = np.empty((heads, height, width), dtype=np.float32)
        step = max(1, _WORK // (heads * width))
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            result[:, rows] = _probabilities(self._dense(lower, upper, z, rows), self._regions)
        self._ready.append(result)

    def _background(self) -> np.ndarray:
        plane = np.zeros((self._shape[0], *self._extent[1:]), dtype=np.float32)
        if not self._regions:
            plane[0] = 1
        return self._upright(plane)

    def _placed(self, probabilities: np.ndarray) -> np.ndarray:
        rows, columns = (slice(*bounds) for bounds in self._box[1:])
        if probabilities.shape[1:] == self._extent[1:]:
            return self._upright(probabilities)
        plane = np.zeros((self._shape[0], *self._extent[1:]), dtype=np.float32)
        if not self._regions:
            plane[0] = 1
        plane[:, rows, columns] = probabilities
        return self._upright(plane)

    def _upright(self, plane: np.ndarray) -> np.ndarray:
        return plane.transpose(0, 2, 1) if self._swapped else plane
