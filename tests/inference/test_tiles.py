from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from autoseg.errors import SettingError
from autoseg.inference.tiles import WEIGHT_FLOOR, centred_padding, gaussian_window, tile_groups, tile_starts


def test_starts_agree_with_the_published_example() -> None:
    assert tile_starts(300, 128, 0.5) == (0, 57, 115, 172)


@pytest.mark.parametrize("step", [0.25, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("length", [1, 16, 17, 31, 32, 33, 100, 257])
def test_windows_cover_an_axis_within_the_step_and_end_flush(length: int, step: float) -> None:
    starts = tile_starts(length, 16, step)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - 16)
    gaps = np.diff(starts)
    assert (gaps > 0).all()
    assert (gaps <= math.ceil(16 * step)).all()


@pytest.mark.parametrize("step", [0.0, -0.5, 1.01])
def test_a_step_that_leaves_gaps_or_never_ends_is_refused(step: float) -> None:
    with pytest.raises(SettingError, match="step size"):
        tile_starts(100, 10, step)


@pytest.mark.parametrize("patch", [(40, 56, 40), (1, 64, 48), (7, 12, 20)])
def test_window_is_the_filtered_delta_of_scipy(patch: tuple[int, ...]) -> None:
    delta = np.zeros(patch)
    delta[tuple(size // 2 for size in patch)] = 1
    expected = gaussian_filter(delta, [size / 8 for size in patch], mode="constant")
    expected = np.maximum(expected / expected.max(), WEIGHT_FLOOR)
    window = gaussian_window(patch)
    assert window.dtype == np.float32
    np.testing.assert_allclose(window, expected, rtol=1e-5)


def test_padding_is_centred_as_in_acvl_utils() -> None:
    from acvl_utils.cropping_and_padding.padding import pad_nd_image

    image = np.arange(3 * 8 * 5, dtype=np.float32).reshape(3, 8, 5)
    expected = pad_nd_image(image, (6, 4, 10))
    padding = centred_padding((3, 8, 5), (6, 4, 10))
    np.testing.assert_array_equal(np.pad(image, padding), expected)


@pytest.mark.parametrize("per_batch", [1, 3, 8, 1000])
@pytest.mark.parametrize("patch", [(8, 8, 8), (1, 8, 8), (6, 16, 4)])
def test_groups_visit_every_window_once_and_release_no_plane_too_early(patch: tuple[int, ...], per_batch: int) -> None:
    shape = (21, 16, 19)
    groups, span = tile_groups(shape, patch, 0.5, per_batch=per_batch)
    corners = [corner for group in groups for corner in group.corners]
    covered = np.zeros(shape, int)
    for z, y, x in corners:
        covered[z : z + patch[0], y : y + patch[1], x : x + patch[2]] += 1
    assert covered.min() > 0
    assert len(set(corners)) == len(corners)
    assert [group.first for group in groups[1:]] == [group.done for group in groups[:-1]]
    assert groups[0].first == 0
    assert groups[-1].done == shape[0]
    for index, group in enumerate(groups):
        tops = [corner[0] for corner in group.corners]
        assert max(tops) + patch[0] - group.first <= span
        later = [corner[0] for other in groups[index + 1 :] for corner in other.corners]
        assert all(z >= group.done for z in later)
