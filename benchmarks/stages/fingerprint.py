"""Check every file of a dataset and measure it, in one command on either side."""

from __future__ import annotations

import json
from functools import partial

import numpy as np

from benchmarks import prepared
from benchmarks.bench import Differs, Row, Setting, Side
from benchmarks.prepared import WORKERS, Task
from benchmarks.watch import Usage

# Share of the standard deviation by which percentiles of samples may differ.
_SAMPLING = 0.05


def rows(setting: Setting) -> list[Row]:
    """One row per dataset."""
    return [_row(setting, task) for task in prepared.tasks(setting)]


def _row(setting: Setting, task: Task) -> Row:
    prepared.raw(setting, task)
    env = prepared.environment(setting)
    theirs = ["-d", task.number, "--verify_dataset_integrity", "-np", WORKERS, "--clean"]
    return Row(
        stage="verify and fingerprint",
        task=task.words,
        ours=Side(command=setting.tool("autoseg_fingerprint", "-d", task.number, "-w", WORKERS, "--clean"), env=env),
        peer=Side(command=setting.tool("nnUNetv2_extract_fingerprint", *theirs), env=env),
        least_time=4.0,
        least_memory=4.0,
        compare=partial(_compare, setting, task),
        limit_seconds=prepared.bytes_of_voxels(setting, task) / setting.machine.bandwidth,
        limit="voxels through memory once",
        repeats=task.repeats,
    )


def _compare(setting: Setting, task: Task, _ours: Usage, _theirs: Usage) -> str:
    mine = json.loads((prepared.ours(setting, task) / "fingerprint.json").read_text())
    peer = json.loads((prepared.peers(setting, task) / "dataset_fingerprint.json").read_text())
    if [case["cropped_shape"] for case in mine["cases"]] != [list(shape) for shape in peer["shapes_after_crop"]]:
        raise Differs("other shapes after cropping")
    # The peer gives pictures a made-up thickness.
    axes = slice(1, 3) if task.configuration == "2d" else slice(0, 3)
    spacings = ([case["spacing"][axes] for case in mine["cases"]], [spacing[axes] for spacing in peer["spacings"]])
    if not np.allclose(*spacings, rtol=1e-5):
        raise Differs("other spacings")
    worst = max(
        abs(own[name] - other[name]) / other["std"]
        for own, other in zip(
            mine["intensities"], peer["foreground_intensity_properties_per_channel"].values(), strict=True
        )
        for name in ("mean", "std", "median", "percentile_00_5", "percentile_99_5")
    )
    if worst > _SAMPLING:
        raise Differs(f"intensities differ by {worst:.3f} standard deviations")
    return f"same shapes and spacings, intensities within {worst:.4f} std"
