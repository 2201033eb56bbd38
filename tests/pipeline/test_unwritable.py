"""An output that cannot be written is one sentence that names it, whichever command meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autoseg.cli.main import main
from autoseg.io.images import write_image, write_label
from autoseg.io.volume import Geometry, Volume

GEOMETRY = Geometry.upright((1.0, 1.0, 1.0))


def _dataset(folder: Path) -> Path:
    labels = {"background": 0, "a": 1}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    for seed, name in enumerate("ab"):
        data = np.random.default_rng(seed).uniform(1, 9, (1, 12, 12, 12)).astype(np.float32)
        write_image(folder / "imagesTr" / f"{name}_0000.nii.gz", Volume(data, GEOMETRY))
        write_label(folder / "labelsTr" / f"{name}.nii.gz", (data[0] > 5).astype(np.uint8), GEOMETRY)
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.mark.parametrize("verb", ["evaluate", "predict", "plan"])
@pytest.mark.parametrize("below", [False, True])
def test_a_file_where_a_folder_should_be(
    verb: str,
    below: bool,
    write_model: Callable[..., object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset = _dataset(tmp_path / "Dataset001_A")
    images, labels = str(dataset / "imagesTr"), str(dataset / "labelsTr")
    occupied = tmp_path / "occupied"
    occupied.write_text("mine")
    target = str(occupied / "deeper" if below else occupied)
    if verb == "predict":
        write_model(tmp_path / "model")
    words = {
        "evaluate": ["-r", labels, "-p", labels, "--workers", "0", "--output", target],
        "predict": ["-m", str(tmp_path / "model"), "-i", images, "--device", "cpu", "-o", target],
        "plan": ["-d", str(dataset), "--workers", "0", "--device", "cpu", "--workdir", target],
    }
    assert main([verb, *words[verb]]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    sentence, hint = shown.strip().splitlines()[-2:]
    assert sentence.startswith(f"autoseg: {occupied}")
    assert "cannot be written" in sentence
    assert hint.startswith("  -> ")
    assert occupied.read_text() == "mine"
