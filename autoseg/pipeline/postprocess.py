"""``autoseg_postprocess``: apply post-processing to a folder of segmentations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from autoseg import records
from autoseg.errors import AutosegError, PartialError, ResourceError, SettingError, joined
from autoseg.io.images import read_label, write_label
from autoseg.io.volume import Volume
from autoseg.log import get_logger, progress
from autoseg.ops.postprocess import postprocess
from autoseg.parallel import map_cases
from autoseg.pipeline.evaluate import label_files, read_labels
from autoseg.pipeline.outputs import input_folder, output_folder, remove_earlier
from autoseg.schema.afterwards import PostprocessSettings
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.postprocessing import FILL_HOLES, FOREGROUND, KEEP_LARGEST, REMOVE_SMALL, PostProcessing, PostStep
from autoseg.schema.selection import PostProcessRun, Selection

_LOG = get_logger(__name__)

RUN_FILE = "postprocess.json"
# A small folder is done sooner than worker processes start.
_FEW = 20


@dataclass(frozen=True, kw_only=True)
class PostprocessReport:
    """``changed`` are the numbers of voxels that are different now, by case."""

    steps: tuple[PostStep, ...]
    written: tuple[Path, ...]
    changed: dict[str, int]


def postprocess_folder(settings: PostprocessSettings) -> PostprocessReport:
    """Apply a chain of steps to every segmentation of a folder, each with its own spacing.

    The chain is that of ``settings.selection``, or is made of the flags, in this order: largest components, minimum
    sizes, holes.

    Raises:
        SettingError: no folder, no steps, or a label that is not known; all such are listed together.
        RecordError: the file with the steps cannot be read.
        PartialError: some files could not be read or written; the others are complete.
        ResourceError: the disk is full.
    """
    folder = input_folder(settings.inputs, "--inputs")
    files = label_files(folder)
    if not files:
        raise SettingError(f"{folder} holds no label files", hint="give the folder that autoseg_predict wrote")
    steps = _steps(settings, folder, files)
    names = [path.name for path in files.values()]
    outputs = output_folder(settings.outputs, RUN_FILE, ["dataset.json", *names], inputs=[folder])
    remove_earlier(outputs, ["dataset.json", *names])
    records.save(outputs / RUN_FILE, PostProcessRun(source=str(folder), steps=steps))
    if (folder / "dataset.json").exists():
        records.write_text(outputs / "dataset.json", (folder / "dataset.json").read_text(encoding="utf-8-sig"))
    for step in steps:
        _LOG.info("%s", step.words)
    work = partial(_process, steps=steps, outputs=outputs)
    workers = 0 if settings.workers is None and len(files) < _FEW else settings.workers
    changed: dict[str, int] = {}
    faults = []
    paths = list(files.values())
    bytes_needed = 24.0 * next((volume.data.size for volume in _readable(paths)), 0)
    outcomes = map_cases(work, paths, workers=workers, bytes_per_item=bytes_needed)
    for outcome in progress(outcomes, total=len(paths), label="post-processing"):
        if isinstance(outcome.error, ResourceError):
            raise outcome.error
        if outcome.error is None:
            changed[outcome.item.name] = outcome.unwrap()
        else:
            error = outcome.error
            faults.append(f"{outcome.item.name}: {error.message if isinstance(error, AutosegError) else error}")
    _LOG.info("%d of %d segmentations changed; written: %s", sum(map(bool, changed.values())), len(changed), outputs)
    if faults:
        raise PartialError(
            f"{len(faults)} of {len(paths)} files could not be processed:\n{joined(sorted(faults))}",
            hint=f"mend these; the others are complete in {outputs}",
        )
    changed = dict(sorted(changed.items()))
    return PostprocessReport(steps=steps, written=tuple(outputs / name for name in changed), changed=changed)


def _readable(paths: Iterable[Path]) -> Iterator[Volume]:
    """Those label files that can be read; what is wrong with the others is said in their turn."""
    for path in paths:
        try:
            volume = read_label(path)
        except AutosegError:
            continue
        yield volume


def _process(path: Path, *, steps: Sequence[PostStep], outputs: Path) -> int:
    volume = read_label(path)
    made = postprocess(volume.data[0], steps, voxel_size=volume.geometry.voxel_size)
    write_label(outputs / path.name, made, volume.geometry)
    return int(np.count_nonzero(made != volume.data[0]))


def _steps(settings: PostprocessSettings, folder: Path, files: Mapping[str, Path]) -> tuple[PostStep, ...]:
    typed = (*settings.keep_largest, *settings.min_size, *settings.fill_holes)
    if bool(typed) == (settings.selection is not None):
        raise SettingError(
            "either a file with steps or steps of your own are needed",
            hint="give --selection FILE, or --keep-largest, --min-size or --fill-holes",
        )
    if settings.selection is not None:
        return read_steps(Path(settings.selection).expanduser())
    labels = _labels(settings, folder)
    if labels is None and FOREGROUND in typed:
        labels = _found_labels(files.values())
    return typed_steps(settings, labels)


def read_steps(path: Path) -> tuple[PostStep, ...]:
    """The steps of a ``selection.json`` or a ``postprocessing.json``.

    Raises:
        RecordError: it is neither.
        SettingError: it holds no step.
    """
    try:
        chosen = "candidates" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        # The reader of records says what is wrong.
        chosen = False
    steps = records.load(Selection, path).postprocessing if chosen else records.load(PostProcessing, path).steps
    if not steps:
        raise SettingError(f"{path} holds no step: none helped", hint="use the segmentations as they are")
    return steps


def typed_steps(settings: PostprocessSettings, labels: Labels | None) -> tuple[PostStep, ...]:
    """Steps from words of the command line; ``labels`` None takes integers only.

    Raises:
        SettingError: every word that is not understood.
    """
    problems: list[str] = []
    steps: list[PostStep] = []

    def add(rule: str, word: str, minimum: float = 0.0) -> None:
        values, fill = _meaning(word, labels)
        if not values:
            problems.append(f"{word!r} is not a label")
        else:
            steps.append(PostStep(rule=rule, label=word, values=values, minimum_mm3=minimum, fill=fill))

    for word in settings.keep_largest:
        add(KEEP_LARGEST, word)
    for word in settings.min_size:
        name, _, size = word.rpartition("=")
        if not name or not size.replace(".", "", 1).isdecimal():
            problems.append(f"--min-size {word!r} is not LABEL=MM3")
        else:
            add(REMOVE_SMALL, name, float(size))
    for word in settings.fill_holes:
        if word == FOREGROUND:
            problems.append("holes of the foreground could be filled with any label")
        else:
            add(FILL_HOLES, word)
    if problems:
        known = ", ".join(labels.names) if labels is not None else "integers, since there is no dataset.json"
        raise SettingError("; ".join(problems), hint=f"the labels are: {known}; write a size like liver=500")
    return tuple(steps)


def _meaning(word: str, labels: Labels | None) -> tuple[tuple[int, ...], int]:
    """The integers of a label, and the one that its holes are filled with; no integers if it is not known."""
    if labels is None:
        known = word.removeprefix("-").isdecimal() and int(word) != 0
        return ((int(word),), int(word)) if known else ((), 0)
    if word == FOREGROUND:
        return tuple(value for value in labels.leaves if value != 0), 0
    for number, label in enumerate(labels.foreground):
        if word == label.name or (len(label.values) == 1 and word == str(label.values[0])):
            return label.values, (labels.regions_class_order or label.values)[number if labels.has_regions else 0]
    return (), 0


def _labels(settings: PostprocessSettings, folder: Path) -> Labels | None:
    path = Path(settings.labels).expanduser() if settings.labels is not None else folder / "dataset.json"
    return read_labels(path)[0] if settings.labels is not None or path.exists() else None


def _found_labels(files: Iterable[Path]) -> Labels:
    """Every integer but 0 that occurs, named after itself."""
    values = sorted({int(value) for volume in _readable(files) for value in np.unique(volume.data) if value != 0})
    return Labels(foreground=tuple(Label(name=str(value), values=(value,)) for value in values))
