"""Targets that are so small that a training may miss them, and what to do then."""

from __future__ import annotations

import math
from statistics import median

from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.fingerprint import Fingerprint

# Of the voxels of all cases. A judgement: organs lie far above it, small lesions below.
TINY = 5e-4


def tiny_targets(spec: DatasetSpec, fingerprint: Fingerprint) -> tuple[str, ...]:
    """A sentence for each label that has less than ``TINY`` of the voxels of the cases in which it was annotated."""
    annotated = {case.id: case.annotated for case in spec.cases}
    sentences = []
    for name in spec.labels.names:
        looked_for = [case for case in fingerprint.cases if (names := annotated.get(case.id)) is None or name in names]
        counts = [sum(item.voxels for item in case.classes if item.name == name) for case in looked_for]
        found = [count for count in counts if count]
        if not found:
            continue
        share = sum(counts) / sum(math.prod(case.cropped_shape) for case in looked_for)
        if share < TINY:
            sentences.append(
                f"{name} is tiny: {100 * share:.2g}% of the voxels, {median(found):.0f} of them in the median case, "
                f"and {len(found)} of {len(looked_for)} cases have it; if training misses it, "
                "autoseg_train --loss small_objects shows it more often"
            )
    return tuple(sentences)
