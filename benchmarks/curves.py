"""python -m benchmarks.curves [--curve export_classes step ...] [--quick]: how the cost of ours grows with the task."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autoseg import records
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Plan
from benchmarks import curves_page, data, machine
from benchmarks.bench import ROOT
from benchmarks.predict_memory import write_model
from benchmarks.watch import RunError, Usage, run

_LIMIT = 4_000_000_000
_DATASET = "Dataset900_Curves"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where things are. ``quick``: fewer and smaller points, to try it out."""

    work: Path
    quick: bool

    @property
    def cases(self) -> int:
        """Of the dataset that is preprocessed and loaded from."""
        return 4 if self.quick else 64

    def tool(self, name: str, *arguments: object, log: str) -> Usage:
        return self._run([str(Path(sys.executable).parent / name), *map(str, arguments)], log)

    def program(self, name: str, *arguments: object, log: str) -> Usage:
        return self._run([sys.executable, "-m", f"benchmarks.ours.{name}", *map(str, arguments)], log)

    def _run(self, command: list[str], log: str) -> Usage:
        return run(command, env={"PYTHONPATH": str(ROOT)}, cwd=ROOT, log=self.work / "logs" / f"{log}.log")

    def fresh(self, name: str) -> Path:
        """An empty work directory."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("--curve", nargs="+", choices=_CURVES, default=tuple(_CURVES))
    parser.add_argument("--quick", action="store_true", help="smaller, and the docs are left as they are")
    parser.add_argument("--workdir", type=Path, default=ROOT / "build" / "curves")
    asked = parser.parse_args()
    context = Run(work=asked.workdir.resolve(), quick=asked.quick)
    machine_words = machine.describe(machine.probe())
    for name in asked.curve:
        curve = {"name": name, **_CURVES[name](context)}
        sys.stdout.write(curves_page.summary(curve) + "\n")
        sys.stdout.flush()
        if not asked.quick:
            curves_page.write(curve, order=tuple(_CURVES), machine=machine_words, folder=ROOT / "docs")


def _export_classes(context: Run) -> dict:
    shape = (32, 64, 64) if context.quick else (128, 256, 256)
    points = [(classes, _export(context, classes, shape)) for classes in (5, 25, 60, 117)]
    size = "x".join(map(str, shape))
    return {
        "title": f"Export of {size}: memory against classes",
        "x": "classes",
        "y": "MB beside the label map",
        "columns": ["s", "MB of the label map", "MB if all logits were held"],
        "rows": [[classes, *figures] for classes, figures in points],
    }


def _export_volume(context: Run) -> dict:
    sides = (32, 64, 96) if context.quick else (128, 192, 256, 384, 512)
    shapes = [(side // 2, side, side) for side in sides]
    points = [(math.prod(shape) / 1e6, _export(context, 25, shape)) for shape in shapes]
    return {
        "title": "Export of 25 classes: memory against the volume",
        "x": "million voxels",
        "y": "MB beside the label map",
        "columns": ["s", "MB of the label map", "MB if all logits were held"],
        "rows": [[round(voxels, 3), *figures] for voxels, figures in points],
    }


def _export(context: Run, classes: int, shape: Sequence[int]) -> list[float]:
    usage = context.program("curves", "export", classes, ",".join(map(str, shape)), log=f"export {classes} {shape}")
    facts = usage.facts
    sizes = (facts["grown_bytes"] - facts["label_bytes"], facts["label_bytes"], facts["logit_bytes"])
    grown, label, logits = (size / 1e6 for size in sizes)
    return [grown, usage.seconds, label, logits]


def _fingerprint(context: Run) -> dict:
    rows = []
    for count in (4, 8) if context.quick else (40, 160, 640):
        folder = _ct_dataset(context, f"fingerprint_{count}", [((32, 96, 96), (2.5, 0.8, 0.8))] * count)
        workdir = context.fresh("fingerprint")
        usage = context.tool("autoseg_fingerprint", "-d", folder, "--workdir", workdir, "-w", 2, log=f"cases {count}")
        rows.append([count, usage.peak_bytes / 1e6, usage.seconds])
    return {
        "title": "Fingerprint and verification: memory against cases",
        "x": "cases of 32x96x96",
        "y": "MB, two workers",
        "columns": ["s"],
        "rows": rows,
    }


def _preprocess(context: Run) -> dict:
    """One command on one core and on two; and two commands with a core each, which is what the machine has to give."""
    few, many = context.cases, 8 if context.quick else 256
    cores = sorted(os.sched_getaffinity(0))[:2]
    # The cores of every command that runs at the same time.
    ways = {"one": (cores[:1],), "two": (cores,), "apart": tuple([core] for core in cores)}
    usages: dict[tuple[str, int], list[Usage]] = {(way, count): [] for way in ways for count in (few, many)}
    # In turn, because the speed of a machine changes with what else it does.
    for _ in range(1 if context.quick else 3):
        for (way, count), those in usages.items():
            folders = [_prepared(context, count, copy) for copy in range(len(ways[way]))]
            for workdir, _folder in folders:
                _forget_cases(workdir)
            with ThreadPoolExecutor(len(folders)) as pool:
                found = list(pool.map(partial(_preprocess_on, context), ways[way], folders))
            those.append(max(found, key=lambda usage: usage.seconds))

    def rate(way: str) -> float:
        short, long = (statistics.median(one.seconds for one in usages[way, count]) for count in (few, many))
        return len(ways[way]) * (many - few) / max(long - short, 1e-3)

    rows = []
    for count, way, limit in ((1, "one", "one"), (2, "two", "apart")):
        seconds = [statistics.median(one.seconds for one in usages[way, size]) for size in (few, many)]
        peak = max(one.peak_bytes for one in usages[way, many])
        rows.append([count, rate(way), *seconds, peak / 1e6, rate(limit)])
    return {
        "title": f"Preprocessing of {many} CTs, resampled: throughput against cores",
        "x": "cores",
        "y": f"cases/s after the first {few}",
        "columns": [f"s for {few}", f"s for {many}", "MB", "cases/s of as many commands, a core each"],
        "rows": rows,
    }


def _preprocess_on(context: Run, cores: list[int], folders: tuple[Path, Path]) -> Usage:
    """On these cores alone: more threads than workers would hide what one core does. Runs in a thread of its own."""
    os.sched_setaffinity(0, cores)
    workdir, folder = folders
    return context.tool("autoseg_preprocess", "-d", folder, "--workdir", workdir, log=f"preprocess {workdir.name}")


def _prepared(context: Run, count: int, copy: int = 0) -> tuple[Path, Path]:
    """A work directory with a preprocessed dataset of so many cases, and the dataset's folder."""
    shape = (24, 64, 64) if context.quick else (64, 192, 192)
    spacings = ((2.5, 0.8, 0.8), (1.6, 0.7, 0.7), (2.0, 0.9, 0.9))
    folder = _ct_dataset(context, f"preprocess_{count}", [(shape, spacings[index % 3]) for index in range(count)])
    workdir = context.work / (f"prepared_{count}" + f"_{copy}" * (copy > 0))
    if not workdir.exists():
        context.tool(
            "autoseg_plan_and_preprocess", "-d", folder, "--workdir", workdir, "--memory", "4GB", log="preparation"
        )
    return workdir, folder


def _forget_cases(workdir: Path) -> None:
    for store in (workdir / "preprocessed").glob("*/*/"):
        shutil.rmtree(store)


def _step(context: Run) -> dict:
    sides = (16, 32, 48) if context.quick else (32, 48, 64, 80, 96)
    rows = []
    for side in sides:
        usage = context.program("curves", "step", side, 3, log=f"step {side}")
        rows.append([side**3, usage.seconds, f"{side}x{side}x{side}", usage.peak_bytes / 1e6])
    return {
        "title": "Training step of a three-stage 3D U-Net, batch 1: time against patch volume",
        "x": "voxels",
        "y": "s, one core",
        "columns": ["patch", "MB"],
        "rows": rows,
    }


def _folds(context: Run) -> dict:
    shape = "64,96,96" if context.quick else "96,160,160"
    rows = []
    for folds in (1, 2, 5):
        usage = context.program("curves", "ensemble", folds, shape, log=f"folds {folds}")
        rows.append([folds, usage.seconds, usage.peak_bytes / 1e6])
    return {
        "title": f"Prediction of {shape.replace(',', 'x')} by an ensemble: time against folds",
        "x": "folds",
        "y": "s, one core",
        "columns": ["MB"],
        "rows": rows,
    }


def _loading(context: Run) -> dict:
    workdir, folder = _prepared(context, context.cases)
    context.tool("autoseg_preprocess", "-d", folder, "--workdir", workdir, "--memory", "4GB", log="loading preparation")
    prepared = next((workdir / "preprocessed").glob("*"))
    batches = 4 if context.quick else 30
    rows = []
    for workers in (1, 2):
        usage = context.program(
            "loading",
            *(prepared, "3d_fullres", "--batches", batches, "--warm", 4, "--workers", workers),
            *("--out", context.work / "loading.npz"),
            log=f"loading {workers}",
        )
        rows.append([workers, usage.facts["samples_per_second"], usage.seconds, usage.peak_bytes / 1e6])
    return {
        "title": "Loading and augmentation for training: throughput against loading workers",
        "x": "workers",
        "y": "samples/s",
        "columns": ["s", "MB"],
        "rows": rows,
    }


def _memory(context: Run) -> dict:
    """Commands on CTs of clinical size with ``--memory 4GB``; training follows the plan that was made with it."""
    shape = (24, 96, 96) if context.quick else (200, 512, 512)
    folder = _ct_dataset(context, f"memory_{shape[0]}", [(shape, (1.5, 0.8, 0.8)), (shape, (1.25, 0.7, 0.7))])
    workdir = context.fresh("memory")
    common = ("--workdir", workdir)
    limit = ("--memory", "4GB")
    model = ModelFolder(workdir / "model")
    write_model(model, classes=25, patch=(64, 64, 64), width=8)
    labels = records.load(Plan, model.plan).labels
    spec = DatasetSpec(name="Dataset000_Noise", channels=("CT",), labels=labels, file_ending=".nii.gz", cases=())
    records.save(model.root / "dataset.json", spec)
    commands: list[tuple[str, tuple[object, ...]]] = [
        ("autoseg_fingerprint", ("-d", folder, *common, *limit)),
        ("autoseg_plan_and_preprocess", ("-d", folder, *common, *limit)),
        (
            "autoseg_train",
            ("-d", folder, *common, "-f", "all", "--epochs", 1, "--iterations", 2, "--val-iterations", 1),
        ),
        (
            "autoseg_predict",
            (
                *("-i", folder / "imagesTr" / "case_000_0000.nii.gz", "-o", workdir / "out", "-m", model.root),
                *("--step-size", 1, *common, *limit),
            ),
        ),
    ]
    rows = [_kept(context, name, arguments) for name, arguments in commands]
    return {
        "title": f"`--memory 4GB` with CTs of {'x'.join(map(str, shape))}",
        "x": "command",
        "y": "peak MB",
        "columns": ["s", "kept?"],
        "rows": rows,
    }


def _kept(context: Run, name: str, arguments: tuple[object, ...]) -> list[object]:
    try:
        usage = context.tool(name, *arguments, log=name)
    except RunError as error:
        return [name, None, None, f"did not finish: {str(error).splitlines()[-1]}"]
    return [name, usage.peak_bytes / 1e6, usage.wall_seconds, "yes" if usage.peak_bytes <= _LIMIT else "**no**"]


def _ct_dataset(context: Run, name: str, cases: Sequence[tuple[data.Shape, data.Spacing]]) -> Path:
    folder = context.work / "data" / name / _DATASET
    folder.parent.mkdir(parents=True, exist_ok=True)
    return data.ct_dataset(folder, cases=cases, classes=3)


_CURVES: dict[str, Callable[[Run], dict]] = {
    "export_classes": _export_classes,
    "export_volume": _export_volume,
    "fingerprint": _fingerprint,
    "preprocess": _preprocess,
    "loading": _loading,
    "step": _step,
    "folds": _folds,
    "memory": _memory,
}


if __name__ == "__main__":
    main()
