"""``kill -9`` at any moment of any stage, then the same command again: it finishes with the same result."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from autoseg.schema.folders import Workspace
from autoseg.training.checkpoint import load_weights
from tests.synthetic import write_dataset

ROOT = Path(__file__).parents[2]
PREPARE = ("plan_and_preprocess", "-d", "7", "--memory", "1GB", "--device", "cpu", "-w", "1")
TRAIN = (
    "train",
    "-f",
    "0",
    "--epochs",
    "2",
    "--iterations",
    "12",
    "--val-iterations",
    "2",
    "--device",
    "cpu",
    "-w",
    "0",
)

pytestmark = pytest.mark.slow


def start(words: tuple[str, ...], workdir: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "autoseg", *words, "--workdir", str(workdir), "--quiet"]
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)


def finish(words: tuple[str, ...], workdir: Path) -> float:
    """Run a command to its end; returns its seconds."""
    began = time.monotonic()
    process = start(words, workdir)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error.decode()
    return time.monotonic() - began


def kill_at(words: tuple[str, ...], workdir: Path, seconds: float) -> None:
    """Run a command and kill it, with its workers, after some time."""
    process = start(words, workdir)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def digest(folder: Path, pattern: str) -> dict[str, str]:
    """Hashes of files by name; half-written files would show as further names."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob(pattern))
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    workdir = tmp_path_factory.mktemp("undisturbed")
    dataset = write_dataset(workdir / "raw", cases=6, test_cases=3)
    predict = ("predict", "-i", str(dataset / "imagesTs"), "-o", str(workdir / "out"), "--device", "cpu")
    return workdir, {
        name: finish(words, workdir) for name, words in (("prepare", PREPARE), ("train", TRAIN), ("predict", predict))
    }


def test_killed_again_and_again_each_stage_ends_with_the_same_files(
    undisturbed: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    whole, seconds = undisturbed
    (tmp_path / "raw").symlink_to(whole / "raw")
    predict = ("predict", "-i", str(whole / "raw/Dataset007_Tiny/imagesTs"), "-o", str(tmp_path / "out"), "--continue")
    predict = (*predict, "--device", "cpu")
    for name, words in (("prepare", PREPARE), ("train", TRAIN), ("predict", predict)):
        for part in (0.5, 0.7, 0.9):
            kill_at(words, tmp_path, part * seconds[name])
        finish(words, tmp_path)
    store, other = (Workspace(root).prepared("Dataset007_Tiny").store("3d_fullres") for root in (whole, tmp_path))
    stored = digest(store, "case_*")
    assert len(stored) == 6 * 4
    assert stored == digest(other, "case_*")
    weights, others = (load_weights(next(root.rglob("weights.safetensors"))) for root in (whole, tmp_path))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert digest(whole / "out", "*.nii.gz") == digest(tmp_path / "out", "*.nii.gz")
    assert not list(tmp_path.rglob("*.partial*"))
