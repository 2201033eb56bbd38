"""Crop, normalise, resample and store a dataset; both follow the same plan."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import blosc2
import numpy as np

from benchmarks import prepared
from benchmarks.bench import Differs, Row, Setting, Side
from benchmarks.prepared import WORKERS, Task
from benchmarks.watch import Usage

_MEAN, _LABELS = 1e-4, 0.9999


def rows(setting: Setting) -> list[Row]:
    """One row per dataset; the targets are for CT that is resampled."""
    return [_row(setting, task) for task in prepared.tasks(setting)]


def _row(setting: Setting, task: Task) -> Row:
    prepared.raw(setting, task)
    env = prepared.environment(setting)
    common = ["-d", task.number, "-c", task.configuration]
    resampled = task.name.endswith("CT")

    def without_store() -> None:
        prepared.planned(setting, task)
        prepared.emptied(_our_store(setting, task))

    return Row(
        stage="preprocess",
        task=task.words,
        ours=Side(
            command=setting.tool("autoseg_preprocess", *common, "-w", WORKERS),
            env=env,
            before=without_store,
        ),
        peer=Side(
            command=setting.tool("nnUNetv2_preprocess", *common, "-np", WORKERS),
            env=env,
            before=lambda: prepared.emptied(_peer_store(setting, task)),
        ),
        least_time=6.0 if resampled else None,
        least_memory=3.0 if resampled else None,
        compare=partial(_compare, setting, task),
        limit_seconds=3 * prepared.bytes_of_voxels(setting, task) / setting.machine.bandwidth,
        limit="voxels read once and written once as float32",
        repeats=task.repeats,
    )


def _our_store(setting: Setting, task: Task) -> Path:
    return prepared.ours(setting, task) / task.configuration


def _peer_store(setting: Setting, task: Task) -> Path:
    return prepared.peers(setting, task) / f"nnUNetPlans_{task.configuration}"


def _compare(setting: Setting, task: Task, _ours: Usage, _theirs: Usage) -> str:
    """Every stored voxel of every case."""
    mine, theirs = _our_store(setting, task), _peer_store(setting, task)
    names = sorted(path.name.removesuffix(".image.b2nd") for path in mine.glob("*.image.b2nd"))
    if not names or names != sorted(path.name.removesuffix(".pkl") for path in theirs.glob("*.pkl")):
        raise Differs("other cases")
    largest, means, alike, voxels = 0.0, [], 0, 0
    for name in names:
        image, other = (blosc2.open(str(path)) for path in (mine / f"{name}.image.b2nd", theirs / f"{name}.b2nd"))
        label, seg = (blosc2.open(str(path)) for path in (mine / f"{name}.label.b2nd", theirs / f"{name}_seg.b2nd"))
        if image.shape != other.shape:
            raise Differs(f"{name}: shape {image.shape} and {other.shape}")
        for z in range(0, image.shape[1], 16):
            part = np.abs(image[:, z : z + 16] - other[:, z : z + 16])
            largest, means = max(largest, float(part.max())), [*means, float(part.mean())]
            # Both mark what lies outside of the image by -1, one of them only where it matters.
            same = np.maximum(label[:, z : z + 16].astype(int), 0) == np.maximum(seg[:, z : z + 16].astype(int), 0)
            alike, voxels = alike + int(same.sum()), voxels + same.size
    mean = float(np.mean(means))
    if mean > _MEAN or alike < _LABELS * voxels:
        raise Differs(f"images differ by {mean:.2g} on average, {alike / voxels:.4%} of labels are alike")
    return f"images within {largest:.1g} (mean {mean:.1g}), {alike / voxels:.4%} of labels alike"
