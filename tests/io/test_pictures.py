"""Pictures in every colour mode, against Pillow and scikit-image."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage import io as skio

from autoseg.errors import DatasetError
from autoseg.io.images import read_image, read_label, read_shape, write_label
from autoseg.io.volume import Geometry

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 255, (6, 9)).astype(np.uint8)
COLOUR = RNG.integers(0, 255, (6, 9, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    "array",
    [GREY, GREY.astype(np.uint16) * 200, COLOUR, np.dstack([COLOUR, GREY]), np.dstack([GREY, GREY])],
    ids=["grey", "grey16", "rgb", "rgba", "grey-alpha"],
)
def test_png_modes(tmp_path, array):
    Image.fromarray(array).save(tmp_path / "a.png")
    volume = read_image(tmp_path / "a.png")
    expected = np.atleast_3d(array).transpose(2, 0, 1)[:, np.newaxis]
    np.testing.assert_array_equal(volume.data, expected)
    assert volume.data.dtype == array.dtype
    assert read_shape(tmp_path / "a.png") == expected.shape
    assert volume.geometry == Geometry.picture()


def test_sixteen_bit_colour_keeps_all_bits(tmp_path):
    import SimpleITK as sitk  # noqa: N813

    deep = RNG.integers(0, 65535, (6, 9, 3)).astype(np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(deep, isVector=True), str(tmp_path / "a.png"))
    volume = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(volume.data[:, 0], deep.transpose(2, 0, 1))
    assert volume.geometry == Geometry.picture()


@pytest.mark.parametrize("ending", ["bmp", "jpg"])
def test_bmp_and_jpeg_as_scikit_image_reads_them(tmp_path, ending):
    Image.fromarray(COLOUR).save(tmp_path / f"a.{ending}")
    expected = skio.imread(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{ending}").data[:, 0], expected.transpose(2, 0, 1))


def test_palette_is_colour_in_an_image_and_an_index_in_a_label(tmp_path):
    indices = RNG.integers(0, 3, (6, 9)).astype(np.uint8)
    picture = Image.fromarray(indices)
    palette = [0, 0, 0, 255, 0, 0, 0, 0, 255]
    picture.putpalette(palette)
    picture.save(tmp_path / "a.png")
    colours = np.array(palette, np.uint8).reshape(3, 3)[indices]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").data[:, 0], colours.transpose(2, 0, 1))
    np.testing.assert_array_equal(read_label(tmp_path / "a.png").data[0, 0], indices)
    assert read_shape(tmp_path / "a.png") == (3, 1, 6, 9)


def test_one_bit_label_is_zero_and_one(tmp_path):
    mask = GREY > 100
    Image.fromarray(mask).save(tmp_path / "a.png")
    label = read_label(tmp_path / "a.png").data
    assert label.dtype.kind in "iu"
    np.testing.assert_array_equal(label[0, 0], mask)


def test_label_saved_in_grey_colours_is_one_channel_and_real_colours_are_refused(tmp_path):
    Image.fromarray(np.dstack([GREY] * 3)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_label(tmp_path / "grey.png").data[0, 0], GREY)
    Image.fromarray(np.dstack([GREY, np.full_like(GREY, 255)])).save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(read_label(tmp_path / "opaque.png").data[0, 0], GREY)
    Image.fromarray(COLOUR).save(tmp_path / "colour.png")
    with pytest.raises(DatasetError, match="has 3 channels where a label has one"):
        read_label(tmp_path / "colour.png")


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif"])
def test_truncated_picture_is_refused(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(RNG.integers(0, 255, (60, 90, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match=rf"a\.{ending} cannot be read: it is truncated"):
        read_image(path)


@pytest.mark.parametrize("compression", [None, "zlib", "tiff_lzw"])
def test_tiff_colour_and_compressions(tmp_path, compression):
    if compression == "tiff_lzw":
        Image.fromarray(COLOUR).save(tmp_path / "a.tif", compression=compression)
    else:
        tifffile.imwrite(tmp_path / "a.tif", COLOUR, photometric="rgb", compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").data[:, 0], COLOUR.transpose(2, 0, 1))
    assert read_shape(tmp_path / "a.tif") == (3, 1, 6, 9)


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_tiff_stack_takes_its_spacing_from_the_sidecar(tmp_path, depth):
    stack = RNG.integers(0, 999, (depth, 6, 9)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "case_0000.tif", stack, photometric="minisblack")
    assert read_image(tmp_path / "case_0000.tif").geometry.spacing == (1.0, 1.0, 1.0)
    (tmp_path / "case.json").write_text(json.dumps({"spacing": [5, 0.5, 0.25]}))
    volume = read_image(tmp_path / "case_0000.tif")
    np.testing.assert_array_equal(volume.data[0], stack)
    assert volume.geometry.spacing == (5.0, 0.5, 0.25)
    assert read_shape(tmp_path / "case_0000.tif") == (1, depth, 6, 9)


def test_imagej_stack_with_channels(tmp_path):
    data = RNG.integers(0, 255, (4, 2, 6, 9)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, metadata={"axes": "ZCYX"})
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").data, data.transpose(1, 0, 2, 3))


def test_tiff_label_writes_the_sidecar_that_gives_its_spacing_back(tmp_path):
    labels = RNG.integers(0, 3, (4, 6, 9))
    write_label(tmp_path / "case.tif", labels, Geometry.upright((5.0, 0.5, 0.25)))
    assert json.loads((tmp_path / "case.json").read_text()) == {"spacing": [5.0, 0.5, 0.25]}
    assert read_label(tmp_path / "case.tif").geometry.spacing == (5.0, 0.5, 0.25)


@pytest.mark.parametrize(
    "content", ["{", '{"spacing": 3}', '{"spacing": [1, 0, 1]}', '{"spacing": [1, 1, 1, 1]}', "[]"]
)
def test_wrong_sidecar_is_refused_by_name(tmp_path, content):
    tifffile.imwrite(tmp_path / "case_0000.tif", GREY)
    (tmp_path / "case.json").write_text(content)
    with pytest.raises(DatasetError, match=r"case\.json"):
        read_image(tmp_path / "case_0000.tif")


def test_too_many_axes_in_a_tiff_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 3, 6, 9), np.uint8), imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(DatasetError, match="too many axes"):
        read_image(tmp_path / "a.tif")
