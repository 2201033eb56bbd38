"""Images, labels and geometry go out and come back the same, in every format; damaged files are refused."""

import gzip
import os

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from autoseg.errors import DatasetError
from autoseg.io.images import (
    READABLE_ENDINGS,
    label_ending,
    read_channels,
    read_image,
    read_label,
    read_shape,
    split_ending,
    write_image,
    write_label,
)
from autoseg.io.volume import Geometry, Volume, corner_distance_mm

C, S = np.cos(0.3), np.sin(0.3)
OBLIQUE = Geometry((3.3, 0.7, 0.6), (-123.25, 45.5, 600.75), (C, -S, 0.0, S, C, 0.0, 0.0, 0.0, -1.0), 3)
UPRIGHT = Geometry((3.5, 0.75, 0.5), (-12.0, 4.0, 60.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), 3)
# GIPL stores no direction, TIFF neither direction nor origin.
GRIDS = {
    **dict.fromkeys((".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"), OBLIQUE),
    **dict.fromkeys(
        (".gipl", ".gipl.gz"), Geometry((3.5, 0.75, 0.5), (-12.0, 4.0, 60.0), (1, 0, 0, 0, 1, 0, 0, 0, 1), 3)
    ),
    **dict.fromkeys((".tif", ".tiff"), Geometry.upright((3.3, 0.7, 0.6))),
}
PICTURES = (".png", ".bmp", ".tif", ".tiff")


@pytest.mark.parametrize("ending", GRIDS)
def test_label_and_geometry_come_back(tmp_path, ending):
    labels = np.random.default_rng(0).integers(0, 4, (5, 6, 7))
    path = tmp_path / f"case{ending}"
    write_label(path, labels, GRIDS[ending])
    volume = read_label(path)
    assert volume.data.dtype == np.uint8
    np.testing.assert_array_equal(volume.data[0], labels)
    assert corner_distance_mm(volume.geometry, GRIDS[ending], labels.shape) < 1e-4
    np.testing.assert_allclose(volume.geometry.spacing, GRIDS[ending].spacing, rtol=0, atol=1e-6)
    assert read_shape(path) == (1, 5, 6, 7)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("ending", [ending for ending, grid in GRIDS.items() if grid is OBLIQUE])
def test_what_we_write_is_what_itk_reads(tmp_path, ending):
    data = np.random.default_rng(0).normal(size=(1, 5, 6, 7)).astype(np.float32)
    write_image(tmp_path / f"image{ending}", Volume(data, OBLIQUE))
    image = sitk.ReadImage(str(tmp_path / f"image{ending}"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), data[0])
    np.testing.assert_allclose(image.GetOrigin(), OBLIQUE.origin, rtol=0, atol=1e-5)
    np.testing.assert_allclose(image.GetDirection(), OBLIQUE.direction, rtol=0, atol=1e-6)
    np.testing.assert_allclose(image.GetSpacing(), OBLIQUE.spacing[::-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".mhd", ".tif"])
def test_several_channels_come_back(tmp_path, ending):
    data = np.random.default_rng(0).normal(size=(3, 5, 6, 7)).astype(np.float32)
    write_image(tmp_path / f"image{ending}", Volume(data, GRIDS[ending]))
    volume = read_image(tmp_path / f"image{ending}")
    np.testing.assert_array_equal(volume.data, data)
    assert volume.geometry.ndim == 3
    assert corner_distance_mm(volume.geometry, GRIDS[ending], volume.shape) < 1e-4
    assert read_shape(tmp_path / f"image{ending}") == (3, 5, 6, 7)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".mhd", ".tif"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_flat_images_stay_flat(tmp_path, ending, channels):
    grid = Geometry((0.5, 0.25, 0.5), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0), 2)
    data = np.random.default_rng(0).integers(0, 1000, (channels, 1, 6, 7)).astype(np.uint16)
    write_image(tmp_path / f"image{ending}", Volume(data, grid))
    volume = read_image(tmp_path / f"image{ending}")
    np.testing.assert_array_equal(volume.data, data)
    # NIfTI counts axes: the channels of a picture are its fourth, so it needs a third.
    assert volume.geometry.ndim == (3 if ending == ".nii.gz" and channels > 1 else 2)
    assert corner_distance_mm(volume.geometry, grid, volume.shape) < 1e-6
    assert volume.geometry.spacing == grid.spacing


def test_turned_flat_image_keeps_its_direction(tmp_path):
    grid = Geometry((0.5, 0.25, 0.5), (3.0, -4.0), (C, -S, S, C), 2)
    for ending in (".nii.gz", ".nrrd", ".mha", ".mhd"):
        write_label(tmp_path / f"a{ending}", np.ones((1, 4, 5), np.uint8), grid)
        assert corner_distance_mm(read_label(tmp_path / f"a{ending}").geometry, grid, (1, 4, 5)) < 1e-6


@pytest.mark.parametrize(
    ("labels", "kind"), [((0, 255), "u1"), ((0, 256), "u2"), ((0, 70000), "u4"), ((-1, 3), "i2"), ((-40000, 3), "i4")]
)
def test_smallest_type_that_holds_the_labels(tmp_path, labels, kind):
    data = np.resize(np.array(labels), (2, 3, 4))
    write_label(tmp_path / "a.nii.gz", data, OBLIQUE)
    read = read_label(tmp_path / "a.nii.gz").data
    assert read.dtype == np.dtype(kind)
    np.testing.assert_array_equal(read[0], data)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_label_picture_with_many_labels(tmp_path, ending):
    labels = np.arange(600).reshape(1, 20, 30)
    write_label(tmp_path / f"a{ending}", labels, Geometry.picture())
    np.testing.assert_array_equal(read_label(tmp_path / f"a{ending}").data[0], labels)


def test_bmp_refuses_labels_that_it_cannot_hold(tmp_path):
    with pytest.raises(DatasetError, match="cannot hold"):
        write_label(tmp_path / "a.bmp", np.full((1, 4, 4), 300), Geometry.picture())


def test_jpeg_is_for_images_only(tmp_path):
    with pytest.raises(DatasetError, match="JPEG"):
        write_label(tmp_path / "a.jpg", np.zeros((1, 8, 8), np.uint8), Geometry.picture())
    write_image(tmp_path / "a.jpg", Volume(np.full((3, 1, 8, 8), 100, np.uint8), Geometry.picture()))
    assert read_image(tmp_path / "a.jpg").data.shape == (3, 1, 8, 8)
    with pytest.raises(DatasetError, match="JPEG"):
        read_label(tmp_path / "a.jpg")
    assert [label_ending(ending) for ending in (".jpg", ".JPEG", ".nii.gz")] == [".png", ".png", ".nii.gz"]


def test_ending_is_the_longest_that_fits():
    assert split_ending("a.b_0000.nii.gz") == ("a.b_0000", ".nii.gz")
    assert split_ending("SCAN.NII.GZ") == ("SCAN", ".NII.GZ")
    assert split_ending("x.seg.nrrd") == ("x.seg", ".nrrd")
    assert all(split_ending(f"a{ending}") == ("a", ending) for ending in READABLE_ENDINGS)
    with pytest.raises(DatasetError, match=r"scan\.dcm.*\n.*\.nii\.gz"):
        split_ending("scan.dcm")


@pytest.mark.parametrize(
    ("ending", "compressed", "damaged"),
    [
        (".mha", True, ".mha"),
        (".mha", False, ".mha"),
        (".mhd", True, ".zraw"),
        (".mhd", False, ".raw"),
        (".nrrd", True, ".nrrd"),
        (".nrrd", False, ".nrrd"),
        (".nhdr", False, ".raw"),
        (".gipl", False, ".gipl"),
    ],
)
def test_truncated_volume_is_refused(tmp_path, ending, compressed, damaged):
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16))
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"), compressed)
    part = tmp_path / f"a{damaged}"
    part.write_bytes(part.read_bytes()[: int(part.stat().st_size * 0.9)])
    with pytest.raises(DatasetError):
        read_image(tmp_path / f"a{ending}")


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_damaged_compressed_volume_is_refused(tmp_path, ending):
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16))
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"), True)
    content = bytearray((tmp_path / f"a{ending}").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / f"a{ending}").write_bytes(content)
    with pytest.raises(DatasetError):
        read_image(tmp_path / f"a{ending}")


def test_truncated_compressed_gipl_is_refused(tmp_path):
    write_label(tmp_path / "a.gipl", np.random.default_rng(0).integers(0, 200, (9, 9, 9)), GRIDS[".gipl"])
    content = gzip.compress((tmp_path / "a.gipl").read_bytes())
    (tmp_path / "b.gipl.gz").write_bytes(content)
    assert read_shape(tmp_path / "b.gipl.gz") == (1, 9, 9, 9)
    (tmp_path / "b.gipl.gz").write_bytes(content[:-50])
    with pytest.raises(DatasetError, match="truncated"):
        read_image(tmp_path / "b.gipl.gz")


def test_detached_header_without_its_voxels_names_the_missing_file(tmp_path):
    write_label(tmp_path / "a.mhd", np.zeros((3, 3, 3), np.uint8), OBLIQUE)
    (tmp_path / "a.zraw").unlink()
    with pytest.raises(DatasetError, match=r"a\.zraw beside it does not exist"):
        read_image(tmp_path / "a.mhd")


def test_missing_file_and_folder_are_told_apart(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        read_image(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").mkdir()
    with pytest.raises(DatasetError, match="is a folder"):
        read_image(tmp_path / "b.nii.gz")


def test_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.gipl"
    write_label(path, np.ones((3, 3, 3), np.uint8), GRIDS[".gipl"])
    before = path.read_bytes()
    with pytest.raises(DatasetError, match="cannot be written"):
        write_image(path, Volume(np.ones((1, 3, 3, 3), np.int64), GRIDS[".gipl"]))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.gipl"]


def test_channels_are_stacked_in_the_geometry_of_the_first(tmp_path):
    parts = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    noisy = Geometry((3.3 + 1e-6, 0.7, 0.6), OBLIQUE.origin, OBLIQUE.direction, 3)
    for index, grid in enumerate((OBLIQUE, noisy)):
        write_image(tmp_path / f"a_{index:04d}.nrrd", Volume(parts[index : index + 1], grid))
    volume = read_channels(sorted(tmp_path.iterdir()))
    np.testing.assert_array_equal(volume.data, parts)
    assert volume.geometry.spacing == pytest.approx(OBLIQUE.spacing, abs=1e-9)


def test_channels_that_do_not_fit_are_all_named(tmp_path):
    data = np.ones((1, 4, 5, 6), np.float32)
    moved = Geometry(OBLIQUE.spacing, (0.0, 0.0, 0.0), OBLIQUE.direction, 3)
    write_image(tmp_path / "a_0000.nii.gz", Volume(data, OBLIQUE))
    write_image(tmp_path / "a_0001.nii.gz", Volume(data, moved))
    write_image(tmp_path / "a_0002.nii.gz", Volume(data[:, :3], OBLIQUE))
    write_image(tmp_path / "a_0003.nii.gz", Volume(data * np.inf, OBLIQUE))
    with pytest.raises(DatasetError) as caught:
        read_channels([*sorted(tmp_path.iterdir()), tmp_path / "a_0004.nii.gz"])
    shift = np.linalg.norm(OBLIQUE.origin)
    moved_by = f"a_0001.nii.gz has another origin than the first image: corners up to {shift:.3g} mm apart"
    assert moved_by in caught.value.message
    assert "a_0002.nii.gz has another shape than the first image: 3 x 5 x 6, not 4 x 5 x 6" in caught.value.message
    assert "a_0003.nii.gz has NaN or infinite values in 120 voxels" in caught.value.message
    assert "a_0004.nii.gz does not exist" in caught.value.message


def test_float_label_with_whole_numbers_is_read_and_fractions_are_refused(tmp_path):
    data = np.zeros((1, 3, 4, 5), np.float32)
    data[0, 1] = 2.0
    write_image(tmp_path / "a.nii.gz", Volume(data, OBLIQUE))
    label = read_label(tmp_path / "a.nii.gz").data
    assert label.dtype.kind == "i"
    np.testing.assert_array_equal(label, data)
    data[0, 1, 2, 3] = 0.5
    write_image(tmp_path / "a.nii.gz", Volume(data, OBLIQUE))
    with pytest.raises(DatasetError, match=r"has 1 voxels whose label is no integer \(0\.5\)"):
        read_label(tmp_path / "a.nii.gz")
    data[0, 1, 2, 3] = np.nan
    write_image(tmp_path / "a.nii.gz", Volume(data, OBLIQUE))
    with pytest.raises(DatasetError, match="no integer"):
        read_label(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("ending", [*GRIDS, ".png", ".bmp", ".jpg"])
def test_damaged_header_is_read_or_refused_but_raises_nothing_else(tmp_path, ending):
    grid = GRIDS.get(ending, Geometry.picture())
    path = tmp_path / f"a{ending}"
    rng = np.random.default_rng(0)
    write_image(path, Volume(rng.integers(0, 200, (1, 1 if grid.ndim == 2 else 4, 8, 9)).astype(np.uint8), grid))
    whole = path.read_bytes()
    refused = 0
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            content[rng.integers(min(len(whole), 400))] = rng.integers(256)
        path.write_bytes(content)
        for read in (read_image, read_shape):
            try:
                read(path)
            except DatasetError as error:
                assert "\n" not in error.message
                refused += 1
    assert refused


def test_picture_whose_size_cannot_be_true_is_refused_without_asking_for_the_memory(tmp_path):
    write_label(tmp_path / "a.bmp", np.ones((1, 8, 8), np.uint8), Geometry.picture())
    content = bytearray((tmp_path / "a.bmp").read_bytes())
    # Width and height of the Windows bitmap header, little-endian.
    content[18:26] = (100_000).to_bytes(4, "little") * 2
    (tmp_path / "a.bmp").write_bytes(content)
    with pytest.raises(DatasetError, match="damaged"):
        read_image(tmp_path / "a.bmp")
