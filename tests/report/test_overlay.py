from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from autoseg.report.overlay import OUTLINES, best_slice, overlay_png
from autoseg.schema.dataset import Label, Labels

LABELS = Labels(foreground=(Label(name="organ", values=(1,)), Label(name="lesion", values=(2,))))


def pixels_of(picture: np.ndarray, color: str) -> np.ndarray:
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.argwhere((np.abs(picture[..., :3] - wanted) < 0.03).all(axis=-1))


def test_the_best_slice_weighs_every_label_the_same() -> None:
    reference = np.zeros((10, 20, 20), np.uint8)
    reference[2] = 1  # one slice full of the organ
    reference[3] = 1
    reference[7, 5, 5] = 2  # the whole lesion, one voxel
    assert best_slice(reference, reference, LABELS, 0) == 7


def test_the_prediction_decides_where_the_reference_is_empty() -> None:
    reference, prediction = np.zeros((2, 10, 8, 8), np.uint8)
    assert best_slice(reference, prediction, LABELS, 0) == 5
    prediction[2, 1, 1] = 1
    assert best_slice(reference, prediction, LABELS, 0) == 2


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_outlines_lie_where_the_labels_end(tmp_path: Path, channels: int) -> None:
    reference = np.zeros((1, 80, 80), np.uint8)
    reference[0, 20:60, 20:60] = 1
    image = np.full((channels, 1, 80, 80), 40, np.uint8)
    overlay_png(tmp_path / "o.png", image, reference, np.zeros_like(reference), labels=LABELS, spacing=(1.0, 1.0, 1.0))
    picture = imread(tmp_path / "o.png")
    height, width = picture.shape[:2]
    # The window, below a line of text, is the square of 40 pixels and 19 on each side.
    top, start, stop = height - width, 19 / 78 * width, 59 / 78 * width
    found = pixels_of(picture, OUTLINES[0])
    found = found[found[:, 0] < top + stop + 3]
    np.testing.assert_allclose(found.min(axis=0), [top + start, start], atol=3)
    np.testing.assert_allclose(found.max(axis=0), [top + stop, stop], atol=3)
    inside = found[(np.abs(found - [top + width / 2, width / 2]) < width / 5).all(axis=1)]
    assert len(inside) == 0


def test_reference_is_solid_and_prediction_dashed(tmp_path: Path) -> None:
    square = np.zeros((1, 80, 80), np.uint8)
    square[0, 20:60, 20:60] = 1
    image, nothing = np.zeros((1, 1, 80, 80)), np.zeros_like(square)
    lengths = []
    for name, pair in (("solid", (square, nothing)), ("dashed", (nothing, square))):
        overlay_png(tmp_path / f"{name}.png", image, *pair, labels=LABELS, spacing=(1.0, 1.0, 1.0))
        lengths.append(len(pixels_of(imread(tmp_path / f"{name}.png"), OUTLINES[0])))
    assert 0.4 < lengths[1] / lengths[0] < 0.8


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [((4.0, 2.0, 1.0), 0.5), ((1.0, 2.0, 4.0), 2.0), ((3.0, 4.7, 4.7), 1.0)],
    ids=["across z", "across x", "two coarse axes"],
)
def test_slices_lie_across_the_coarse_axis_in_true_proportion(
    tmp_path: Path, spacing: tuple[float, float, float], expected: float
) -> None:
    array = np.ones((40, 40, 40), np.uint8)
    overlay_png(tmp_path / "o.png", np.zeros((1, 40, 40, 40)), array, array, labels=LABELS, spacing=spacing)
    picture = imread(tmp_path / "o.png")
    dark = (picture[..., :3].sum(axis=-1) < 0.05) | (pixels_mask(picture))
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    assert np.ptp(columns[[0, -1]]) / np.ptp(rows[[0, -1]]) == pytest.approx(expected, rel=0.12)


def pixels_mask(picture: np.ndarray) -> np.ndarray:
    mask = np.zeros(picture.shape[:2], bool)
    mask[tuple(pixels_of(picture, OUTLINES[0]).T)] = True
    return mask


def test_nan_and_constant_images_are_drawn(tmp_path: Path) -> None:
    array = np.ones((3, 16, 16), np.uint8)
    for number, image in enumerate((np.full((1, 3, 16, 16), np.nan), np.full((1, 3, 16, 16), 7.0))):
        overlay_png(tmp_path / f"{number}.png", image, array, array, labels=LABELS, spacing=(1, 1, 1))
        assert (tmp_path / f"{number}.png").stat().st_size > 0
