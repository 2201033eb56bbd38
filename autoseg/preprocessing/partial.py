"""Cases in which not every label was annotated: what their voxels may truly be, written into the voxels."""

from __future__ import annotations

import numpy as np

from autoseg.schema.dataset import Labels


def mark_ambiguous(label: np.ndarray, labels: Labels, annotated: tuple[str, ...]) -> np.ndarray:
    """Replace internal indices that stand for several possible ones by those of ``Labels.ambiguous``.

    So what is known of a voxel goes with it through cropping, turning and mirroring.

    Args:
        label: internal indices, also -1 (outside a mask) and the ignore index, which stay.
        annotated: names of the labels that somebody looked for; a set of ``labels.partial``.

    Returns:
        The same shape, uint8 or int16.
    """
    count = len(labels.leaves)
    codes = [
        index if len(possible) == 1 else count + 1 + labels.ambiguous.index(possible)
        for index, possible in enumerate(labels.candidates(annotated))
    ]
    # Index -1 takes the last entry.
    table = np.array([*codes, count, -1], dtype=np.int16)
    marked = table[label]
    return marked if marked.min(initial=0) < 0 or marked.max(initial=0) > 255 else marked.astype(np.uint8)
