from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from autoseg.report.progress import COLORS, _smooth, progress_png


def epoch(number: int, **changes: Any) -> dict[str, Any]:
    record = {
        "epoch": number,
        "step": 250 * number,
        "learning_rate": 0.01,
        "train_loss": -0.1 * number,
        "val_loss": -0.05 * number,
        "dice": {"liver": 0.5, "tumour": 0.25},
        "seconds": 4.0,
        "elapsed": 4.0 * number,
    }
    return {**record, **changes}


def pixels_of(picture: np.ndarray, color: str) -> np.ndarray:
    """(n, 2) rows and columns of the pixels that have just this colour."""
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.argwhere((np.abs(picture[..., :3] - wanted) < 0.02).all(axis=-1))


def test_each_label_is_a_level_line_in_its_colour(tmp_path: Path) -> None:
    progress_png(tmp_path / "p.png", [epoch(number) for number in range(1, 101)], title="fold 0")
    picture = imread(tmp_path / "p.png")
    assert picture.shape == (600, 900, 4)
    right = picture[:, 460:]
    heights = []
    for color in COLORS[:2]:
        # The curve is the long run; the sample in the legend is short.
        rows, counts = np.unique(pixels_of(right, color)[:, 0], return_counts=True)
        assert counts.max() > 250
        heights.append(rows[counts.argmax()])
    mean = pixels_of(right, "#000000")[:, 0]
    axis_height = 600 * (0.895 - 0.095) * 0.63
    assert heights[0] < np.bincount(mean).argmax() < heights[1]
    # Dice 0.5 lies above 0.25 by a quarter of the axis.
    assert heights[1] - heights[0] == pytest.approx(axis_height / 4, rel=0.1)


@pytest.mark.parametrize(
    "history",
    [
        [],
        [epoch(1)],
        [epoch(1, val_loss=None, dice={"liver": None, "tumour": None})],
        [epoch(number, dice={}) for number in range(1, 4)],
        [epoch(number, dice={f"label {k}": k / 25 for k in range(25)}) for number in range(1, 4)],
        [epoch(number, val_loss=None if number % 3 else -1.0) for number in range(1, 1001)],
    ],
    ids=["nothing", "one epoch", "nothing measured", "no labels", "many labels", "long with gaps"],
)
def test_any_history_gives_a_picture(tmp_path: Path, history: list[dict[str, Any]]) -> None:
    progress_png(tmp_path / "p.png", history)
    assert imread(tmp_path / "p.png").shape == (600, 900, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


def test_running_mean_skips_what_is_missing() -> None:
    values = [1.0, math.nan, 3.0, 5.0, math.nan, math.nan, math.nan]
    np.testing.assert_allclose(_smooth(values, 3), [1, 2, 4, 4, 5, np.nan, np.nan])
