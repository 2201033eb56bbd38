"""A target of 0.01% of the voxels in every fourth case: the default recipe misses it, the preset finds it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from autoseg import records
from autoseg.cli.main import main
from autoseg.schema.folders import Workspace
from autoseg.schema.plan import Plan
from autoseg.schema.report import EvaluationReport
from tests.synthetic import write_manifest, write_volume

SIZE, CASES, TEST_CASES, EVERY = 64, 16, 6, 4
STEPS = 120


def speck(rng: np.random.Generator, *, present: bool) -> tuple[np.ndarray, np.ndarray]:
    """Noise with larger balls and tubes as bright as the target, a ball of about 100 voxels apart from them."""
    z, y, x = np.indices((SIZE,) * 3)

    def ball(radius: float) -> tuple[np.ndarray, np.ndarray]:
        centre = rng.uniform(radius + 3, SIZE - radius - 4, 3)
        squared = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2
        return squared < radius**2, centre

    target, middle = ball(rng.uniform(2.5, 3.2))
    bright = target if present else np.zeros_like(target)
    for _ in range(3):
        decoy, centre = ball(rng.uniform(4.5, 7.0))
        if np.linalg.norm(middle - centre) > 12:
            bright = bright | decoy
    for _ in range(2):
        across = rng.uniform(8, SIZE - 8, 2)
        if np.hypot(*(across - middle[1:])) > 8:
            bright = bright | (np.hypot(y - across[0], x - across[1]) < 1.9)
    image = gaussian_filter(bright.astype(float), 0.5) + 0.25 * rng.standard_normal(target.shape)
    return image.astype(np.float32), (target & present).astype(np.uint8)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("specks"))
    folder = made.raw / "Dataset021_Specks"
    rng, shares = np.random.default_rng(0), []
    for index in range(CASES + TEST_CASES):
        image, label = speck(rng, present=index % EVERY == 0 or index >= CASES)
        part = "Tr" if index < CASES else "Ts"
        write_volume(folder / f"images{part}" / f"case_{index:02d}_0000.nii.gz", image)
        write_volume(folder / f"labels{part}" / f"case_{index:02d}.nii.gz", label)
        shares.append(label.mean())
    assert 0.8e-4 < np.mean(shares[:CASES]) < 1.2e-4
    write_manifest(folder, channels=("MRI",), labels={"background": 0, "speck": 1}, cases=CASES, ending=".nii.gz")
    size = ("--memory", "1GB", "--patch-size", "32,32,32", "--batch-size", "2")
    run(made, "plan_and_preprocess", "-d", "21", *size, "-w", "0")
    return made


def run(workspace: Workspace, *words: str) -> None:
    assert main([*words, "--workdir", str(workspace.root), "--device", "cpu", "--quiet"]) == 0


def held_out_dice(workspace: Workspace, name: str, *flags: str) -> float:
    """Mean Dice on the held-out cases after a training of ``STEPS`` steps on all others."""
    folder, out = workspace.raw / "Dataset021_Specks", workspace.root / name
    length = ("--epochs", "4", "--iterations", str(STEPS // 4), "--val-iterations", "2")
    run(workspace, "train", "-f", "all", "-w", "0", *length, *flags)
    run(workspace, "predict", "-i", str(folder / "imagesTs"), "-o", str(out))
    # Another loss would not go on from this model.
    workspace.results.rename(workspace.root / f"results_{name}")
    assert main(["evaluate", "-r", str(folder / "labelsTs"), "-p", str(out), "-w", "0", "--quiet"]) == 0
    report = records.load(EvaluationReport, out / "summary.json")
    assert len(report.cases) == TEST_CASES
    return report.foreground_dice


@pytest.mark.slow
def test_the_preset_finds_what_the_default_misses(workspace: Workspace) -> None:
    why = records.load(Plan, workspace.prepared("Dataset021_Specks").plan).why
    assert any(sentence.startswith("speck is tiny: 0.0") and "4 of 16 cases" in sentence for sentence in why)
    assert held_out_dice(workspace, "default") < 0.1
    assert held_out_dice(workspace, "preset", "--loss", "small_objects") > 0.6
