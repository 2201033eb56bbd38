"""python -m benchmarks.ours.export LOGITS RESULT Z,Y,X: restore a label map from logits, plane by plane."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from autoseg.preprocessing.restore import Restorer
from autoseg.preprocessing.trace import Trace
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.plan import Resampling
from benchmarks.watch import report

FINE, COARSE = (0.8, 0.8, 0.8), (1.5, 1.5, 1.5)
# As many planes as a window hands on at once.
_PIECE_BYTES = 64_000_000


def main(path: str, result: str, shape: str) -> None:
    started = time.perf_counter()
    # Plain reads, so that no page of the file counts as memory of the process before it is needed, nor after.
    with Path(path).open("rb") as stream:
        np.lib.format.read_magic(stream)
        (classes, *coarse), _, dtype = np.lib.format.read_array_header_1_0(stream)
        offset = stream.tell()
        full = tuple(map(int, shape.split(",")))
        trace = Trace(
            shape=full,
            spacing=FINE,
            transpose=(0, 1, 2),
            box=tuple((0, length) for length in full),
            cropped_shape=full,
            resampled_shape=tuple(coarse),
            target_spacing=COARSE,
            separate_axis=None,
        )
        labels = Labels(foreground=tuple(Label(name=f"organ{value}", values=(value,)) for value in range(1, classes)))
        restorer = Restorer(trace, labels=labels, resampling=Resampling())
        depth, height, width = coarse
        step = max(1, _PIECE_BYTES // (classes * height * width * 4))
        for first in range(0, depth, step):
            count = min(step, depth - first)
            planes = np.empty((classes, count, height, width), dtype)
            for value, plane in enumerate(planes):
                stream.seek(offset + (value * depth + first) * height * width * dtype.itemsize)
                stream.readinto(plane.data)
            restorer.add(planes)
    restored = restorer.finish()
    seconds = time.perf_counter() - started
    np.save(result, restored)
    report(seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
