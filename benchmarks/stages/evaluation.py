"""Scoring 100 segmentations. Ours is the whole command, with all of its figures, in every row."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import data
from benchmarks.bench import ROOT, Differs, Row, Setting, Side
from benchmarks.watch import Usage, run

_CASES = 100
_SHAPE, _QUICK_SHAPE = (96, 160, 160), (48, 80, 80)
_SPACING = (2.5, 0.8, 0.8)
_CLASSES = 5
# Cases on which MedPy's distances are put together by our definition, outside the measured time.
_CHECKED = 10

Scores = Mapping[tuple[str, str], tuple[float, float]]
"""Dice and HD95 in mm by (file name, integer of the label)."""


@dataclass(frozen=True, kw_only=True)
class _Folders:
    """A dataset with ``labelsTr`` and ``segmentations``, its labels 1 to ``classes``, where results go, and the
    bytes of all its label maps (one per voxel)."""

    root: Path
    results: Path
    cases: int
    classes: int
    num_bytes: int

    @property
    def references(self) -> Path:
        return self.root / "labelsTr"

    @property
    def segmentations(self) -> Path:
        return self.root / "segmentations"

    @property
    def description(self) -> Path:
        return self.root / "dataset.json"


def rows(setting: Setting) -> list[Row]:
    """Overlaps alone against nnU-Net's own command; with HD95 against nnU-Net and the tools that its users take."""
    shape = _QUICK_SHAPE if setting.quick else _SHAPE
    large = _Folders(
        root=data.segmented_dataset(
            setting.work / "data" / f"segmented_{shape[0]}",
            cases=_CASES,
            shape=shape,
            spacing=_SPACING,
            classes=_CLASSES,
        ),
        results=setting.work / "evaluation" / "generated",
        cases=_CASES,
        classes=_CLASSES,
        num_bytes=2 * _CASES * math.prod(shape),
    )
    size = f"{_CASES} cases of {'x'.join(map(str, shape))}, {_CLASSES} labels"
    found = [
        _row(setting, large, f"Dice, {size}", _overlaps(setting, large), _compare_overlaps),
        _with_distances(setting, large, f"Dice + HD95 (MedPy), {size}", "medpy", least=5.0, repeats=2),
        _with_distances(setting, large, f"Dice + HD95 (surface-distance), {size}", "deepmind", least=5.0, repeats=1),
    ]
    if setting.data is not None:
        found.append(_real(setting, setting.data / "Dataset004_Hippocampus"))
    return found


def _real(setting: Setting, source: Path) -> Row:
    root = data.misplaced_dataset(setting.work / "data" / "misplaced", source=source, cases=_CASES)
    small = _Folders(
        root=root,
        results=setting.work / "evaluation" / "hippocampus",
        cases=_CASES,
        classes=2,
        num_bytes=2 * _CASES * 35 * 50 * 35,
    )
    return _with_distances(
        setting, small, f"Dice + HD95 (MedPy), {_CASES} real hippocampi", "medpy", least=5.0, repeats=3
    )


def _with_distances(setting: Setting, folders: _Folders, task: str, tool: str, *, least: float, repeats: int) -> Row:
    arguments = (folders.references, folders.segmentations, folders.results / f"{tool}.json", folders.classes)
    peer = Side(command=setting.program("theirs.evaluation", tool, *arguments, folders.cases))
    compare = partial(_compare_distances, tool=tool, setting=setting)
    return _row(setting, folders, task, peer, compare, least=least, repeats=repeats)


def _overlaps(setting: Setting, folders: _Folders) -> Side:
    folders.results.mkdir(parents=True, exist_ok=True)
    # Of the plans, this command reads only how labels are to be understood.
    plans = folders.results / "plans.json"
    plans.write_text(json.dumps({"label_manager": "LabelManager"}))
    command = setting.tool(
        "nnUNetv2_evaluate_folder",
        folders.references,
        folders.segmentations,
        *("-djfile", folders.description, "-pfile", plans, "-o", folders.results / "nnunet.json", "-np", 2),
    )
    return Side(command=command, env=dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), "/nowhere"))


def _row(
    setting: Setting,
    folders: _Folders,
    task: str,
    peer: Side,
    compare: Callable[[_Folders], str],
    *,
    least: float | None = None,
    repeats: int = 3,
) -> Row:
    ours = setting.tool(
        "autoseg_evaluate",
        *("-r", folders.references, "-p", folders.segmentations),
        *("--labels", folders.description, "--output", folders.results / "ours"),
    )

    def compared(_ours: Usage, _theirs: Usage) -> str:
        return compare(folders)

    folders.results.mkdir(parents=True, exist_ok=True)
    return Row(
        stage="evaluation",
        task=task,
        ours=Side(command=ours, before=lambda: shutil.rmtree(folders.results / "ours", ignore_errors=True)),
        peer=peer,
        least_time=least,
        compare=compared,
        limit_seconds=2 * folders.num_bytes / setting.machine.bandwidth,
        limit="both label maps written once and read once",
        repeats=repeats,
    )


def _compare_overlaps(folders: _Folders) -> str:
    theirs = json.loads((folders.results / "nnunet.json").read_text())["metric_per_case"]
    scores = {
        (Path(case["reference_file"]).name, label): (float(figures["Dice"]), math.nan)
        for case in theirs
        for label, figures in case["metrics"].items()
    }
    return _same_dice(_ours(folders), scores)


def _compare_distances(folders: _Folders, *, tool: str, setting: Setting) -> str:
    ours, theirs = _ours(folders), _theirs(folders.results / f"{tool}.json")
    words = [_same_dice(ours, theirs)]
    distances = np.array([(ours[key][1], theirs[key][1]) for key in theirs])
    undefined = np.isnan(distances)
    if (undefined[:, 0] != undefined[:, 1]).any():
        raise Differs("HD95 is defined in other cases")
    apart = np.abs(np.diff(distances[~undefined[:, 0]], axis=1))
    if tool == "medpy":
        words.append(_same_distances(ours, folders, setting))
    elif np.median(apart) > max(_SPACING) / 2:
        raise Differs(f"half of all HD95 differ by more than {np.median(apart):.2f} mm")
    definition = {"medpy": "one percentile of both directions together", "deepmind": "weighted by surface area"}[tool]
    words.append(
        f"HD95 as {tool} defines it ({definition}): {(apart <= 1e-4).mean():.0%} alike, "
        f"{(apart <= min(_SPACING) / 2).mean():.0%} within {min(_SPACING) / 2:.1f} mm, largest difference "
        f"{apart.max():.2f} mm"
    )
    return "; ".join(words)


def _same_distances(ours: Scores, folders: _Folders, setting: Setting) -> str:
    """MedPy's own distances, with the percentile of each direction and then the larger, must give our figures."""
    output = folders.results / "medpy-directed.json"
    arguments = (folders.references, folders.segmentations, output, folders.classes, _CHECKED)
    run(
        setting.program("theirs.evaluation", "medpy-directed", *arguments),
        env={"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        log=folders.results / "medpy-directed.log",
    )
    theirs = _theirs(output)
    for key, (_, distance) in theirs.items():
        # nnU-Net's reader takes spacings in float32.
        if not math.isclose(ours[key][1], distance, rel_tol=1e-5) and not math.isnan(distance):
            raise Differs(f"HD95 of {key} is {ours[key][1]} mm, from MedPy's distances {distance} mm")
    return f"HD95 from MedPy's distances by our definition: all {len(theirs)} checked alike"


def _same_dice(ours: Scores, theirs: Scores) -> str:
    if ours.keys() != theirs.keys():
        raise Differs("other cases or labels were scored")
    for key, (dice, _) in theirs.items():
        if not (math.isclose(ours[key][0], dice, abs_tol=1e-6) or (math.isnan(dice) and math.isnan(ours[key][0]))):
            raise Differs(f"Dice of {key} is {ours[key][0]}, theirs {dice}")
    return f"all {len(theirs)} Dice alike to 1e-6"


def _theirs(path: Path) -> Scores:
    return {
        (case, label): (figures["Dice"], figures["HD95"])
        for case, labels in json.loads(path.read_text()).items()
        for label, figures in labels.items()
    }


def _ours(folders: _Folders) -> Scores:
    report = json.loads((folders.results / "ours" / "summary.json").read_text())
    integers = json.loads(folders.description.read_text())["labels"]
    return {
        (Path(case["reference"]).name, str(integers[row["label"]])): (_number(row["dice"]), _number(row["hd95"]))
        for case in report["cases"]
        for row in case["classes"]
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
