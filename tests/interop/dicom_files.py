"""Pieces of DICOM files that tests write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import ArrayLike

pydicom = pytest.importorskip("pydicom", reason="needs autoseg[dicom]")


def header(kind: str, modality: str, series: str, *, patient: str, frame: str) -> pydicom.Dataset:
    """What every file says: its kind (SOP class), series, patient and frame of reference."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = kind, pydicom.uid.generate_uid()
    data.Modality, data.SeriesInstanceUID, data.PatientID = modality, series, patient
    data.FrameOfReferenceUID = frame
    return data


def frame_reference(series: str | None) -> pydicom.Dataset:
    """The item by which an RTSTRUCT names the series that it was drawn on, if it does."""
    frame = pydicom.Dataset()
    if series is not None:
        one, study = pydicom.Dataset(), pydicom.Dataset()
        one.SeriesInstanceUID = series
        study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [one], [study]
    return frame


def add_structures(data: pydicom.Dataset, drawn: Mapping[str, Sequence[pydicom.Dataset] | None]) -> None:
    """Give an RTSTRUCT its structures, numbered from 1: name -> contours; None for one that is only listed."""
    data.StructureSetROISequence, data.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(drawn.items(), start=1):
        roi, marks = pydicom.Dataset(), pydicom.Dataset()
        roi.ROINumber, roi.ROIName, marks.ReferencedROINumber = number, name, number
        data.StructureSetROISequence.append(roi)
        if contours is not None:
            marks.ContourSequence = list(contours)
            data.ROIContourSequence.append(marks)


def contour(points: ArrayLike, *, kind: str = "CLOSED_PLANAR") -> pydicom.Dataset:
    """A contour through points (n, 3), x, y, z in mm."""
    data, values = pydicom.Dataset(), np.asarray(points)
    data.ContourGeometricType, data.NumberOfContourPoints = kind, len(values)
    data.ContourData = [f"{value:.4f}" for value in values.ravel()]
    return data
