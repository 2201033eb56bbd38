"""What is to be segmented: image files as ``discover.find_cases`` finds them, or DICOM series, each of them a case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autoseg.errors import DatasetError
from autoseg.io.dicom import Series, find_series, holds_dicom, is_dicom, read_series, series_of
from autoseg.io.dicom_write import write_dicom_seg
from autoseg.io.discover import find_cases
from autoseg.io.images import READABLE_ENDINGS, label_ending, read_channels, split_ending
from autoseg.io.volume import Volume
from autoseg.schema.dataset import CaseFiles, Labels

_ENDING = ".nii.gz"


def cases_to_predict(path: Path, *, num_channels: int, file_ending: str) -> tuple[CaseFiles, ...]:
    """The cases of a file or folder. The images of a DICOM case are its slices, in the order of their planes.

    A DICOM case is called as the folder of its series.

    Raises:
        DatasetError: as ``find_cases`` and ``find_series``; DICOM for a model of several channels.
    """
    path = path.expanduser().absolute()
    plain = path.is_file() or (path.is_dir() and any(_readable(file) for file in path.iterdir()))
    if plain or not path.is_dir() or not holds_dicom(path):
        return find_cases(path, num_channels=num_channels, file_ending=file_ending)
    if num_channels != 1:
        raise DatasetError(
            f"{path} holds DICOM series, and the model needs {num_channels} channels per case",
            hint="convert the series to one NIfTI file per channel: case_0000.nii.gz, case_0001.nii.gz, ...",
        )
    found = find_series(path)
    names = [_name(path, one) for one in found]
    twice = {name for name, count in Counter(names).items() if count > 1}
    return tuple(
        CaseFiles(id=f"{name}_{number}" if name in twice else name, images=tuple(map(str, one.files)))
        for number, (name, one) in enumerate(zip(names, found, strict=True), start=1)
    )


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
    values: Sequence[int] = labels.regions_class_order or [label.values[0] for label in labels.foreground]
    names = dict(zip(values, labels.names, strict=True))
    write_dicom_seg(path, segmentation, series_of([Path(image) for image in case.images]), names)


def _readable(path: Path) -> bool:
    return path.name.lower().endswith(READABLE_ENDINGS) and not path.name.startswith(".") and path.is_file()


def _name(root: Path, series: Series) -> str:
    return "_".join(series.files[0].parent.relative_to(root).parts) or root.name


__all__ = ["cases_to_predict", "output_ending", "read_case", "write_case_seg"]
