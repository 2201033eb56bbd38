"""DICOM against positions in mm: slices, contours and frames are written here, tilted and reversed, and found again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from autoseg.errors import DatasetError, PartialError, SettingError
from autoseg.inference.predictor import Predictor
from autoseg.interop.collection import write_collection
from autoseg.interop.dicom import dicom_collection
from autoseg.io.dicom import read_dicom_series, scan_series
from autoseg.io.dicom_labels import find_annotations, read_masks
from autoseg.io.dicom_write import write_dicom_seg
from autoseg.io.discover import read_dataset
from autoseg.io.images import read_image, read_label
from autoseg.io.inputs import cases_to_predict, output_ending, read_case, write_case_seg
from autoseg.pipeline.predict import predict
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.settings import PredictSettings
from tests.interop import dicom_files

pydicom = pytest.importorskip("pydicom", reason="needs autoseg[dicom]")
highdicom = pytest.importorskip("highdicom", reason="needs autoseg[dicom]")

SHAPE, SPACING = (9, 14, 12), (2.5, 0.8, 1.1)  # z, y, x
CENTRE, RADIUS = np.array([4.0, -3.0, 20.0]), 4.2  # x, y, z in mm


def turned(*angles: float) -> np.ndarray:
    """Cosines of a rotation about x, y and z in degrees: columns are the directions of x, y and z."""
    transform = sitk.Euler3DTransform((0, 0, 0), *np.deg2rad(angles))
    return np.array(transform.GetMatrix()).reshape(3, 3)


ORIENTATIONS = {
    "axial": np.eye(3),
    "oblique": turned(20, -15, 30),
    "sagittal": np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]], float),
    "head first reversed": np.diag([-1.0, -1.0, 1.0]),
}


class Scan:
    """Voxel values are integers that tell where the voxel lies in mm; ``points`` are those places."""

    def __init__(self, folder: Path, cosines: np.ndarray, *, backwards: bool = False, uid: str | None = None) -> None:
        steps = cosines * np.array(SPACING[::-1])
        z, y, x = np.meshgrid(*(np.arange(length) for length in SHAPE), indexing="ij")
        offsets = np.stack([x, y, z], axis=-1) - (np.array(SHAPE[::-1]) - 1) / 2
        self.points = CENTRE + offsets @ steps.T
        self.values = np.rint(10 * (self.points @ [1.0, 2.0, 3.0])).astype(np.int16)
        self.inside = np.linalg.norm(self.points - CENTRE, axis=-1) <= RADIUS
        self.cosines = cosines
        self.uid = uid or pydicom.uid.generate_uid()
        self.study, self.frame = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
        self.files = []
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(SHAPE[0]):
            # Neither names nor instance numbers follow the position when written backwards.
            number = SHAPE[0] - index if backwards else index + 1
            self.files.append(folder / f"{(number * 7) % 10}_{number}.dcm")
            self._write(self.files[-1], index, number)

    def header(self, kind: str, modality: str, series: str) -> pydicom.Dataset:
        data = dicom_files.header(kind, modality, series, patient="P1", frame=self.frame)
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.PatientName, data.PatientBirthDate, data.PatientSex = "A^B", "", ""
        data.StudyInstanceUID, data.PositionReferenceIndicator = self.study, ""
        data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = "20200101", "000000", "1", ""
        data.ReferringPhysicianName, data.SeriesNumber, data.InstanceNumber = "", 1, 1
        return data

    def _write(self, path: Path, index: int, number: int) -> None:
        data = self.header(pydicom.uid.CTImageStorage, "CT", self.uid)
        data.InstanceNumber = number
        data.ImagePositionPatient = [f"{value:.6f}" for value in self.points[index, 0, 0]]
        data.ImageOrientationPatient = [f"{value:.8f}" for value in self.cosines[:, :2].T.ravel()]
        data.PixelSpacing, data.SliceThickness = [SPACING[1], SPACING[2]], SPACING[0]
        data.Rows, data.Columns = SHAPE[1:]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleIntercept, data.RescaleSlope, data.RescaleType = -1024, 1, "HU"
        data.PixelData = (self.values[index] + 1024).astype("<i2").tobytes()
        data.save_as(path, enforce_file_format=True)

    def contours(self, path: Path, names: dict[str, float], *, hole: float = 0.0) -> None:
        """An RTSTRUCT of spheres of these radii about CENTRE, circles in the planes of the slices."""
        data = self.header(pydicom.uid.RTStructureSetStorage, "RTSTRUCT", pydicom.uid.generate_uid())
        data.ReferencedFrameOfReferenceSequence = [dicom_files.frame_reference(self.uid)]
        heights = (np.arange(SHAPE[0]) - (SHAPE[0] - 1) / 2) * SPACING[0]
        circles = {
            name: [self._circle(at, circle) for at in heights for circle in (radius, hole) if abs(at) < circle]
            for name, radius in names.items()
        }
        dicom_files.add_structures(data, circles)
        data.save_as(path, enforce_file_format=True)

    def _circle(self, height: float, radius: float) -> pydicom.Dataset:
        angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
        wide = np.sqrt(radius**2 - height**2)
        flat = np.stack([wide * np.cos(angles), wide * np.sin(angles), np.full(180, height)])
        return dicom_files.contour((CENTRE[:, None] + self.cosines @ flat).T)


@pytest.fixture
def scan(tmp_path: Path) -> Callable[..., Scan]:
    return lambda name="oblique", **given: Scan(tmp_path / "dicom" / "case1", ORIENTATIONS[name], **given)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_every_voxel_of_a_series_lies_where_it_was_scanned(scan, tmp_path, name, backwards):
    made = scan(name, backwards=backwards)
    volume = read_dicom_series(tmp_path)
    assert volume.data.shape == (1, *SHAPE)
    assert volume.geometry.spacing == pytest.approx(SPACING)
    z, y, x = np.meshgrid(*(np.arange(length) for length in SHAPE), indexing="ij")
    index = np.stack([x, y, z, np.ones_like(x)], axis=-1)
    places = (index @ volume.geometry.affine().T)[..., :3]
    # The nearest other voxel differs by 8.
    np.testing.assert_allclose(volume.data[0], 10 * (places @ [1.0, 2.0, 3.0]), atol=0.51)
    assert np.linalg.det(np.reshape(volume.geometry.direction, (3, 3))) == pytest.approx(1, abs=1e-5)
    (series,) = scan_series(tmp_path).values()
    assert set(series.files) == set(made.files)


def test_series_without_an_even_grid_are_refused_with_the_place(scan, tmp_path):
    made = scan()
    made.files[4].rename(tmp_path / "elsewhere.txt")
    (tmp_path / "elsewhere.txt").write_bytes(b"no DICOM")
    with pytest.raises(DatasetError, match=r"lie 5 mm, elsewhere 2\.5 mm"):
        read_dicom_series(tmp_path)
    copy = pydicom.dcmread(made.files[0])
    copy.SOPInstanceUID = pydicom.uid.generate_uid()
    copy.save_as(tmp_path / "again.dcm")
    with pytest.raises(DatasetError, match="at the same place"):
        read_dicom_series(tmp_path)


def test_several_series_are_named(tmp_path):
    first, second = (Scan(tmp_path / name, np.eye(3)) for name in ("a", "b"))
    with pytest.raises(DatasetError, match="2 DICOM series") as caught:
        read_dicom_series(tmp_path)
    assert first.uid in caught.value.message
    assert read_dicom_series(tmp_path, uid=second.uid).shape == SHAPE


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_contours_mark_the_voxels_inside_them(scan, tmp_path, name):
    made = scan(name, backwards=True)
    made.contours(tmp_path / "rt.dcm", {"Ball": RADIUS}, hole=1.9)
    (annotation,) = find_annotations(tmp_path)
    volume = read_dicom_series(tmp_path)
    ((found, mask),) = read_masks(annotation, volume.geometry, volume.shape)
    assert (found, annotation.names, annotation.patient) == ("Ball", ("Ball",), "P1")
    distance = np.linalg.norm(made.points - CENTRE, axis=-1)
    # Circles of 180 corners lie up to 0.02% inside their radius; voxels that near to the surface may go either way.
    clear = (np.abs(distance - RADIUS) > 0.01) & (np.abs(distance - 1.9) > 0.01)
    truth = (distance < RADIUS) & (distance > 1.9)
    order = np.argsort([made.points[i, 0, 0] @ np.cross(*made.cosines[:, :2].T) for i in range(SHAPE[0])])
    np.testing.assert_array_equal(mask[clear[order]], truth[order][clear[order]])
    assert truth.sum() > 50


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_written_seg_says_the_same_to_highdicom_and_to_us(scan, tmp_path, name):
    made = scan(name, backwards=True)
    (series,) = scan_series(tmp_path).values()
    volume = read_dicom_series(tmp_path)
    z, y, x = np.meshgrid(*(np.arange(length) for length in SHAPE), indexing="ij")
    places = (np.stack([x, y, z, np.ones_like(x)], axis=-1) @ volume.geometry.affine().T)[..., :3]
    ball = np.linalg.norm(places - CENTRE, axis=-1) <= RADIUS
    labels = ball * 5 + (ball & (places[..., 0] > CENTRE[0])) * 4
    target = tmp_path / "out" / "seg.dcm"
    write_dicom_seg(target, labels, series, {"left half": [5], "right half": [9], "nothing": [7]})
    seg = highdicom.seg.segread(target)
    uids = [pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in made.files]
    # In the order in which the slices were made here, not in that of our volume.
    pixels = seg.get_pixels_by_source_instance(uids, segment_numbers=[1, 2], ignore_spatial_locations=True)
    right = made.points[..., 0] > CENTRE[0]
    clear = np.abs(made.points[..., 0] - CENTRE[0]) > 1e-3
    np.testing.assert_array_equal(pixels[..., 0][clear], (made.inside & ~right)[clear])
    np.testing.assert_array_equal(pixels[..., 1][clear], (made.inside & right)[clear])
    (annotation,) = find_annotations(tmp_path / "out")
    assert (annotation.series, annotation.names) == (made.uid, ("left half", "right half", "nothing"))
    masks = dict(read_masks(annotation, volume.geometry, volume.shape))
    np.testing.assert_array_equal(masks["left half"], labels == 5)
    np.testing.assert_array_equal(masks["right half"], labels == 9)
    assert not masks["nothing"].any()


def test_a_folder_of_cases_becomes_a_dataset_in_the_right_place(tmp_path):
    source = tmp_path / "dicom"
    scans = [Scan(source / f"case{i}", cosines) for i, cosines in enumerate([np.eye(3), turned(10, 20, 5)])]
    scans[0].contours(source / "case0" / "rt.dcm", {"Ball": RADIUS, "Core": 2.4})
    scans[1].contours(source / "case1" / "rt.dcm", {"Ball": RADIUS})
    Scan(source / "unmarked", np.eye(3))
    done = write_collection(dicom_collection(source), tmp_path / "raw" / "Dataset001_D")
    spec = read_dataset(done.folder)
    assert (spec.channels, spec.labels.names) == (("CT",), ("Ball", "Core"))
    assert [case.id for case in spec.cases] == ["case0", "case1"]
    for case, made in zip(spec.cases, scans, strict=True):
        image, label = read_image(case.images[0]), read_label(case.label)
        itk = sitk.ReadImage(case.images[0])
        for index in ((0, 0, 0), (11, 3, 5), (6, 13, 8)):
            place = itk.TransformIndexToPhysicalPoint(index)
            np.testing.assert_allclose(place, made.points[index[::-1]], atol=1e-3)
            assert image.data[0][index[::-1]] == made.values[index[::-1]]
        distance = np.linalg.norm(made.points - CENTRE, axis=-1)
        clear = (np.abs(distance - RADIUS) > 0.01) & (np.abs(distance - 2.4) > 0.01)
        truth = np.where(distance < 2.4, 2 if made is scans[0] else 1, np.where(distance < RADIUS, 1, 0))
        np.testing.assert_array_equal(label.data[0][clear], truth[clear])
    wanted = tmp_path / "wanted.json"
    wanted.write_text(json.dumps({"labels": {"background": 0, "Core": 7}}))
    chosen = write_collection(
        dicom_collection(source, channels=["MR"], labels=wanted), tmp_path / "raw" / "Dataset002_D"
    )
    again = read_dataset(chosen.folder)
    assert set(np.unique(read_label(again.cases[0].label).data)) == {0, 7}
    assert again.channels == ("MR",)


def test_series_are_cases_to_predict_and_get_their_seg(tmp_path, write_model):
    for name in ("left/ct", "right/ct"):
        made = Scan(tmp_path / "in" / name, ORIENTATIONS["oblique"], backwards=True)
    cases = cases_to_predict(tmp_path / "in", num_channels=1, file_ending=".nii.gz").cases
    assert [case.id for case in cases] == ["left_ct", "right_ct"]
    assert {output_ending(case) for case in cases} == {".nii.gz"}
    volume = read_case(cases[1])
    np.testing.assert_array_equal(volume.data, read_dicom_series(tmp_path / "in" / "right").data)
    predictor = Predictor.load(write_model(tmp_path / "model").root, device="cpu")
    found = predictor.predict(volume)
    target = tmp_path / "out" / "right_ct.dcm"
    write_case_seg(target, cases[1], found, predictor.plan.labels)
    (annotation,) = find_annotations(tmp_path / "out")
    assert (annotation.series, annotation.names) == (made.uid, ("near", "far"))
    masks = dict(read_masks(annotation, volume.geometry, volume.shape))
    np.testing.assert_array_equal(masks["near"], found == 5)
    np.testing.assert_array_equal(masks["far"], found == 9)
    assert len(np.unique(found)) > 1
    with pytest.raises(DatasetError, match="2 channels per case"):
        cases_to_predict(tmp_path / "in", num_channels=2, file_ending=".nii.gz")


def test_predictions_of_series_are_written_as_seg_on_request(tmp_path, write_model):
    made = Scan(tmp_path / "in" / "ct", ORIENTATIONS["oblique"])
    model = write_model(tmp_path / "model").root
    settings = PredictSettings(inputs=str(made.files[0].parent), outputs=str(tmp_path / "out"), model=str(model))
    report = predict(replace(settings, dicom_seg=True, device="cpu"))
    (written,) = report.written
    (annotation,) = find_annotations(tmp_path / "out")
    assert (annotation.series, annotation.names) == (made.uid, ("near", "far"))
    found = read_label(written)
    masks = dict(read_masks(annotation, found.geometry, found.shape))
    np.testing.assert_array_equal(masks["near"], found.data[0] == 5)
    np.testing.assert_array_equal(masks["far"], found.data[0] == 9)
    written.with_name("ct.dcm").unlink()
    again = predict(replace(settings, dicom_seg=True, device="cpu", continue_=True))
    assert again.written == (written,)
    assert written.with_name("ct.dcm").exists()
    with pytest.raises(SettingError, match=r"none:\n.*ct"):
        predict(replace(settings, inputs=str(written), outputs=str(tmp_path / "other"), dicom_seg=True))


def test_segments_of_regions_overlap(scan, tmp_path):
    scan("axial")
    (case,) = cases_to_predict(tmp_path, num_channels=1, file_ending=".nii.gz").cases
    # Boxes inside one another, written over one another as by a network with these regions, and one beside them.
    whole, core, centre, beside = (np.zeros(SHAPE, bool) for _ in range(4))
    whole[1:8, 2:11, 2:9], core[3:6, 4:9, 3:7], centre[4:6, 5:7, 4:6], beside[1:8, 11:13] = True, True, True, True
    found = np.zeros(SHAPE, np.uint8)
    for value, mask in {3: whole, 1: core, 2: centre, 4: beside}.items():
        found[mask] = value
    regions = {"core": (1, 2), "whole": (1, 2, 3), "centre": (2,), "beside": (4,)}
    labels = Labels(
        foreground=tuple(Label(name=name, values=values) for name, values in regions.items()),
        regions_class_order=(1, 3, 2, 4),
    )
    write_case_seg(tmp_path / "out" / "seg.dcm", case, found, labels)
    seg = highdicom.seg.segread(tmp_path / "out" / "seg.dcm")
    assert seg.SegmentsOverlap == "YES"
    assert [one.SegmentLabel for one in seg.SegmentSequence] == list(regions)
    uids = [pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in case.images]
    pixels = seg.get_pixels_by_source_instance(uids, ignore_spatial_locations=True)
    np.testing.assert_array_equal(pixels, np.stack([core, whole, centre, beside], axis=-1))


def test_a_folder_without_an_image_series_is_refused_with_what_it_holds(scan, tmp_path):
    made = scan()
    (tmp_path / "annotations").mkdir()
    for name in ("one", "two", "three"):
        made.contours(tmp_path / "annotations" / f"{name}.dcm", {"Ball": RADIUS})
    with pytest.raises(DatasetError, match="annotations has no image series: its DICOM files are 3 RTSTRUCT"):
        cases_to_predict(tmp_path / "annotations", num_channels=1, file_ending=".nii.gz")


def test_multi_frame_files_are_refused_and_screenshots_left_out(shared, tmp_path, caplog):
    real = shared / "data" / "awkward" / "dicom" / "seg_dcmqi" / "23x38x3"
    source = tmp_path / "in"
    shutil.copytree(real / "multiframe", source / "enhanced")
    with pytest.raises(DatasetError, match=r"mf\.dcm is multi-frame: 3 frames"):
        cases_to_predict(source, num_channels=1, file_ending=".nii.gz")
    shutil.copytree(real / "image", source / "plain")
    screenshot = pydicom.dcmread(source / "plain" / "IMG0002.dcm")
    del screenshot.ImagePositionPatient, screenshot.ImageOrientationPatient
    screenshot.save_as(source / "plain" / "screenshot.dcm")
    with caplog.at_level("WARNING", logger="autoseg"):
        found = cases_to_predict(source, num_channels=1, file_ending=".nii.gz")
    assert [case.id for case in found.cases] == ["plain"]
    assert [Path(image).name for image in found.cases[0].images] == ["IMG0001.dcm", "IMG0002.dcm", "IMG0003.dcm"]
    assert list(found.broken) == ["enhanced/mf.dcm"]
    assert "screenshot.dcm" in caplog.text
    # Beside slices in one folder it changes neither their name nor what reading the folder gives.
    shutil.copy(real / "multiframe" / "mf.dcm", source / "plain")
    found = cases_to_predict(source / "plain", num_channels=1, file_ending=".nii.gz")
    assert [case.id for case in found.cases] == ["plain"]
    assert list(found.broken) == ["mf.dcm"]
    assert read_dicom_series(source / "plain").data.shape == (1, 3, 38, 23)


def test_a_gapped_series_does_not_stop_the_others(tmp_path, write_model):
    source, outputs = tmp_path / "in", tmp_path / "out"
    Scan(source / "good", np.eye(3))
    gapped = Scan(source / "gapped", np.eye(3))
    gapped.files[4].unlink()
    model = write_model(tmp_path / "model").root
    settings = PredictSettings(inputs=str(source), outputs=str(outputs), model=str(model), device="cpu")
    with pytest.raises(PartialError, match=r"1 of 2 images failed:\n.*gapped: between .* lie 5 mm"):
        predict(settings)
    assert read_label(outputs / "good.nii.gz").shape == SHAPE
    assert not (outputs / "gapped.nii.gz").exists()
    Scan(source / "also gapped", np.eye(3)).files[4].unlink()
    shutil.rmtree(source / "good")
    with pytest.raises(DatasetError, match=r"no series in .*\n.*lie 5 mm.*\n.*lie 5 mm"):
        predict(settings)


def test_a_segmentation_stays_where_its_series_cannot_carry_a_seg(tmp_path, write_model):
    made = Scan(tmp_path / "in" / "ct", np.eye(3))
    for path in made.files:
        data = pydicom.dcmread(path)
        del data.FrameOfReferenceUID
        data.save_as(path)
    model = write_model(tmp_path / "model").root
    settings = PredictSettings(
        inputs=str(tmp_path / "in"), outputs=str(tmp_path / "out"), model=str(model), dicom_seg=True, device="cpu"
    )
    with pytest.raises(DatasetError, match="cannot carry a DICOM SEG") as caught:
        predict(settings)
    assert f"the segmentation is in {tmp_path / 'out' / 'ct.nii.gz'}" in caught.value.message
    assert "leave out --dicom-seg" in caught.value.hint
    assert read_label(tmp_path / "out" / "ct.nii.gz").shape == SHAPE
    assert not (tmp_path / "out" / "ct.dcm").exists()


def test_annotations_without_their_series_are_listed_together(tmp_path):
    for name in ("a", "b"):
        made = Scan(tmp_path / name, np.eye(3))
        made.contours(tmp_path / name / "rt.dcm", {"Ball": RADIUS})
        for path in made.files[: None if name == "a" else 4]:
            path.unlink()
    with pytest.raises(DatasetError) as caught:
        dicom_collection(tmp_path)
    assert str(tmp_path / "a" / "rt.dcm") in caught.value.message


@pytest.mark.parametrize("name", ["23x38x3", "24x38x3"])
def test_real_segmentations_agree_with_their_labels(shared, name):
    folder = shared / "data" / "awkward" / "dicom" / "seg_dcmqi" / name
    volume = read_dicom_series(folder / "image")
    (annotation,) = find_annotations(folder / "seg")
    label = np.zeros(volume.shape, np.uint8)
    for number, (_, mask) in enumerate(read_masks(annotation, volume.geometry, volume.shape), start=1):
        label[mask] = number
    truth = read_label(folder / "nrrd" / "label.nrrd")
    np.testing.assert_allclose(truth.geometry.affine(), volume.geometry.affine(), atol=1e-3)
    assert ((label > 0) == (truth.data[0] > 0)).all()
    assert label.any()
