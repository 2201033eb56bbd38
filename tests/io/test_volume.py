import itertools

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from autoseg.io import itk
from autoseg.io.volume import Geometry, corner_distance_mm

TURN = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, -1.0)


def test_affine_maps_indices_as_itk_does():
    image = sitk.Image([9, 8, 7], sitk.sitkUInt8)
    image.SetSpacing((0.5, 0.7, 3.0))
    image.SetOrigin((-100.0, 20.0, 7.0))
    image.SetDirection(TURN)
    affine = itk.from_image(image).geometry.affine()
    for index in itertools.product((0, 8), (0, 7), (0, 6)):
        expected = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose((affine @ [*index, 1])[:3], expected, atol=1e-10)


def test_affine_of_a_turned_picture_maps_indices_as_itk_does():
    image = sitk.Image([5, 4], sitk.sitkUInt8)
    image.SetSpacing((0.5, 0.25))
    image.SetDirection((0.6, -0.8, 0.8, 0.6))
    image.SetOrigin((3.0, 4.0))
    volume = itk.from_image(image)
    assert volume.geometry.ndim == 2
    assert volume.geometry.spacing == (0.5, 0.25, 0.5)
    np.testing.assert_allclose(
        (volume.geometry.affine() @ [4, 3, 0, 1])[:2], image.TransformIndexToPhysicalPoint((4, 3))
    )


def test_corner_distance_of_a_shift_is_its_length():
    a = Geometry((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), TURN, 3)
    b = Geometry((1.0, 1.0, 1.0), (3.0, 4.0, 12.0), TURN, 3)
    assert corner_distance_mm(a, b, (10, 20, 30)) == pytest.approx(13.0)


def test_corner_distance_of_a_spacing_error_grows_with_the_length_of_the_axis():
    a, b = Geometry.upright((1.0, 1.0, 1.0)), Geometry.upright((1.0, 1.0, 1.001))
    assert corner_distance_mm(a, b, (1, 1, 500)) == pytest.approx(0.001 * 499.5)


def test_corner_distance_of_a_turn_by_180_degrees_is_the_diagonal_across():
    a = Geometry.upright((1.0, 1.0, 1.0))
    b = Geometry((1.0, 1.0, 1.0), (3.0, 3.0, 0.0), (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0), 3)
    assert corner_distance_mm(a, b, (5, 4, 4)) == pytest.approx(4 * np.sqrt(2))


def test_thickness_of_a_single_slice_counts_in_3d_and_not_for_a_picture():
    thin, thick = Geometry.upright((1.0, 1.0, 1.0)), Geometry.upright((5.0, 1.0, 1.0))
    assert corner_distance_mm(thin, thick, (1, 8, 8)) == pytest.approx(2.0)
    assert corner_distance_mm(Geometry.picture(), thick, (1, 8, 8)) == 0.0
