"""What is to be segmented: image files as ``discover.find_cases`` finds them, or DICOM series, each of them a case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from autoseg.errors import DatasetError, joined
from autoseg.io.dicom import (
    BrokenSeries,
    Series,
    holds_dicom,
    is_dicom,
    modalities,
    read_series,
    scan_series,
    series_of,
)
from autoseg.io.dicom_write import write_dicom_seg
from autoseg.io.discover import find_cases
from autoseg.io.images import READABLE_ENDINGS, label_ending, read_channels, split_ending
from autoseg.io.volume import Volume
from autoseg.schema.dataset import CaseFiles, Labels

_ENDING = ".nii.gz"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The cases to segment, at least one; ``broken`` are the names of those that cannot be, with the reasons."""

    cases: tuple[CaseFiles, ...]
    broken: Mapping[str, DatasetError] = field(default_factory=dict)


def cases_to_predict(path: Path, *, num_channels: int, file_ending: str) -> Inputs:
    """The cases of a file or folder. The images of a DICOM case are its slices, in the order of their planes.

    A DICOM case is called as the folder of its series.

    Raises:
        DatasetError: as ``find_cases``; DICOM for a model of several channels; no series is an image that can be read.
    """
    path = path.expanduser().absolute()
    plain = path.is_file() or (path.is_dir() and any(_readable(file) for file in path.iterdir()))
    if plain or not path.is_dir() or not holds_dicom(path):
        return Inputs(cases=find_cases(path, num_channels=num_channels, file_ending=file_ending))
    if num_channels != 1:
        raise DatasetError(
            f"{path} holds DICOM series, and the model needs {num_channels} channels per case",
            hint="convert the series to one NIfTI file per channel: case_0000.nii.gz, case_0001.nii.gz, ...",
        )
    named = _named(path)
    cases = [CaseFiles(id=name, images=tuple(map(str, one.files))) for name, one in named if isinstance(one, Series)]
    broken = {name: one.error for name, one in named if isinstance(one, BrokenSeries)}
    if not cases:
        _refuse_all(path, list(broken.values()))
    return Inputs(cases=tuple(cases), broken=broken)


def read_case(case: CaseFiles) -> Volume:
    """All channels of a case, or its DICOM series; errors as ``read_channels`` and ``read_dicom_series``."""
    if is_dicom(Path(case.images[0])):
        return read_series(series_of([Path(image) for image in case.images]))
    return read_channels([Path(image) for image in case.images])


def output_ending(case: CaseFiles) -> str:
    """The ending of a case's segmentation: that of the images where it can hold labels, NIfTI for DICOM."""
    first = Path(case.images[0])
    return _ENDING if is_dicom(first) else label_ending(split_ending(first.name)[1])


def write_case_seg(path: Path, case: CaseFiles, segmentation: np.ndarray, labels: Labels) -> None:
    """Write the segmentation (z, y, x) of a DICOM case as DICOM SEG, a segment per label; see ``write_dicom_seg``."""
    write_dicom_seg(path, segmentation, series_of([Path(image) for image in case.images]), _segments(labels))


def _segments(labels: Labels) -> dict[str, tuple[int, ...]]:
    """Name -> the integers of a segmentation that belong to it, the label's own first.

    A segmentation holds one integer per voxel, that of the last region there: a region is also where the integers of
    the regions inside it are.
    """
    if not labels.has_regions:
        return {label.name: label.values for label in labels.foreground}
    own = list(zip(labels.foreground, labels.regions_class_order or (), strict=True))
    return {
        label.name: (value, *(other for part, other in own if part != label and set(part.values) <= set(label.values)))
        for label, value in own
    }


def _readable(path: Path) -> bool:
    return path.name.lower().endswith(READABLE_ENDINGS) and not path.name.startswith(".") and path.is_file()


def _named(root: Path) -> list[tuple[str, Series | BrokenSeries]]:
    """Every image series below a folder with its name, which stays when a broken one is mended."""
    found = list(scan_series(root).values())
    # Multi-frame files are not mended here, and take no part in the numbers.
    strange = [one for one in found if isinstance(one, BrokenSeries) and one.multi_frame]
    others = [one for one in found if one not in strange]
    names = ["_".join(one.files[0].parent.relative_to(root).parts) or root.name for one in others]
    twice = {name for name, count in Counter(names).items() if count > 1}
    numbered = [f"{name}_{number}" if name in twice else name for number, name in enumerate(names, start=1)]
    return [
        *zip(numbered, others, strict=True),
        *((one.files[0].relative_to(root).as_posix(), one) for one in strange),
    ]


def _refuse_all(folder: Path, errors: list[DatasetError]) -> NoReturn:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise DatasetError(
            f"no series in {folder} can be segmented:\n{joined([error.message for error in errors])}",
            hint="mend these series, or convert them to NIfTI",
        )
    kinds = ", ".join(f"{count} {kind}" for kind, count in modalities(folder).items())
    raise DatasetError(
        f"{folder} has no image series: its DICOM files are {kinds}",
        hint="give the folder of slices that have a place in the patient",
    )


__all__ = ["Inputs", "cases_to_predict", "output_ending", "read_case", "write_case_seg"]
