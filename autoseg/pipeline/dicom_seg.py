"""Predictions of DICOM series as DICOM SEG, beside the NIfTI segmentation of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoseg.errors import SettingError, joined
from autoseg.io.dicom import is_dicom
from autoseg.io.images import split_ending
from autoseg.schema.dataset import CaseFiles


def seg_path(target: Path) -> Path:
    """The DICOM SEG that goes with a segmentation."""
    return target.with_name(f"{split_ending(target.name)[0]}.dcm")


def refuse_other_formats(cases: Sequence[CaseFiles]) -> None:
    """A SEG refers to the slices of a series.

    Raises:
        SettingError: some cases are no DICOM series; all are listed.
    """
    others = [case.id for case in cases if not is_dicom(Path(case.images[0]))]
    if others:
        raise SettingError(
            f"--dicom-seg is for DICOM series, and these images are none:\n{joined(others)}",
            hint="leave out --dicom-seg, or give the folder of the series with -i",
        )
