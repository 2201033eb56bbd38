"""What an import of RTSTRUCT and SEG says of overlaps, names and gaps; boxes of known voxels are found again."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from autoseg.errors import DatasetError, PartialError, SettingError
from autoseg.io.dicom_labels import find_annotations, read_masks
from autoseg.io.discover import read_dataset
from autoseg.io.images import read_label
from autoseg.pipeline.importing import import_source
from autoseg.schema.importing import ImportSettings
from tests.interop import dicom_files

pydicom = pytest.importorskip("pydicom", reason="needs autoseg[dicom]")

SHAPE, SPACING = (8, 20, 18), (2.0, 1.0, 1.0)
Box = tuple[slice, ...]
BODY, ORGAN, SPOT = np.s_[1:7, 1:19, 1:17], np.s_[2:5, 6:10, 6:10], np.s_[3:4, 7:9, 7:9]
FAR, BESIDE = np.s_[50:52, 6:10, 6:10], np.s_[2:4, 6:10, 105:109]


def voxels(*boxes: Box) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for box in boxes:
        mask[box] = True
    return mask


def square(box: Box, z: float) -> tuple[float, list[tuple[float, float]]]:
    """Height in mm and corners half a voxel outside of the centres of the voxels of a box."""
    (top, bottom), (left, right) = ((part.start - 0.5, part.stop - 0.5) for part in box[1:])
    return z * SPACING[0], [(left, top), (right, top), (right, bottom), (left, bottom)]


def contours(*boxes: Box, step: int = 1) -> list[tuple[float, list[tuple[float, float]]]]:
    return [square(box, z) for box in boxes for z in range(box[0].start, box[0].stop, step)]


class Patient:
    """A CT of upright planes at the origin, and annotations of it."""

    def __init__(self, root: Path, name: str) -> None:
        self.folder, self.name = root / name, name
        self.folder.mkdir(parents=True)
        self.uid, self.frame = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
        for index in range(SHAPE[0]):
            data = self._header(pydicom.uid.CTImageStorage, "CT", self.uid)
            data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, index * SPACING[0]], [1, 0, 0, 0, 1, 0]
            data.PixelSpacing, data.SliceThickness = list(SPACING[1:]), SPACING[0]
            data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = (
                *SHAPE[1:],
                1,
                "MONOCHROME2",
            )
            data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
            data.PixelData = np.full(SHAPE[1:], index, "<i2").tobytes()
            data.save_as(self.folder / f"{index}.dcm", enforce_file_format=True)

    def _header(self, kind: str, modality: str, series: str) -> pydicom.Dataset:
        return dicom_files.header(kind, modality, series, patient=self.name, frame=self.frame)

    def rtstruct(self, structures: dict, *, frame: str = "", named: bool = True, kind: str = "CLOSED_PLANAR") -> Path:
        """``structures``: name -> contours; None for a structure that is only listed."""
        data = self._header(pydicom.uid.RTStructureSetStorage, "RTSTRUCT", pydicom.uid.generate_uid())
        coordinates = dicom_files.frame_reference(self.uid if named else None)
        coordinates.FrameOfReferenceUID = frame or self.frame
        data.ReferencedFrameOfReferenceSequence = [coordinates]
        drawn = {
            name: None
            if places is None
            else [
                dicom_files.contour([(x, y, z) for x, y in points], kind=kind if len(points) > 1 else "POINT")
                for z, points in places
            ]
            for name, places in structures.items()
        }
        dicom_files.add_structures(data, drawn)
        path = self.folder / "rt.dcm"
        data.save_as(path, enforce_file_format=True)
        return path

    def seg(self, segments: dict[str, np.ndarray]) -> Path:
        """A binary SEG without empty frames; with none at all if nothing is marked."""
        data = self._header("1.2.840.10008.5.1.4.1.1.66.4", "SEG", pydicom.uid.generate_uid())
        series, shared, orientation, measures = (pydicom.Dataset() for _ in range(4))
        series.SeriesInstanceUID = self.uid
        data.ReferencedSeriesSequence, data.SegmentationType, data.SegmentSequence = [series], "BINARY", []
        groups, frames = [], []
        for number, (name, mask) in enumerate(segments.items(), start=1):
            segment = pydicom.Dataset()
            segment.SegmentNumber, segment.SegmentLabel = number, name
            data.SegmentSequence.append(segment)
            for z in np.flatnonzero(mask.any(axis=(1, 2))).tolist():
                group, place, own = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
                place.ImagePositionPatient, own.ReferencedSegmentNumber = [0, 0, z * SPACING[0]], number
                group.PlanePositionSequence, group.SegmentIdentificationSequence = [place], [own]
                groups.append(group)
                frames.append(mask[z])
        orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        measures.PixelSpacing, measures.SpacingBetweenSlices = list(SPACING[1:]), SPACING[0]
        shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
        data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], groups
        data.NumberOfFrames, data.Rows, data.Columns, data.SamplesPerPixel = len(frames), *SHAPE[1:], 1
        data.PhotometricInterpretation, data.BitsAllocated, data.BitsStored = "MONOCHROME2", 1, 1
        data.HighBit, data.PixelRepresentation = 0, 0
        data.PixelData = np.packbits(np.array(frames, bool).ravel(), bitorder="little").tobytes()
        path = self.folder / "seg.dcm"
        data.save_as(path, enforce_file_format=True)
        return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "dicom"


@pytest.fixture
def bring(tmp_path: Path, source: Path, caplog):
    """``bring(labels)`` -> case id -> label, name -> integer, and what was logged."""

    def run(labels: dict | None = None, name: str = "Dataset001_D"):
        path = None
        if labels is not None:
            path = tmp_path / "labels.json"
            path.write_text(json.dumps({"labels": labels}))
        caplog.clear()
        settings = ImportSettings(
            source=str(source), workdir=str(tmp_path), name=name, labels=None if path is None else str(path)
        )
        with caplog.at_level(logging.INFO, logger="autoseg"):
            folder = import_source(settings)
        spec = read_dataset(folder)
        found = {case.id: read_label(case.label).data[0] for case in spec.cases}
        return found, json.loads((folder / "dataset.json").read_text()), caplog.text

    return run


def rows(text: str) -> list[list[str]]:
    """The words of each line."""
    return [line.split() for line in text.splitlines()]


def drawn(path: Path) -> dict[str, np.ndarray]:
    from autoseg.io.dicom import read_dicom_series

    volume = read_dicom_series(path.parent)
    (annotation,) = find_annotations(path.parent)
    return dict(read_masks(annotation, volume.geometry, volume.shape))


def test_small_structures_lie_over_large_ones_whatever_the_order_in_a_file(source, bring):
    boxes = {"Spot": SPOT, "Organ": ORGAN, "BODY": BODY}
    for name, order in {"P1": ("Spot", "Organ", "BODY"), "P2": ("BODY", "Spot", "Organ")}.items():
        Patient(source, name).rtstruct({one: contours(boxes[one]) for one in order})
    third = Patient(source, "P3")
    third.seg({one: voxels(boxes[one]) for one in ("Organ", "BODY", "Spot")})
    found, described, log = bring()
    assert described["labels"] == {"background": 0, "BODY": 1, "Organ": 2, "Spot": 3}
    truth = 1 * voxels(BODY)
    truth[ORGAN], truth[SPOT] = 2, 3
    for label in found.values():
        np.testing.assert_array_equal(label, truth)
    body, organ, spot = (int(voxels(box).sum()) for box in (BODY, ORGAN, SPOT))
    for id_ in found:
        assert [id_, "BODY", f"{100 * organ / body:.1f}%", "Organ"] in rows(log)
        assert [id_, "Organ", f"{100 * spot / organ:.1f}%", "Spot"] in rows(log)
    assert "annotated" not in described


def test_integers_of_a_file_decide_and_what_vanishes_is_named(source, bring):
    Patient(source, "P1").seg({"Spot": voxels(SPOT), "Organ": voxels(ORGAN)})
    found, described, log = bring({"Organ": 70000, "Spot": -1})
    assert {int(value): int((found["P1"] == value).sum()) for value in np.unique(found["P1"])} == {
        0: int((~voxels(ORGAN)).sum()),
        70000: int(voxels(ORGAN).sum()),
    }
    assert ["P1", "Spot", "100%", "Organ"] in rows(log)
    assert described["labels"] == {"background": 0, "Organ": 70000, "Spot": -1}
    found, *_ = bring({"Spot": -1}, name="Dataset002_D")
    np.testing.assert_array_equal(found["P1"], -1 * voxels(SPOT))


def test_many_cases_are_told_in_a_row_per_structure(source, bring):
    for number in range(21):
        spot = np.s_[3:4, 7:9, 7 : 9 + (number == 4)]
        Patient(source, f"P{number:02d}").seg({"Organ": voxels(ORGAN), "Spot": voxels(spot)})
    _, _, log = bring()
    assert ["Organ", "21", f"{100 * 6 / voxels(ORGAN).sum():.1f}%", "Spot"] in rows(log)
    assert "P07" not in log


def test_a_seg_without_frames_is_an_empty_mask(source, bring):
    Patient(source, "P1").seg({"Organ": voxels()})
    Patient(source, "P2").seg({"Organ": voxels(ORGAN)})
    found, _, log = bring()
    assert not found["P1"].any()
    np.testing.assert_array_equal(found["P2"], voxels(ORGAN))
    assert ["P1", "Organ"] in rows(log)


def test_an_annotation_that_cannot_be_read_fails_its_case_alone(source, bring, tmp_path):
    broken = Patient(source, "P1")
    path = broken.seg({"Organ": voxels(ORGAN)})
    data = pydicom.dcmread(path)
    del data.PixelData
    data.save_as(path)
    Patient(source, "P2").seg({"Organ": voxels(ORGAN)})
    with pytest.raises(PartialError, match="1 of 2 cases") as caught:
        bring()
    assert "P1" in caught.value.message
    folder = tmp_path / "raw" / "Dataset001_D" / "labelsTr"
    assert [one.name for one in folder.iterdir()] == ["P2.nii.gz"]
    # Mended, it goes on; had the integers changed, what is there would be of other labels.
    broken.seg({"Organ": voxels(ORGAN), "BODY": voxels(BODY)})
    with pytest.raises(SettingError, match="begun with other labels"):
        bring()
    broken.seg({"Organ": voxels(ORGAN)})
    found, *_ = bring()
    np.testing.assert_array_equal(found["P1"], voxels(ORGAN))


def test_what_marks_nothing_anywhere_is_no_label(source, bring):
    Patient(source, "P1").rtstruct(
        {
            "Organ": contours(ORGAN),
            "Point": [(4.0, [(3.0, 3.0)])],
            "Empty": [],
            "Listed": None,
            "Far": contours(FAR),
            "Beside": contours(BESIDE),
        }
    )
    Patient(source, "P2").rtstruct({"Organ": contours(FAR), "Spot": contours(SPOT)})
    _, described, log = bring()
    assert described["labels"] == {"background": 0, "Organ": 1, "Spot": 2}
    assert "no voxel in any case: 'Beside', 'Empty', 'Far', 'Listed', 'Point'" in log
    assert ["P2", "Organ"] in rows(log)
    assert ["P1", "Organ"] not in rows(log)


def test_nothing_marked_at_all_is_refused(source, bring):
    Patient(source, "P1").rtstruct({"Organ": contours(FAR)})
    with pytest.raises(DatasetError, match="no structure marks a voxel of its image: Organ"):
        bring()


def test_names_that_differ_in_case_or_spaces_need_the_users_word(source, bring, tmp_path):
    for name, spelling in {"P1": "Left Heart", "P2": "left heart ", "P3": "LeftHeart"}.items():
        Patient(source, name).rtstruct({spelling: contours(ORGAN)})
    with pytest.raises(DatasetError, match="differ only in capital letters or spaces") as caught:
        bring()
    assert '"Left Heart" and "LeftHeart" and "left heart"' in caught.value.message
    assert not (tmp_path / "raw").exists()
    suggested = json.loads(caught.value.hint[caught.value.hint.index("{") :])["labels"]
    found, described, _ = bring(suggested)
    assert described["labels"] == {"background": 0, "Left Heart": 1}
    assert "annotated" not in described
    for label in found.values():
        np.testing.assert_array_equal(label, voxels(ORGAN))
    with pytest.raises(DatasetError, match="not all have an integer"):
        bring({"Left Heart": 1, "LeftHeart": 1}, name="Dataset002_D")
    # The first name is that of the label, whatever structures are called.
    found, described, _ = bring({"Heart": 4, "Left Heart": 4, "LeftHeart": 4, "left heart": 0}, name="Dataset003_D")
    assert described["labels"] == {"background": 0, "Heart": 4}
    assert sorted(found) == ["P1", "P3"]


def test_what_a_patient_does_not_list_was_not_looked_for(source, bring):
    Patient(source, "P1").rtstruct({"Organ": contours(ORGAN), "Spot": contours(SPOT), "BODY": contours(BODY)})
    Patient(source, "P2").rtstruct({"Spot": contours(SPOT), "BODY": contours(BODY), "Organ": None})
    Patient(source, "P3").rtstruct({"Organ": contours(ORGAN)})
    _, described, log = bring()
    assert described["annotated"] == {"P3": ["Organ"]}
    assert "1 of 3 cases do not list all structures" in log
    found, described, log = bring({"Spot": 3, "BODY": 2}, name="Dataset002_D")
    assert sorted(found) == ["P1", "P2"]
    assert "1 cases list none of the labels and are left out: P3" in log
    assert "annotated" not in described


def test_names_with_a_meaning_are_refused_before_anything_is_written(source, bring, tmp_path):
    path = Patient(source, "P1").rtstruct(
        {"background": contours(BODY), "Ignore": contours(ORGAN), "": contours(SPOT), "Tumour": contours(SPOT)}
    )
    with pytest.raises(DatasetError) as caught:
        bring()
    for part in ("'background'", "'Ignore'", "no name", str(path)):
        assert part in caught.value.message
    assert "--labels" in caught.value.hint
    assert not (tmp_path / "raw").exists()
    found, described, _ = bring({"Fat": 1, "background": 1, "ignore": 9, "Ignore": 9})
    assert described["labels"] == {"background": 0, "Fat": 1, "ignore": 9}
    truth = 1 * voxels(BODY)
    truth[ORGAN] = 9
    np.testing.assert_array_equal(found["P1"], truth)


def test_labels_that_cannot_be_are_listed_together(source, bring, tmp_path):
    Patient(source, "P1").rtstruct({"Organ": contours(ORGAN), "Spot": contours(SPOT)})
    with pytest.raises(DatasetError) as caught:
        bring({"Organ": [1, 2], "Spot": 2**31, "Liver": 5, "": 6, "Core": 1.5})
    for part in ("'Organ' is a region", "2147483648 does not fit", "Liver", "6 has no name", "1.5"):
        assert part in caught.value.message
    with pytest.raises(DatasetError, match='"background" must be 0'):
        bring({"background": 1, "Organ": 1})
    assert not (tmp_path / "raw").exists()


def test_a_contour_written_twice_is_no_hole(source):
    hole = np.s_[2:5, 7:9, 7:9]
    path = Patient(source, "P1").rtstruct(
        {"Twice": contours(ORGAN) * 2, "Ring": contours(ORGAN, hole), "Ring twice": contours(ORGAN, hole) * 2}
    )
    found = drawn(path)
    np.testing.assert_array_equal(found["Twice"], voxels(ORGAN))
    np.testing.assert_array_equal(found["Ring"], voxels(ORGAN) & ~voxels(hole))
    np.testing.assert_array_equal(found["Ring twice"], found["Ring"])


def test_contours_of_thinner_slices_do_not_cut_each_other_out(source):
    # Two heights in each plane, the upper one a column narrower; and heights halfway between planes.
    narrow = np.s_[2:5, 6:10, 6:9]
    fine = [square(box, z) for z in range(2, 5) for box, z in ((ORGAN, z - 0.2), (narrow, z + 0.3))]
    half = [square(ORGAN, z + 0.5) for z in range(1, 5)]
    found = drawn(Patient(source, "P1").rtstruct({"Fine": fine, "Half": half}))
    np.testing.assert_array_equal(found["Fine"], voxels(ORGAN))
    np.testing.assert_array_equal(found["Half"], voxels(np.s_[2:6, 6:10, 6:10]))


def test_planes_left_out_are_told_but_not_between_parts_that_lie_apart(source, bring):
    apart = [*contours(np.s_[0:2, 1:4, 1:4]), *contours(np.s_[5:7, 12:16, 12:16])]
    Patient(source, "P1").rtstruct({"Skipped": contours(np.s_[1:8, 6:10, 6:10], step=2), "Nodes": apart})
    _, _, log = bring()
    assert ["P1", "Skipped", "3"] in rows(log)
    assert not any(row[:2] == ["P1", "Nodes"] for row in rows(log))


@pytest.mark.parametrize("named", [True, False])
def test_other_coordinates_are_told_or_refused(source, bring, named):
    path = Patient(source, "P1").rtstruct({"Organ": contours(ORGAN)}, frame=pydicom.uid.generate_uid(), named=named)
    if named:
        found, _, log = bring()
        assert f"{path} is drawn in other coordinates" in log
        np.testing.assert_array_equal(found["P1"], voxels(ORGAN))
    else:
        with pytest.raises(DatasetError, match="drawn in other coordinates"):
            bring()


def test_the_same_coordinates_are_no_matter(source, bring):
    Patient(source, "P1").rtstruct({"Organ": contours(ORGAN)}, named=False)
    _, _, log = bring()
    assert "other coordinates" not in log


def test_halves_of_files_of_a_killed_import_go(source, bring, tmp_path):
    Patient(source, "P1").rtstruct({"Organ": contours(ORGAN)})
    left = [
        tmp_path / "raw" / "Dataset001_D" / kind / ".P1.nii.gz.x.partial.nii.gz" for kind in ("imagesTr", "labelsTr")
    ]
    bring()
    for path in left:
        path.write_bytes(b"half")
    bring()
    assert not any(path.exists() for path in left)
