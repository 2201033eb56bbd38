"""The NIfTI reader against ITK and nibabel, on whole files; and its refusals of damaged ones."""

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from autoseg.errors import DatasetError
from autoseg.io.images import read_image, read_shape, write_image
from autoseg.io.volume import Volume, corner_distance_mm

OBLIQUE = np.array([[-1.9, 0.2, 0.3, 10.0], [0.2, 1.9, -0.4, -20.5], [-0.3, 0.6, 2.9, 30.25], [0, 0, 0, 1]])


def square(affine: np.ndarray) -> np.ndarray:
    """The nearest affine whose axes stand square on each other."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    u, _, vt = np.linalg.svd(affine[:3, :3] / spacing)
    result = affine.copy()
    result[:3, :3] = (u @ vt) * spacing
    return result


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None, **header: object) -> Path:
    image = nibabel.Nifti1Image(data, square(OBLIQUE) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">f4"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_every_voxel_type_reads_as_itk_reads_it(tmp_path, kind, ending):
    data = np.random.default_rng(0).integers(0, 120, (5, 4, 3)).astype(kind)
    path = tmp_path / f"image{ending}"
    nibabel.save(nibabel.Nifti1Image(data, square(OBLIQUE), dtype=np.dtype(kind)), path)
    volume = read_image(path)
    np.testing.assert_array_equal(volume.data[0], sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    assert volume.data.dtype == np.dtype(kind).newbyteorder("=")


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (1, 4, 3), (5, 4, 3, 2), (5, 4, 1, 3), (5, 4, 3, 1)])
def test_every_number_of_dimensions_becomes_channel_z_y_x(tmp_path, shape):
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    path = save(tmp_path / "image.nii.gz", data)
    volume = read_image(path)
    x, y, z, c = (*shape, 1, 1)[:4]
    np.testing.assert_array_equal(volume.data, data.reshape(x, y, z, c).transpose(3, 2, 1, 0))
    assert read_shape(path) == volume.data.shape == (c, z, y, x)
    image = sitk.ReadImage(str(path))
    n = min(image.GetDimension(), 3)
    assert volume.geometry.ndim == n
    np.testing.assert_allclose(volume.geometry.spacing[::-1][:n], image.GetSpacing()[:n])
    np.testing.assert_allclose(volume.geometry.origin, image.GetOrigin()[:n])


def test_scale_factor_is_applied(tmp_path):
    path = tmp_path / "scaled.nii.gz"
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = nibabel.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(0.5, -3.0)
    nibabel.save(image, path)
    # nibabel divides before it writes, so its own reading is the truth.
    expected = nibabel.load(path).get_fdata().T
    volume = read_image(path)
    assert volume.data.dtype == np.float32
    np.testing.assert_allclose(volume.data[0], expected, rtol=1e-6)


def test_nan_is_kept_where_itk_would_turn_it_into_zero(tmp_path):
    data = np.ones((3, 3, 3), np.float32)
    data[1, 1, 1] = np.nan
    assert np.isnan(read_image(save(tmp_path / "nan.nii.gz", data)).data).sum() == 1


def test_geometry_agrees_with_nibabel(tmp_path):
    path = save(tmp_path / "oblique.nii.gz", np.zeros((9, 8, 7), np.uint8))
    expected = np.diag([-1, -1, 1, 1]) @ nibabel.load(path).affine
    np.testing.assert_allclose(read_image(path).geometry.affine(), expected, atol=1e-5)


def test_axes_a_little_off_square_are_straightened_and_sheared_ones_refused(tmp_path):
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[0, 1] = 1e-3
    data = np.zeros((30, 30, 30), np.uint8)
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(save(tmp_path / "slight.nii.gz", data, affine)))
    straight = read_image(tmp_path / "slight.nii.gz").geometry.affine()
    assert np.abs(straight - np.diag([-1, -1, 1, 1]) @ affine).max() < 1e-3
    axes = straight[:3, :3] / np.linalg.norm(straight[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    affine[0, 1] = 0.1
    with pytest.raises(DatasetError, match="sheared"):
        read_image(save(tmp_path / "sheared.nii.gz", data, affine))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_truncated_file_is_refused(tmp_path, ending, kept):
    data = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    path = save(tmp_path / f"image{ending}", data)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DatasetError, match=r"image\.nii.* is truncated"):
        read_image(path)


def test_flipped_bit_in_a_compressed_file_is_refused(tmp_path):
    data = np.random.default_rng(0).integers(0, 255, (30, 30, 30)).astype(np.uint8)
    path = save(tmp_path / "image.nii.gz", data)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="is damaged"):
        read_image(path)


def test_the_header_is_read_without_what_follows(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.zeros((30, 40, 50), np.uint8))
    damaged = bytearray(path.read_bytes())
    # The checksum of the content lies before its length, at the very end.
    damaged[-6] ^= 1
    path.write_bytes(damaged)
    assert read_shape(path) == (1, 50, 40, 30)
    with pytest.raises(DatasetError, match="damaged"):
        read_image(path)


def test_header_that_promises_far_too_much_is_refused_without_asking_for_the_memory(tmp_path):
    path = save(tmp_path / "image.nii", np.zeros((2, 2, 2), np.uint8))
    content = bytearray(path.read_bytes())
    content[40:56] = struct.pack("<8h", 3, 30000, 30000, 30000, 1, 1, 1, 1)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="truncated"):
        read_image(path)


def test_five_dimensions_are_refused_from_the_header(tmp_path):
    path = save(tmp_path / "vector.nii.gz", np.zeros((3, 3, 3, 1, 3), np.float32))
    with pytest.raises(DatasetError, match=r"5 dimensions \(3 x 3 x 3 x 1 x 3\)"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"text" * 500, "not a NIfTI file"), (gzip.compress(b"text" * 500, mtime=0), "not a NIfTI file")],
)
def test_other_content_is_refused(tmp_path, content, reason):
    path = tmp_path / "odd.nii.gz"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=reason):
        read_image(path)


def test_complex_voxels_are_refused(tmp_path):
    path = save(tmp_path / "complex.nii.gz", np.zeros((3, 3, 3), np.complex64))
    with pytest.raises(DatasetError, match="complex"):
        read_image(path)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
def test_what_we_write_is_what_nibabel_and_itk_read(tmp_path, channels, kind):
    data = np.random.default_rng(0).integers(0, 120, (channels, 4, 5, 6)).astype(kind)
    source = read_image(save(tmp_path / "source.nii.gz", np.zeros((6, 5, 4), np.uint8)))
    write_image(tmp_path / "a.nii.gz", Volume(data, source.geometry))
    read = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(read.dataobj).reshape(6, 5, 4, channels).transpose(3, 2, 1, 0), data)
    assert read.get_data_dtype() == np.dtype(kind)
    np.testing.assert_allclose(read.affine, nibabel.load(tmp_path / "source.nii.gz").affine, rtol=0, atol=1e-6)
    np.testing.assert_allclose(read.header.get_zooms()[:3], source.geometry.spacing[::-1], rtol=1e-6)
    assert read.header.get_xyzt_units()[0] == "mm"
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).reshape(data.shape), data)


def test_axes_that_are_not_quite_square_come_back_as_they_were(tmp_path):
    affine = square(OBLIQUE)
    affine[0, 1] += 5e-5
    source = read_image(save(tmp_path / "source.nii.gz", np.zeros((200, 200, 50), np.uint8), affine))
    write_image(tmp_path / "a.nii.gz", source)
    assert corner_distance_mm(read_image(tmp_path / "a.nii.gz").geometry, source.geometry, source.shape) < 1e-4


def test_equal_images_are_equal_files(tmp_path):
    volume = read_image(save(tmp_path / "source.nii.gz", np.ones((6, 5, 4), np.uint8)))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_image(tmp_path / name, volume)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("kind", ["sform", "qform", "both", "neither", "disagreeing", "metres", "one slice"])
@pytest.mark.parametrize("affine", [np.diag([-0.7, -0.7, 5.0, 1.0]), square(OBLIQUE), np.diag([0.7, 0.9, -2.5, 1.0])])
def test_geometry_is_that_of_itk_whatever_the_header_says(tmp_path, kind, affine):
    shape = (6, 5, 1) if kind == "one slice" else (6, 5, 4)
    image = nibabel.Nifti1Image(np.zeros(shape, np.int16), affine)
    image.set_sform(affine, code=0 if kind in {"qform", "neither"} else 1)
    image.set_qform(affine, code=0 if kind in {"sform", "neither"} else 1)
    if kind == "disagreeing":
        image.set_qform(affine @ np.diag([-1, -1, 1, 1]), code=1)
    image.header.set_xyzt_units("meter" if kind == "metres" else "mm")
    nibabel.save(image, tmp_path / "image.nii.gz")
    expected = sitk.ReadImage(str(tmp_path / "image.nii.gz"))
    found = read_image(tmp_path / "image.nii.gz").geometry
    n = expected.GetDimension()
    np.testing.assert_allclose(found.spacing[::-1][:n], expected.GetSpacing(), rtol=1e-12)
    np.testing.assert_allclose(found.origin, expected.GetOrigin(), atol=1e-12)
    np.testing.assert_allclose(found.direction, expected.GetDirection(), atol=1e-12)


def test_a_plain_volume_is_read_without_itk(tmp_path):
    path = save(tmp_path / "image.nii.gz", np.zeros((4, 5, 6), np.int16))
    code = f"import sys; from autoseg.io.images import read_image; read_image({str(path)!r}); "
    code += "sys.exit('SimpleITK' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("tail", [b"", b"\0" * 700])
@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_a_compressed_file_may_have_several_members_and_padding(tmp_path, pieces, tail):
    data = np.random.default_rng(0).integers(0, 255, (90, 80, 70)).astype(np.uint16)
    whole = save(tmp_path / "plain.nii", data).read_bytes()
    step = -(-len(whole) // pieces)
    parts = [gzip.compress(whole[start : start + step]) for start in range(0, len(whole), step)]
    (tmp_path / "image.nii.gz").write_bytes(b"".join(parts) + tail)
    np.testing.assert_array_equal(read_image(tmp_path / "image.nii.gz").data[0].T, data)


def test_rubbish_behind_a_compressed_file_is_refused(tmp_path):
    path = save(tmp_path / "image.nii.gz", np.zeros((4, 5, 6), np.int16))
    path.write_bytes(path.read_bytes() + b"rubbish")
    with pytest.raises(DatasetError, match="is damaged"):
        read_image(path)
