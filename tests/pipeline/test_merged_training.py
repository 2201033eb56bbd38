"""Two datasets that name different things become one, and one model segments both."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autoseg import records
from autoseg.cli.main import main
from autoseg.schema.folders import Workspace
from autoseg.schema.plan import Plan
from tests.pipeline.test_annotations import CASES, TEST_CASES, dice, prepare, scene, train_and_predict
from tests.synthetic import write_manifest, write_volume


def test_a_model_of_two_merged_datasets_segments_the_labels_of_both(tmp_path: Path) -> None:
    # Balls are 1 in four cases, tubes are 1 in the two others; nobody drew the other thing.
    for name, thing, first, stop in (("Dataset001_Balls", "ball", 0, 4), ("Dataset002_Tubes", "tube", 4, CASES)):
        folder = tmp_path / "raw" / name
        for index in range(first, stop):
            image, label = scene(index)
            write_volume(folder / "imagesTr" / f"case_{index - first}_0000.nii.gz", image)
            mine = (label == (1 if thing == "ball" else 2)).astype(np.uint8)
            write_volume(folder / "labelsTr" / f"case_{index - first}.nii.gz", mine)
        write_manifest(
            folder, channels=("MRI",), labels={"background": 0, thing: 1}, cases=stop - first, ending=".nii.gz"
        )
    work = ("--workdir", str(tmp_path), "--quiet")
    assert main(["import", "-i", "1", "--merge", "2", "--name", "Dataset011_Scenes", *work]) == 0
    workspace, folder = Workspace(tmp_path), tmp_path / "raw" / "Dataset011_Scenes"
    truth = {}
    for index in range(CASES, CASES + TEST_CASES):
        image, label = scene(index)
        truth[f"case_{index}"] = label
        write_volume(folder / "imagesTs" / f"case_{index}_0000.nii.gz", image)
        write_volume(folder / "labelsTs" / f"case_{index}.nii.gz", label)
    prepare(workspace)
    labels = records.load(Plan, workspace.prepared("Dataset011_Scenes").plan).labels
    assert labels.names == ("ball", "tube")
    assert set(labels.partial) == {("ball",), ("tube",)}
    made = train_and_predict(workspace, folder, steps=64)
    assert made.keys() == truth.keys()
    found = {(name, value): dice(truth[name] == value, made[name] == value) for name in truth for value in (1, 2)}
    assert min(found.values()) > 0.75, found
