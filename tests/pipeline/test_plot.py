"""Pictures of folders: one per case, of the right files, with the right outlines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from autoseg.cli.main import main
from autoseg.errors import PartialError, SettingError
from autoseg.io.images import write_image, write_label
from autoseg.io.volume import Geometry, Volume
from autoseg.pipeline.plot import plot
from autoseg.report.overlay import OUTLINES
from autoseg.schema.tools import PlotSettings

GEOMETRY = Geometry.upright((1.0, 1.0, 1.0))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two cases of two channels (the second one bright), references of both, a segmentation of the first."""
    for name in "ab":
        for channel in (0, 1):
            data = np.full((1, 6, 30, 30), 10.0 * channel, np.float32)
            data[..., 0] = 5
            write_image(tmp_path / "images" / f"{name}_{channel:04d}.nii.gz", Volume(data, GEOMETRY))
        label = np.zeros((6, 30, 30), np.uint8)
        label[2, 8:20, 8:20] = 1
        write_label(tmp_path / "labels" / f"{name}.nii.gz", label, GEOMETRY)
    write_label(tmp_path / "out" / "a.nii.gz", 2 * label, GEOMETRY)
    return tmp_path


def colored(path: Path, color: str) -> int:
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return int((np.abs(imread(path)[..., :3] - wanted) < 0.03).all(axis=-1).sum())


def settings(folders: Path, **changed: object) -> PlotSettings:
    chosen = {"images": str(folders / "images"), "outputs": str(folders / "pictures"), "workers": 0, **changed}
    return PlotSettings(**chosen)  # type: ignore[arg-type]


def test_every_case_with_a_label_has_a_picture(folders: Path) -> None:
    written = plot(settings(folders, references=str(folders / "labels")))
    assert [path.name for path in written] == ["a.png", "b.png"]
    assert all(colored(path, OUTLINES[0]) > 100 for path in written)


def test_both_sides_share_a_picture_and_integers_have_colors_of_their_own(folders: Path) -> None:
    words = ["-i", str(folders / "images"), "-r", str(folders / "labels"), "-p", str(folders / "out")]
    assert main(["plot", *words, "-o", str(folders / "pictures"), "-w", "0"]) == 0
    a, b = (folders / "pictures" / f"{name}.png" for name in "ab")
    assert min(colored(a, OUTLINES[0]), colored(a, OUTLINES[1])) > 50
    assert colored(b, OUTLINES[0]) > 100
    assert colored(b, OUTLINES[1]) == 0


def test_the_channel_that_was_asked_for_is_shown(folders: Path) -> None:
    dark, bright = (
        plot(
            settings(folders, references=str(folders / "labels"), channel=channel, outputs=str(folders / f"p{channel}"))
        )
        for channel in (0, 1)
    )
    assert imread(bright[0])[200:, 200:, :3].mean() > imread(dark[0])[200:, 200:, :3].mean() + 0.3


@pytest.mark.parametrize("name", ["a", "a_0000"])
def test_channels_inside_one_file_are_counted_there(tmp_path: Path, name: str) -> None:
    """The second colour is a ramp from the left to the right, the others are flat."""
    data = np.full((3, 1, 40, 40), 90, np.uint8)
    data[1] = np.linspace(0, 255, 40).astype(np.uint8)
    write_image(tmp_path / "images" / f"{name}.png", Volume(data, Geometry.picture()))
    label = np.zeros((1, 40, 40), np.uint8)
    label[:, 18:22, 18:22] = 1
    write_label(tmp_path / "labels" / "a.png", label, Geometry.picture())
    (path,) = plot(settings(tmp_path, references=str(tmp_path / "labels"), channel=1))
    drawn = imread(path)[..., :3].mean(axis=(0, 2))
    third = len(drawn) // 3
    assert drawn[-third:].mean() > drawn[:third].mean() + 0.3
    with pytest.raises(SettingError, match=rf"{name}\.png has 3 channels, and there is no file of channel 3"):
        plot(settings(tmp_path, references=str(tmp_path / "labels"), channel=3))


def test_a_channel_that_is_not_there_is_named(folders: Path) -> None:
    with pytest.raises(SettingError, match=r"a_0000\.nii\.gz has 1 channel, and there is no file of channel 7"):
        plot(settings(folders, references=str(folders / "labels"), channel=7))
    (folders / "images" / "b_0001.nii.gz").unlink()
    with pytest.raises(PartialError, match=r"1 of 2 .*\n.*b: .*b_0000\.nii\.gz has 1 channel"):
        plot(settings(folders, references=str(folders / "labels"), channel=1))
    assert (folders / "pictures" / "a.png").exists()


def test_one_image_is_one_picture(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = str(folders / "images" / "a_0000.nii.gz")
    assert [path.name for path in plot(settings(folders, images=image, predictions=str(folders / "out")))] == ["a.png"]
    assert "left out" not in caplog.text


def test_faulty_cases_do_not_stop_the_others(folders: Path) -> None:
    write_label(folders / "labels" / "b.nii.gz", np.ones((3, 30, 30), np.uint8), GEOMETRY)
    with pytest.raises(PartialError, match=r"1 of 2 cases could not be drawn:\n  - b: .*\(3, 30, 30\)"):
        plot(settings(folders, references=str(folders / "labels")))
    assert (folders / "pictures" / "a.png").exists()


def test_mistakes_are_sentences(folders: Path) -> None:
    with pytest.raises(SettingError, match="nothing to outline"):
        plot(settings(folders))
    with pytest.raises(SettingError, match="does not exist"):
        plot(settings(folders, references=str(folders / "nowhere")))
    (folders / "dark").mkdir()
    with pytest.raises(SettingError, match="belongs to a label"):
        plot(settings(folders, references=str(folders / "labels"), images=str(folders / "dark")))


def test_an_input_picture_is_not_drawn_over(tmp_path: Path) -> None:
    picture = Geometry.picture()
    image = Volume(np.full((1, 1, 20, 20), 90, np.uint8), picture)
    write_image(tmp_path / "images" / "a.png", image)
    write_label(tmp_path / "labels" / "a.png", np.ones((1, 20, 20), np.uint8), picture)
    before = (tmp_path / "images" / "a.png").read_bytes()
    words = {"references": str(tmp_path / "labels"), "outputs": str(tmp_path / "images")}
    with pytest.raises(SettingError, match="would replace inputs"):
        plot(settings(tmp_path, **words))
    assert (tmp_path / "images" / "a.png").read_bytes() == before
