"""Segmentations as DICOM SEG. Needs highdicom (``pip install autoseg[dicom]``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from autoseg.errors import DatasetError, SettingError
from autoseg.io.dicom import Series
from autoseg.io.dicom_labels import pydicom_module
from autoseg.records import atomic_path
from autoseg.version import version

_SERIES_NUMBER = 900


def write_dicom_seg(
    path: Path, labels: np.ndarray, series: Series, segments: Mapping[str, Sequence[int]], *, model: str = "autoseg"
) -> None:
    """Write a label map as a binary DICOM SEG that refers to the series, atomically.

    Args:
        labels: (z, y, x) integers on the grid of ``series``.
        segments: name -> the integers of its voxels; one segment each, in this order, also where no voxel has them.
            Segments may share integers. The first integer is the code of the segment.
        model: what made the labels, for the record of the algorithm.

    Raises:
        SettingError: highdicom is not installed.
        DatasetError: labels and series do not fit, or the series lacks what a SEG must repeat.
    """
    pydicom = pydicom_module()
    try:
        import highdicom
        from pydicom.sr.codedict import codes
    except ImportError as error:
        raise SettingError(
            "writing DICOM SEG needs highdicom, which is not installed", hint="pip install 'autoseg[dicom]'"
        ) from error
    if len(labels) != len(series.files):
        raise DatasetError(
            f"{len(labels)} planes of labels do not fit {len(series.files)} slices", hint="leave out --dicom-seg"
        )
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=model[:64], version=version(), family=codes.cid7162.ArtificialIntelligence
    )
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=highdicom.sr.CodedConcept(str(integers[0]), "99AUTOSEG", name[:64]),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, (name, integers) in enumerate(segments.items(), start=1)
    ]
    masks = np.stack([np.isin(labels, integers) for integers in segments.values()], axis=-1).astype(np.uint8)
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=[pydicom.dcmread(file) for file in series.files],
            pixel_array=masks,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            series_instance_uid=highdicom.UID(),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="autoseg",
            manufacturer_model_name="autoseg",
            software_versions=version(),
            device_serial_number="0",
            series_description=f"Segmentation by {model}"[:64],
        )
    except (AttributeError, ValueError, TypeError) as error:
        raise DatasetError(
            f"{series.files[0]} and its series cannot carry a DICOM SEG: {error}", hint="leave out --dicom-seg"
        ) from error
    with atomic_path(path) as temporary:
        segmentation.save_as(temporary)


__all__ = ["write_dicom_seg"]
