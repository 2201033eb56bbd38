"""A fold's validation cases predicted from their raw images and scored, on the CPU without mirroring.

Images have the spacing of the network, so that neither side has to resample: nnU-Net's own validation reads cases
that are preprocessed, ours reads raw ones. Our scores include surface distances, the peer has none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import data, networks
from benchmarks.bench import Differs, Row, Setting, Side
from benchmarks.watch import Usage

_DESIGN = networks.Design(width=16, stages=5, patch=(96, 96, 96), spacing=(1.5, 1.5, 1.5), classes=4)
# bfloat16 moves some voxels between two classes.
_TOLERANCE = 0.005


def rows(setting: Setting) -> list[Row]:
    """One row."""
    shape, cases = ((64, 96, 96), 2) if setting.quick else ((96, 160, 160), 6)
    work = setting.work / "validation"
    models = networks.models(setting.work / "inference" / "model", _DESIGN)
    dataset = _dataset(work / f"dataset{cases}", shape, cases)
    theirs = work / "theirs"
    return [
        Row(
            stage="validation",
            task=f"{cases} cases of {shape[2]}x{shape[1]}x{shape[0]}, CPU, no mirroring",
            ours=Side(
                command=setting.program("ours.validation", models.ours, dataset),
                before=lambda: data.empty(models.ours / "fold_0" / "validation"),
            ),
            peer=Side(
                command=setting.program("theirs.validation", models.peer, dataset, theirs),
                before=lambda: data.empty(theirs),
            ),
            least_time=3.0,
            compare=_compare,
            repeats=2,
        )
    ]


def _compare(ours: Usage, theirs: Usage) -> str:
    a, b = np.array(ours.facts["dice"]), np.array(theirs.facts["dice"])
    difference = float(np.abs(a - b).max())
    words = f"Dice of cases and classes differs by {difference:.4f} at most, mean {a.mean():.4f} and {b.mean():.4f}"
    if a.shape != b.shape or difference > _TOLERANCE:
        raise Differs(words)
    return words


def _dataset(folder: Path, shape: tuple[int, int, int], cases: int) -> Path:
    if not folder.exists():
        partial = folder.with_name("partial")
        for part in ("imagesTr", "labelsTr"):
            data.empty(partial / part)
        for index in range(cases):
            image, label = networks.image_with_clear_classes(shape, classes=_DESIGN.classes, seed=200 + index)
            data.write_nifti(partial / "imagesTr" / f"case_{index:03d}_0000.nii.gz", image, _DESIGN.spacing)
            data.write_nifti(partial / "labelsTr" / f"case_{index:03d}.nii.gz", label, _DESIGN.spacing)
        partial.rename(folder)
    return folder
