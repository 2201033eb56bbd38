"""One CT from file to file on the CPU, without mirroring: reading, resampling, network, export, writing.

Both run the same network with the same weights by their own command.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name everybody uses
import torch
from torch.utils.flop_counter import FlopCounterMode

from autoseg.inference.tiles import tile_starts
from autoseg.ops.resample import target_shape
from benchmarks import data, networks
from benchmarks.bench import Differs, Row, Setting, Side

_SPACING = (0.8, 0.8, 0.8)
_DESIGN = networks.Design(width=16, stages=5, patch=(96, 96, 96), spacing=(1.5, 1.5, 1.5), classes=4)
# bfloat16 keeps 8 bits, so that voxels between two classes may go to either.
_LEAST_ALIKE = 0.999


def rows(setting: Setting) -> list[Row]:
    """One row: a CT at 0.8 mm, a network at 1.5 mm."""
    shape = (128, 256, 256) if setting.quick else (400, 512, 512)
    work = setting.work / "inference"
    models = networks.models(work / "model", _DESIGN)
    images = image_folder(work / f"images{shape[0]}", lambda: _image(shape), _SPACING)
    ours, theirs = work / "ours", work / "theirs"
    operations = _operations(shape)
    return [
        Row(
            stage="inference",
            task=f"{shape[2]}x{shape[1]}x{shape[0]} CT, CPU, no mirroring",
            ours=our_prediction(setting, images, ours, models.ours),
            peer=peer_prediction(setting, images, theirs, models.peer),
            least_time=3.0,
            least_memory=4.0,
            compare=lambda *_: worded(*agreement(ours / "case.nii.gz", theirs / "case.nii.gz"), least=_LEAST_ALIKE),
            limit_seconds=operations / setting.machine.flops16,
            limit=f"{operations / 1e12:.1f} TFLOP of convolutions at the bfloat16 rate of matrix products",
            repeats=1,
        )
    ]


def our_prediction(setting: Setting, images: Path, outputs: Path, model: Path) -> Side:
    """Our command on the CPU without mirroring; translations of foreign models stay beside ``outputs``."""
    return Side(
        command=setting.tool(
            "autoseg_predict", "-i", images, "-o", outputs, "--model", model, "--device", "cpu", "--no-tta"
        ),
        env={"AUTOSEG_HOME": str(outputs.parent / "home")},
        before=lambda: data.empty(outputs),
    )


def peer_prediction(setting: Setting, images: Path, outputs: Path, model: Path) -> Side:
    """The peer's, of fold 0 and with as few helpers as it takes."""
    return Side(
        command=setting.tool(
            "nnUNetv2_predict_from_modelfolder",
            *("-i", images, "-o", outputs, "-m", model, "-f", 0, "-device", "cpu", "--disable_tta"),
            *("-npp", 1, "-nps", 1),
        ),
        env=dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), "/nowhere"),
        before=lambda: data.empty(outputs),
    )


def image_folder(folder: Path, make: Callable[[], np.ndarray], spacing: data.Spacing) -> Path:
    """A folder with one image of one channel, made when it is missing."""
    path = folder / "case_0000.nii.gz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "partial.nii.gz"
        data.write_nifti(partial, make(), spacing)
        partial.rename(path)
    return folder


def agreement(ours: Path, theirs: Path) -> tuple[float, float]:
    """The shares of equal voxels in two label maps: of all, and of those that either calls foreground.

    Raises:
        Differs: another grid, or one of them empty.
    """
    first, second = sitk.ReadImage(str(ours)), sitk.ReadImage(str(theirs))
    a, b = sitk.GetArrayViewFromImage(first), sitk.GetArrayViewFromImage(second)
    if a.shape != b.shape or not np.allclose(first.GetSpacing(), second.GetSpacing()):
        raise Differs(f"grids of {a.shape} and {b.shape} voxels")
    if not a.any() or not b.any():
        raise Differs("a label map without any foreground")
    same = a == b
    return float(same.mean()), float(same[(a > 0) | (b > 0)].mean())


def worded(share: float, inside: float, *, least: float) -> str:
    """The words for an ``agreement``.

    Raises:
        Differs: less than ``least`` of all voxels is alike.
    """
    words = f"{100 * share:.3f}% of voxels alike, {100 * inside:.2f}% of the foreground"
    if share < least:
        raise Differs(words)
    return words


def _image(shape: tuple[int, int, int]) -> np.ndarray:
    return networks.image_with_clear_classes(shape, classes=_DESIGN.classes, seed=0)[0]


def _operations(shape: tuple[int, int, int]) -> float:
    coarse = target_shape(shape, _SPACING, _DESIGN.spacing)
    windows = math.prod(len(tile_starts(length, size, 0.5)) for length, size in zip(coarse, _DESIGN.patch, strict=True))
    with torch.inference_mode(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        networks.network(_DESIGN)(torch.empty((1, 1, *_DESIGN.patch)))
    return float(windows * counter.get_total_flops())
