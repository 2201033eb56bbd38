"""Small datasets with one fault each, and the folder of real data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

SHAPE = (6, 7, 8)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """AUTOSEG_TEST_DATA, or ``shared/data`` beside the repository."""
    default = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("AUTOSEG_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip("no real data: set AUTOSEG_TEST_DATA to the folder that holds it")
    return folder


def _save(
    path: Path,
    data: np.ndarray,
    *,
    spacing: tuple[float, ...] = (1.0, 1.0, 2.0),
    origin: tuple[float, ...] = (5.0, -3.0, 8.0),
    direction: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
) -> None:
    image = sitk.GetImageFromArray(data)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)


@pytest.fixture
def save() -> Callable[..., None]:
    """Writes a (z, y, x) array with ITK itself; spacing and origin are (x, y, z)."""
    return _save


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Makes a dataset with flawless cases case_a, case_b, ...; further arguments replace parts of dataset.json."""

    def make(*, cases: int = 2, channels: int = 2, ending: str = ".nii.gz", **description: object) -> Path:
        folder = tmp_path / "Dataset007_Phantom"
        rng = np.random.default_rng(0)
        for index in range(cases):
            name = f"case_{chr(ord('a') + index)}"
            for channel in range(channels):
                data = rng.normal(100, 10, SHAPE).astype(np.float32)
                _save(folder / "imagesTr" / f"{name}_{channel:04d}{ending}", data)
            label = np.zeros(SHAPE, np.uint8)
            label[2:4, 2:4, 2:4] = 1
            label[4, 4, 4] = 2
            _save(folder / "labelsTr" / f"{name}{ending}", label)
        content = {
            "channel_names": {str(channel): f"T{channel}" for channel in range(channels)},
            "labels": {"background": 0, "one": 1, "two": 2},
            "numTraining": cases,
            "file_ending": ending,
            **description,
        }
        folder.mkdir(exist_ok=True)
        (folder / "dataset.json").write_text(json.dumps(content))
        return folder

    return make
