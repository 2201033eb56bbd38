"""Look every case over and list all that is wrong, in one pass that also hands on what it read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.errors import DatasetError
from autoseg.io.discover import channel_problems, repeated
from autoseg.io.images import grid_difference, non_finite, read_image, read_label, stacked
from autoseg.io.volume import Volume
from autoseg.log import table
from autoseg.schema.dataset import CaseFiles, DatasetSpec, Labels

# Labels are translated through a table while their integers stay below this.
_TABLE_LIMIT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong with one file. A fault that is not ``fatal`` is unusual but can be trained on."""

    case: str
    file: str
    fault: str
    remedy: str
    fatal: bool = True


@dataclass(frozen=True)
class LoadedCase:
    """A case without fatal faults: all channels, and the (z, y, x) label as *internal* indices (uint8 or int16)."""

    id: str
    image: Volume
    label: np.ndarray


def check_spec(spec: DatasetSpec) -> tuple[Fault, ...]:
    """Faults that show without reading voxels: missing files, extra channels, ids or files that occur twice."""
    faults = [fault for case in spec.cases for fault in _file_faults(case, len(spec.channels))]
    twice = set(repeated(case.id for case in spec.cases))
    shared = set(repeated(path for case in spec.cases for path in {*case.images, *filter(None, [case.label])}))
    for case in spec.cases:
        if case.id in twice:
            faults.append(_fault(case, case.images[0], "duplicate id: another case has it too", "rename one of them"))
            continue
        faults += [
            _fault(case, path, "file of two cases: another case has it too", "give each case its own files")
            for path in (*case.images, case.label)
            if path in shared
        ]
    return tuple(faults)


def load_case(
    case: CaseFiles, spec: DatasetSpec, *, tolerance_mm: float = 0.1
) -> tuple[LoadedCase | None, tuple[Fault, ...]]:
    """Read one case and look for every fault of its files.

    Only ``channels`` and ``labels`` of ``spec`` are used, so that it may be passed to workers without its cases.

    Args:
        tolerance_mm: how far the corners of an image and of its label, or of two channels, may lie apart.

    Returns:
        the case, or None if there are fatal faults; and all faults.
    """
    faults = _file_faults(case, len(spec.channels))
    images: list[Volume] = []
    for path in case.images:
        if Path(path).is_file():
            _read_image(case, path, images, faults, tolerance_mm)
    image = _joined_channels(case, images, spec, faults)
    label = _load_label(case, images, spec.labels, faults, tolerance_mm)
    if label is not None and case.annotated is not None:
        faults += _not_annotated(case, label, spec.labels, case.annotated)
    if image is None or label is None or any(fault.fatal for fault in faults):
        return None, tuple(faults)
    return LoadedCase(case.id, image, label), tuple(faults)


def fault_table(faults: Iterable[Fault]) -> str:
    """All faults as a plain-text table, each once."""
    rows = [
        (fault.case, _short(fault.file), fault.fault if fault.fatal else f"warning: {fault.fault}", fault.remedy)
        for fault in dict.fromkeys(faults)
    ]
    return table(rows, header=("case", "file", "fault", "remedy"))


def to_internal(data: np.ndarray, labels: Labels) -> tuple[np.ndarray, dict[int, int]]:
    """Integers of a label file -> internal indices, and the voxel count of every integer that has no meaning.

    Returns:
        uint8, or int16 where that is too small; voxels without a meaning are -1 and then force int16.
    """
    known = [*labels.leaves, *([] if labels.ignore is None else [labels.ignore])]
    smallest, largest = int(data.min(initial=0)), int(data.max(initial=0))
    if smallest >= 0 and largest < min(len(known), 256) and known[: largest + 1] == list(range(largest + 1)):
        # The integers of the file are the indices already.
        return data.astype(np.uint8, copy=False), {}
    lowest, highest = min(smallest, *known), max(largest, *known)
    if highest - lowest < _TABLE_LIMIT:
        # Negative integers count from the end of the table, as indices of numpy do.
        translation = np.full(highest + 1 - min(lowest, 0), -1, dtype=np.int16)
        translation[known] = np.arange(len(known))
        internal = translation[data]
    else:
        values, inverse = np.unique(data, return_inverse=True)
        position = {value: index for index, value in enumerate(known)}
        internal = np.array([position.get(int(value), -1) for value in values], np.int16)[inverse].reshape(data.shape)
    unknown = internal < 0
    if unknown.any():
        values, counts = np.unique(data[unknown], return_counts=True)
        return internal, {int(value): int(count) for value, count in zip(values, counts, strict=True)}
    return internal.astype(np.uint8) if len(known) <= 256 else internal, {}


def _file_faults(case: CaseFiles, num_channels: int) -> list[Fault]:
    remedy = f"the case needs {num_channels} channel(s): add or remove files"
    problems = channel_problems([Path(image) for image in case.images], num_channels)
    if len(case.images) == 1 and any(problem.startswith("extra") for _, problem in problems):
        # All channels are in this file: to remove it would not help.
        remedy = "save the pictures without alpha, or name the channel in dataset.json"
    faults = [_fault(case, path, problem, remedy) for path, problem in problems]
    if case.label is None:
        faults.append(_fault(case, "-", "missing label: dataset.json names none", "add it to dataset.json"))
    elif not Path(case.label).is_file():
        faults.append(
            _fault(case, case.label, "missing label: the file does not exist", "add the label or remove the case")
        )
    return faults


def _read_image(case: CaseFiles, path: str, images: list[Volume], faults: list[Fault], tolerance_mm: float) -> None:
    """Append the image and what is wrong with it; the grid is compared with that of the first image."""
    try:
        volume = read_image(path)
    except DatasetError as error:
        faults.append(_unreadable(case, path, error))
        return
    images.append(volume)
    findings = (non_finite(volume.data), grid_difference(volume, images[0], tolerance_mm=tolerance_mm))
    faults += [_fault(case, path, finding.fault, finding.remedy) for finding in findings if finding]


def _joined_channels(case: CaseFiles, images: list[Volume], spec: DatasetSpec, faults: list[Fault]) -> Volume | None:
    if len(images) < len(case.images) or any(image.shape != images[0].shape for image in images):
        return None
    found, expected = sum(len(image.data) for image in images), len(spec.channels)
    if found == expected:
        return stacked(images)
    if len(images) == expected:
        # Otherwise the number of files was wrong and has been reported.
        many = next(index for index, image in enumerate(images) if len(image.data) != 1)
        faults.append(
            _fault(
                case,
                case.images[many],
                f"extra channel: {len(images[many].data)} in one file of {len(images)}, expected {expected} in all",
                "save it as a grey image without alpha, or name its channels in dataset.json",
            )
        )
    return None


def _load_label(
    case: CaseFiles, images: list[Volume], labels: Labels, faults: list[Fault], tolerance_mm: float
) -> np.ndarray | None:
    path = case.label
    if path is None or not Path(path).is_file():
        return None
    try:
        volume = read_label(path)
    except DatasetError as error:
        faults.append(_unreadable(case, path, error))
        return None
    difference = grid_difference(volume, images[0], tolerance_mm=tolerance_mm) if images else None
    if difference:
        faults.append(_fault(case, path, difference.fault, difference.remedy))
    internal, unknown = to_internal(volume.data[0], labels)
    if unknown:
        shown = ", ".join(f"{value} ({count} voxels)" for value, count in list(unknown.items())[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        faults.append(
            _fault(
                case,
                path,
                f"has label values that dataset.json does not name: {shown}{more}",
                'name them under "labels", or remove them from the file',
            )
        )
    elif not any(((plane > 0) & (plane != (labels.ignore_index or 0))).any() for plane in internal):
        text = "is empty: no voxel has a foreground label"
        faults.append(_fault(case, path, text, "check that nothing was lost; remove the case if so", fatal=False))
    return internal


def _not_annotated(case: CaseFiles, label: np.ndarray, labels: Labels, annotated: tuple[str, ...]) -> list[Fault]:
    """A fault if the label has voxels of what "annotated" says was not annotated."""
    unseen = [index for index, possible in enumerate(labels.candidates(annotated)) if index > 0 and 0 in possible]
    counts = {labels.leaves[index]: int(np.count_nonzero(label == index)) for index in unseen}
    shown = ", ".join(f"{value} ({count} voxels)" for value, count in counts.items() if count)
    if not shown:
        return []
    text = f'has labels that "annotated" does not name for it: {shown}'
    return [_fault(case, str(case.label), text, 'add their names under "annotated", or remove them from the file')]


def _fault(case: CaseFiles, file: str, fault: str, remedy: str, *, fatal: bool = True) -> Fault:
    return Fault(case=case.id, file=file, fault=fault, remedy=remedy, fatal=fatal)


def _unreadable(case: CaseFiles, path: str, error: DatasetError) -> Fault:
    return _fault(case, path, error.message.removeprefix(path).strip(), error.hint)


def _short(file: str) -> str:
    """The folder and the name: whole paths would leave no room for the fault."""
    return "/".join(Path(file).parts[-2:])
