"""Files of the world as they are: read exactly as ITK and nibabel read them, or refused in one sentence."""

import csv
import dataclasses
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from autoseg.errors import DatasetError
from autoseg.io.discover import find_cases, read_dataset
from autoseg.io.images import READABLE_ENDINGS, read_image, read_shape, write_label
from autoseg.io.verify import check_spec, load_case
from autoseg.io.volume import corner_distance_mm

DATASETS = {
    "Dataset004_Hippocampus": (200, 60, (0, 1, 2), 1),
    "Dataset119_EManiso3D": (12, 4, (0, 1), 1),
    "Dataset120_EM": (24, 6, (0, 1), 1),
    "Dataset121_DSB2018": (60, 20, (0, 1), 3),
    "Dataset131_OpenKBP": (24, 8, (0, 1, 2, 3, 4, 5), 1),
}

# Read by ITK, refused here: five dimensions can take the process down.
REFUSED_ON_PURPOSE = {"nifti_format/5D_zeros.nii.gz"}


@pytest.mark.parametrize("name", DATASETS)
def test_dataset_is_understood(real_data, name):
    train, test, leaves, channels = DATASETS[name]
    spec = read_dataset(real_data / name)
    assert (len(spec.cases), spec.labels.leaves, len(spec.channels)) == (train, leaves, channels)
    assert check_spec(spec) == ()
    held_out = find_cases(real_data / name / "imagesTs", num_channels=channels, file_ending=spec.file_ending)
    assert len(held_out) == test


@pytest.mark.parametrize("name", DATASETS)
def test_cases_have_no_faults(real_data, name):
    spec = read_dataset(real_data / name)
    for case in spec.cases[::8]:
        loaded, faults = load_case(case, dataclasses.replace(spec, cases=()))
        assert faults == ()
        assert loaded is not None
        assert loaded.image.data.shape == (len(spec.channels), *loaded.label.shape)
        assert loaded.label.max() < len(spec.labels.leaves)


@pytest.fixture(scope="module")
def awkward(real_data) -> Path:
    return real_data / "awkward"


def manifest(folder: Path) -> list[dict[str, str]]:
    with (folder / "MANIFEST.tsv").open(newline="") as stream:
        return [row for row in csv.DictReader(stream, delimiter="\t") if not row["file"].startswith("dicom/rtstruct")]


def test_every_awkward_file_is_read_as_itk_reads_it_or_refused(awkward):
    read, refused = [], []
    for row in manifest(awkward):
        path = awkward / row["file"]
        try:
            volume = read_image(path)
        except DatasetError as error:
            assert error.message
            assert error.hint
            assert "\n" not in error.message
            refused.append(row["file"])
            readable = row["file"].lower().endswith(READABLE_ENDINGS)
            itk_reads = row["simpleitk_reads(size,components,type,spacing)"].startswith("((")
            assert not (readable and itk_reads) or row["file"] in REFUSED_ON_PURPOSE, error
            continue
        read.append(row["file"])
        assert read_shape(path) == volume.data.shape
        if not row["file"].endswith(".png"):
            _compare_with_itk(path, volume)
        if row["nibabel_reads"].startswith("(("):
            affine = np.diag([-1, -1, 1, 1]) @ nibabel.load(path).affine
            np.testing.assert_allclose(volume.geometry.affine(), affine, atol=1e-3, err_msg=row["file"])
    assert len(read) > 40
    assert "nifti_format/5D_small.nii" in refused


def _compare_with_itk(path, volume):
    image = sitk.ReadImage(str(path))
    n = min(image.GetDimension(), 3)
    geometry = volume.geometry
    assert geometry.ndim == n
    np.testing.assert_allclose(geometry.spacing[::-1][:n], image.GetSpacing()[:n], rtol=0, atol=1e-5)
    np.testing.assert_allclose(geometry.origin, image.GetOrigin()[:n], rtol=0, atol=1e-5)
    direction = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:n, :n]
    np.testing.assert_allclose(np.reshape(geometry.direction, (n, n)), direction, rtol=0, atol=1e-6)
    voxels = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        voxels = np.moveaxis(voxels, -1, 0)
    # ITK puts 0 where a file has NaN.
    np.testing.assert_allclose(np.nan_to_num(volume.data).ravel(), voxels.ravel(), rtol=1e-5, atol=1e-6)


def test_label_written_for_an_awkward_image_has_its_geometry(awkward, tmp_path):
    checked = 0
    for row in manifest(awkward):
        try:
            volume = read_image(awkward / row["file"])
        except DatasetError:
            continue
        if volume.data[0].size > 2**19 or row["file"].endswith(".png"):
            continue
        for ending in (".nii.gz", ".nrrd", ".mha"):
            path = tmp_path / f"label{ending}"
            write_label(path, np.ones(volume.shape, np.uint8), volume.geometry)
            image, expected = sitk.ReadImage(str(path)), volume.geometry
            n = expected.ndim
            np.testing.assert_allclose(image.GetSpacing(), expected.spacing[::-1][:n], rtol=0, atol=1e-5)
            np.testing.assert_allclose(image.GetOrigin(), expected.origin, rtol=0, atol=1e-5)
            np.testing.assert_allclose(image.GetDirection(), expected.direction, rtol=0, atol=1e-5)
            # NIfTI has single precision: 6e-8 of 500 mm.
            assert corner_distance_mm(read_image(path).geometry, expected, volume.shape) < 1e-4
            checked += 1
    assert checked > 100
