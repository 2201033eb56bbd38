"""Batches for training, read and augmented in one process on one core: samples per second.

Both preprocess the same raw data, then read patches of the same size in batches of the same size from their own
stores. Targets of deep supervision are not part of it. What is compared: patches that are not augmented, voxel by
voxel, and over all samples the distributions of intensity, contrast, smoothness and labels.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import data
from benchmarks.bench import ROOT, Differs, Row, Setting, Side
from benchmarks.watch import Usage, run

_WARM = 2
# Means of both sides may lie this many standard errors apart: a right program fails once in 15000 numbers.
_SIGMAS = 4.0
# Of preprocessed intensities, whose deviation is about 1: both normalise CT by a mean and percentiles that each
# estimates from random voxels of its own choice.
_TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Task:
    """``make`` writes the raw dataset into a folder that it gets, and returns it."""

    name: str
    folder: str
    make: Callable[[Path], Path]
    channels: int
    patch_size: tuple[int, ...]
    batch_size: int
    batches: int

    @property
    def configuration(self) -> str:
        return "3d_fullres" if len(self.patch_size) == 3 else "2d"

    @property
    def samples(self) -> int:
        return self.batch_size * self.batches


def rows(setting: Setting) -> list[Row]:
    return [_row(setting, task) for task in _tasks(setting)]


def _tasks(setting: Setting) -> list[Task]:
    part = 2 if setting.quick else 1
    edge, wide, picture = 128 // part, 256 // part, 512 // part

    def ct(classes: int) -> Callable[[Path], Path]:
        shape = (200 // part, 256 // part, 256 // part)
        return partial(data.ct_dataset, cases=[(shape, (1.5, 1.5, 1.5))] * 4, classes=classes)

    tasks = [
        Task(
            name=f"CT, {classes} classes, patch {edge}^3",
            folder=f"Dataset{720 + classes}_LoadingCT{classes}",
            make=ct(classes),
            channels=1,
            patch_size=(edge,) * 3,
            batch_size=2,
            batches=30 // part,
        )
        for classes in (5, 25)
    ]
    slices = [((24, wide * 5 // 4, wide * 5 // 4), (6.0, 0.8, 0.8))] * 4
    tasks.append(
        Task(
            name=f"2 channels of thick slices, patch 20x{wide}x{wide}",
            folder="Dataset718_LoadingSlices",
            make=partial(data.mri_dataset, cases=slices, channels=2, classes=3),
            channels=2,
            patch_size=(20, wide, wide),
            batch_size=2,
            batches=30 // part,
        )
    )
    tasks.append(
        Task(
            name=f"RGB pictures, patch {picture}x{picture}",
            folder="Dataset719_LoadingPictures",
            make=partial(_pictures, size=(picture * 3 // 2, picture * 2)),
            channels=3,
            patch_size=(picture, picture),
            batch_size=12,
            batches=20 // part,
        )
    )
    if setting.data is not None and (setting.data / "Dataset004_Hippocampus").is_dir():
        tasks.insert(
            0,
            Task(
                name="Hippocampus, patch 40x56x40",
                folder="Dataset704_LoadingHippocampus",
                make=partial(_first_cases, whole=setting.data / "Dataset004_Hippocampus", count=40 // part),
                channels=1,
                patch_size=(40, 56, 40),
                batch_size=9,
                batches=60 // part,
            ),
        )
    return tasks


def _row(setting: Setting, task: Task) -> Row:
    home = setting.work / "loading" / ("quick" if setting.quick else "full")
    ours, theirs = home / "ours", home / "theirs"
    answers = {side: home / "answers" / f"{task.folder}.{side}.npz" for side in ("ours", "theirs")}
    one_core = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    peer_env = {f"nnUNet_{part}": str(theirs / part) for part in ("raw", "preprocessed", "results")}
    counts = ["--batches", task.batches, "--warm", _WARM]
    preprocessed = theirs / "preprocessed" / task.folder
    voxels = float(np.prod(task.patch_size))
    # Image and label of each patch, read once and written once.
    moved = 2 * task.samples * voxels * (4 * task.channels + 2)
    return Row(
        stage="loading",
        task=f"{task.name}, {task.samples} samples",
        ours=Side(
            command=setting.program(
                "ours.loading",
                ours / "preprocessed" / task.folder,
                task.configuration,
                *counts,
                "--out",
                answers["ours"],
            ),
            env=one_core,
            before=partial(_prepare_ours, setting, task, ours, home / "raw"),
        ),
        peer=Side(
            command=setting.program(
                "theirs.loading", preprocessed, task.configuration, *counts, "--out", answers["theirs"]
            ),
            # nnU-Net's own switch for loading in the main process.
            env={**one_core, **peer_env, "nnUNet_n_proc_DA": "0"},
            before=partial(_prepare_theirs, setting, task, peer_env, preprocessed, home / "raw"),
        ),
        least_time=4.0,
        least_memory=2.0,
        compare=partial(_compare, answers["ours"], answers["theirs"]),
        limit_seconds=moved / setting.machine.bandwidth,
        limit="each patch (float32 channels, int16 label) read and written once at the bandwidth of all cores",
    )


def _pictures(folder: Path, *, size: tuple[int, int]) -> Path:
    """Pictures whose channels have the name by which nnU-Net, too, divides colours by 255."""
    description = data.picture_dataset(folder, cases=8, size=size, classes=3) / "dataset.json"
    names = dict.fromkeys(("0", "1", "2"), "rgb_to_0_1")
    description.write_text(json.dumps({**json.loads(description.read_text()), "channel_names": names}))
    return folder


def _first_cases(folder: Path, *, whole: Path, count: int) -> Path:
    """A dataset of links to the first cases of another one; cached."""
    if (folder / "dataset.json").exists():
        return folder
    description = json.loads((whole / "dataset.json").read_text())
    ending = description["file_ending"]
    names = sorted(path.name.removesuffix(ending) for path in (whole / "labelsTr").glob(f"*{ending}"))[:count]
    for part in ("imagesTr", "labelsTr"):
        shutil.rmtree(folder / part, ignore_errors=True)
        (folder / part).mkdir(parents=True)
    for name in names:
        (folder / "labelsTr" / f"{name}{ending}").symlink_to(whole / "labelsTr" / f"{name}{ending}")
        for image in (whole / "imagesTr").glob(f"{name}_[0-9][0-9][0-9][0-9]{ending}"):
            (folder / "imagesTr" / image.name).symlink_to(image)
    (folder / "dataset.json").write_text(json.dumps({**description, "numTraining": len(names)}))
    return folder


def _prepare_ours(setting: Setting, task: Task, home: Path, raw: Path) -> None:
    done = home / f"{task.folder}.done"
    if done.exists():
        return
    dataset = task.make(raw / task.folder)
    command = setting.tool("autoseg_plan_and_preprocess", "-d", dataset, "-c", task.configuration, "-w", 2)
    command += ["--device", "cpu", "--workdir", str(home), "--batch-size", str(task.batch_size)]
    command += ["--patch-size", ",".join(map(str, task.patch_size))]
    run(command, env={"PYTHONPATH": str(ROOT)}, cwd=ROOT, log=home / f"{task.folder}.log")
    done.touch()


def _prepare_theirs(setting: Setting, task: Task, env: dict[str, str], preprocessed: Path, raw: Path) -> None:
    done = preprocessed / "done"
    if done.exists():
        return
    link = Path(env["nnUNet_raw"]) / task.folder
    for folder in (*map(Path, env.values()), preprocessed):
        folder.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(task.make(raw / task.folder))
    number = task.folder.removeprefix("Dataset").split("_")[0]

    def tool(name: str, *arguments: object) -> None:
        run(setting.tool(name, *arguments), env=env, cwd=ROOT, log=preprocessed.with_suffix(f".{name}.log"))

    tool("nnUNetv2_extract_fingerprint", "-d", number, "-np", 2)
    tool("nnUNetv2_plan_experiment", "-d", number)
    path = preprocessed / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    # The same patch and batch as ours, known to preprocessing too: the layout of its files follows the patch.
    plans["configurations"][task.configuration].update(patch_size=list(task.patch_size), batch_size=task.batch_size)
    path.write_text(json.dumps(plans))
    tool("nnUNetv2_preprocess", "-d", number, "-c", task.configuration, "-np", 2)
    done.touch()


def _compare(ours: Path, theirs: Path, _ours: Usage, _theirs: Usage) -> str:
    with np.load(ours) as mine, np.load(theirs) as other:
        if not np.array_equal(mine["shapes"], other["shapes"]):
            raise Differs(f"batches are {mine['shapes'].tolist()} and {other['shapes'].tolist()}")
        if not np.array_equal(mine["forced"], other["forced"]):
            raise Differs("samples that must show foreground are others")
        furthest, agreeing = _same_crops(mine, other)
        # Patches around foreground hang over the far borders of an image at the peer, and never here.
        anywhere = ~mine["forced"]
        worst = _distance(mine["rows"][anywhere], other["rows"][anywhere])
        background = mine["rows"].shape[1] - int(mine["labels"])
        showing = [(side["rows"][side["forced"], background] < 1).mean() for side in (mine, other)]
    if worst > _SIGMAS:
        raise Differs(f"a mean over all samples differs by {worst:.1f} standard errors")
    if min(showing) < 1:
        raise Differs(f"only {min(showing):.0%} of the samples that must show foreground do")
    return (
        f"plain patches within {furthest:.0e}, {agreeing:.3%} of their labels alike; means over "
        f"{int(anywhere.sum())} augmented samples within {worst:.1f} standard errors"
    )


def _same_crops(mine: np.lib.npyio.NpzFile, other: np.lib.npyio.NpzFile) -> tuple[float, float]:
    names = sorted(name.removeprefix("image") for name in mine.files if name.startswith("image"))
    furthest = max(float(np.abs(mine[f"image{name}"] - other[f"image{name}"]).max()) for name in names)
    agreeing = min(float((mine[f"label{name}"] == other[f"label{name}"]).mean()) for name in names)
    if furthest > _TOLERANCE or agreeing < 0.999:
        raise Differs(f"plain patches differ by up to {furthest:.1e}, {agreeing:.2%} of their labels agree")
    return furthest, agreeing


def _distance(mine: np.ndarray, other: np.ndarray) -> float:
    """How far the means of two samples of numbers (n, numbers) lie apart at most, in standard errors."""
    error = np.sqrt(mine.var(0, ddof=1) / len(mine) + other.var(0, ddof=1) / len(other))
    return float((np.abs(mine.mean(0) - other.mean(0)) / np.maximum(error, 1e-6)).max())
