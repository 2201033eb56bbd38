"""The datasets of the stages before training, where both programs keep what they make of them, and equal plans."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.io.images import read_shape
from autoseg.io.nifti import read_header
from benchmarks import data
from benchmarks.bench import Differs, Setting

WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class Task:
    """A dataset and what to preprocess of it. ``spacing``: target in mm (z, y, x) instead of the planned one."""

    name: str
    words: str
    configuration: str
    make: Callable[[Path], Path]
    spacing: tuple[float, float, float] | None = None
    repeats: int = 3

    @property
    def number(self) -> str:
        return str(int(self.name[len("Dataset") : len("Dataset") + 3]))


def tasks(setting: Setting) -> list[Task]:
    """Real small files, thick-sliced CT, one large CT, MRI of four channels, colour pictures."""
    side = 256 if setting.quick else 512
    thick = [(60, 0.70), (90, 0.78), (75, 0.66), (80, 0.74)][: 3 if setting.quick else 4]
    thick_cases = [((depth, side, side), (5.0, step, step)) for depth, step in thick]
    long_cases = [((100, 256, 256) if setting.quick else (400, 512, 512), (1.0, 0.8, 0.8))]
    brain = (60, 120, 120) if setting.quick else (155, 240, 240)
    pictures, pixels = (3, 1000) if setting.quick else (8, 2000)
    made = [
        Task(
            name="Dataset901_ThickCT",
            words=f"{len(thick_cases)} CT of {side}x{side}x60 to 90 at 0.66 to 0.78 x 5 mm",
            configuration="3d_fullres",
            make=lambda folder: data.ct_dataset(folder, cases=thick_cases, classes=8),
            repeats=2,
        ),
        Task(
            name="Dataset902_LongCT",
            words=f"one CT of {'x'.join(map(str, long_cases[0][0][::-1]))} from 0.8x0.8x1 to 1.2x1.2x1.5 mm",
            configuration="3d_fullres",
            make=lambda folder: data.ct_dataset(folder, cases=long_cases, classes=25),
            spacing=(1.5, 1.2, 1.2),
            repeats=1,
        ),
        Task(
            name="Dataset903_MRI4",
            words=f"2 MRI of 4 x {'x'.join(map(str, brain[::-1]))} voxels",
            configuration="3d_fullres",
            make=lambda folder: data.mri_dataset(folder, cases=[(brain, (1.0, 1.0, 1.0))] * 2, channels=4, classes=3),
            repeats=2,
        ),
        Task(
            name="Dataset904_RGB",
            words=f"{pictures} colour pictures of {pixels}x{pixels}",
            configuration="2d",
            make=lambda folder: data.picture_dataset(folder, cases=pictures, size=(pixels, pixels), classes=4),
            repeats=2,
        ),
    ]
    if setting.data is not None:
        real = setting.data / "Dataset004_Hippocampus"
        made.insert(
            0,
            Task(
                name=real.name,
                words="Hippocampus, 200 small MRI",
                configuration="3d_fullres",
                make=lambda folder: _linked(folder, real),
            ),
        )
    return made


def _linked(folder: Path, real: Path) -> Path:
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(real)
    return folder


def environment(setting: Setting) -> dict[str, str]:
    """Folders of both; every process computes with one thread, because there is a process per core."""
    peer = setting.work / "prepared" / "peer"
    return {
        "AUTOSEG_HOME": str(setting.work / "prepared" / "ours"),
        "nnUNet_raw": str(_raw(setting)),
        "nnUNet_preprocessed": str(peer),
        "nnUNet_results": str(peer / "results"),
        "OMP_NUM_THREADS": "1",
    }


def _raw(setting: Setting) -> Path:
    return setting.work / "data" / "raw"


def raw(setting: Setting, task: Task) -> Path:
    """The dataset's folder, made if need be."""
    folder = _raw(setting) / task.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    return task.make(folder)


def ours(setting: Setting, task: Task) -> Path:
    return setting.work / "prepared" / "ours" / "preprocessed" / task.name


def peers(setting: Setting, task: Task) -> Path:
    return setting.work / "prepared" / "peer" / task.name


def bytes_of_voxels(setting: Setting, task: Task) -> int:
    """Bytes of all images and labels of a dataset, unpacked."""
    total = 0
    for path in [*(raw(setting, task) / "imagesTr").iterdir(), *(raw(setting, task) / "labelsTr").iterdir()]:
        item = read_header(path).dtype.itemsize if path.name.endswith(".nii.gz") else 1
        total += int(np.prod(read_shape(path))) * item
    return total


def measured(setting: Setting, task: Task) -> None:
    """Have both measure the dataset, unless they have."""
    raw(setting, task)
    if not (ours(setting, task) / "fingerprint.json").exists():
        _run(setting, *setting.tool("autoseg_fingerprint", "-d", task.number, "-w", WORKERS))
    if not (peers(setting, task) / "dataset_fingerprint.json").exists():
        _run(setting, *setting.tool("nnUNetv2_extract_fingerprint", "-d", task.number, "-np", WORKERS))


def plan_flags(task: Task) -> list[str]:
    """The plan of the peer: a plain U-Net for a GPU of 8 GB."""
    flags = ["--arch", "unet", "--device", "cuda", "--memory", "8GB"]
    return flags if task.spacing is None else [*flags, "--spacing", ",".join(map(str, task.spacing))]


def planned(setting: Setting, task: Task) -> None:
    """Have both plan, unless they have, and let the peer's plan ask for exactly what ours does."""
    measured(setting, task)
    mine, theirs = ours(setting, task) / "plan.json", peers(setting, task) / "nnUNetPlans.json"
    if not mine.exists():
        _run(setting, *setting.tool("autoseg_plan", "-d", task.number, *plan_flags(task)))
    if not theirs.exists():
        _run(setting, *setting.tool("nnUNetv2_plan_experiment", "-d", task.number))
    own = json.loads(mine.read_text())
    peer = json.loads(theirs.read_text())
    if list(own["transpose"]) != list(peer["transpose_forward"]):
        raise Differs(f"axes in the order {own['transpose']} and {peer['transpose_forward']}")
    wanted = configuration(own, task)
    peer["configurations"][task.configuration].update(
        {"spacing": list(wanted["spacing"]), "patch_size": list(wanted["patch_size"])}
    )
    for channel, scheme in enumerate(wanted["normalization"]):
        if scheme["scheme"] == "ct":
            peer["foreground_intensity_properties_per_channel"][str(channel)].update(_statistics(scheme))
    theirs.write_text(json.dumps(peer, indent=1))


def _statistics(scheme: Mapping[str, float]) -> dict[str, float]:
    return {
        "mean": scheme["mean"],
        "std": scheme["std"],
        "percentile_00_5": scheme["lower"],
        "percentile_99_5": scheme["upper"],
    }


def configuration(own: Mapping, task: Task) -> dict:
    """The task's configuration in the JSON of our plan."""
    return next(item for item in own["configurations"] if item["name"] == task.configuration)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _run(setting: Setting, *command: str) -> None:
    log = setting.work / "logs" / "prepared.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stream:
        subprocess.run(
            command, env={**os.environ, **environment(setting)}, stdout=stream, stderr=subprocess.STDOUT, check=True
        )
