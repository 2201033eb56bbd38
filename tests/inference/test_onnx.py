"""ONNX graphs with their reference runner say what autoseg says."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg import records
from autoseg.errors import SettingError
from autoseg.inference import onnx_runner
from autoseg.inference.predictor import Predictor
from autoseg.pipeline.export import export
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Normalization, Plan
from autoseg.schema.sharing import OnnxModel
from autoseg.schema.tools import ExportSettings

WriteModel = Callable[..., ModelFolder]
AGREEMENT = 0.999
LOGITS = 1e-4

needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs pip install 'autoseg[onnx]'",
)


@pytest.fixture
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """autoseg in float32, as onnxruntime computes: bfloat16 would be the larger difference."""
    monkeypatch.setattr("autoseg.inference.predictor.choose_precision", lambda device: None)


def edited(model: ModelFolder, **changes: object) -> None:
    """Change the plan's only configuration."""
    plan = records.load(Plan, model.plan)
    top = {name: changes.pop(name) for name in ("transpose", "labels") if name in changes}
    configuration = replace(plan.configurations[0], **changes)  # type: ignore[arg-type]
    records.save(model.plan, replace(plan, configurations=(configuration,), **top))  # type: ignore[arg-type]


def onnx_of(model: ModelFolder, target: Path) -> Path:
    return export(ExportSettings(model=str(model.root), output=str(target), onnx=True))


def noise(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    image = rng.normal(size=shape).astype(np.float32)
    # Something with structure, and an empty border to cut away.
    image += 2 * np.sin(np.arange(shape[-1]) / 5)
    image[..., :3, :] = 0
    image[..., -2:] = 0
    return image


def agreement(
    folder: Path, model: ModelFolder, image: np.ndarray, spacing: tuple[float, ...], *, mirror: bool
) -> float:
    ours = Predictor.load(model.root, device="cpu", tta=mirror).predict_array(image, spacing)
    theirs = onnx_runner.segment(folder, image, spacing, mirror=mirror)
    assert theirs.shape == ours.shape
    assert len(np.unique(ours)) > 1
    return float((ours == theirs).mean())


@needs_onnx
@pytest.mark.usefixtures("full_precision")
def test_two_folds_in_3d_with_resampling_and_mirroring(write_model: WriteModel, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", folds=("0", "1"), mirror_axes=(0, 2), channels=2)
    ct = Normalization(scheme="ct", mean=0.2, std=1.5, lower=-2.0, upper=2.5)
    edited(model, spacing=(1.2, 0.9, 0.8), normalization=(ct, Normalization(scheme="zscore")), transpose=(1, 0, 2))
    folder = onnx_of(model, tmp_path / "onnx")
    description = records.load(OnnxModel, folder / "model.json")
    assert description.graphs == ("fold_0.onnx", "fold_1.onnx")
    assert description.largest_difference < LOGITS
    for name, digest in description.sha256.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    image = noise(2, 24, 30, 22)
    assert agreement(folder, model, image, (1.0, 1.0, 1.0), mirror=False) >= AGREEMENT
    assert agreement(folder, model, image, (1.0, 1.0, 1.0), mirror=True) >= AGREEMENT


@needs_onnx
@pytest.mark.usefixtures("full_precision")
def test_a_coarse_axis_is_resampled_apart_there_and_back(write_model: WriteModel, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    masked = Normalization(scheme="zscore_masked")
    edited(model, spacing=(3.6, 0.9, 0.8), normalization=(masked,), transpose=(1, 0, 2))
    folder = onnx_of(model, tmp_path / "onnx")
    image = noise(12, 12, 30)
    assert agreement(folder, model, image, (0.8, 4.0, 1.0), mirror=False) >= AGREEMENT


@needs_onnx
@pytest.mark.usefixtures("full_precision")
def test_pictures_with_regions(write_model: WriteModel, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", ndim=2, patch=16)
    regions = Labels(
        foreground=(
            Label(name="whole", values=(1, 2)),
            Label(name="core", values=(2,)),
            Label(name="rim", values=(1,)),
        ),
        regions_class_order=(1, 2, 7),
    )
    edited(model, labels=regions, normalization=(Normalization(scheme="rescale_0_1"),))
    folder = onnx_of(model, tmp_path / "onnx")
    image = noise(1, 40, 33)
    ours = Predictor.load(model.root, device="cpu").predict_array(image[0], (1.0, 1.5))
    theirs = onnx_runner.segment(folder, image[:, None], (1.5, 1.0, 1.5))
    assert len(np.unique(ours)) > 1
    assert (ours == theirs[0]).mean() >= AGREEMENT


@needs_onnx
def test_the_folder_needs_nothing_of_autoseg(write_model: WriteModel, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    folder = onnx_of(model, tmp_path / "onnx")
    tree = ast.parse((folder / "onnx_runner.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert foreign == {"numpy", "scipy", "onnxruntime"}
    image = noise(20, 20, 20)
    np.save(tmp_path / "image.npy", image)
    words = [
        "onnx_runner.py",
        ".",
        str(tmp_path / "image.npy"),
        str(tmp_path / "labels.npy"),
        "--spacing",
        "1",
        "1",
        "1",
    ]
    subprocess.run([sys.executable, "-I", *words], cwd=folder, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), onnx_runner.segment(folder, image, (1, 1, 1)))
    assert json.loads((folder / "model.json").read_text())["output_values"] == [0, 5, 9]
    with pytest.raises(SettingError, match="exists already"):
        onnx_of(model, folder)
    with pytest.raises(SettingError, match="exists already"):
        export(ExportSettings(model=str(model.root), output=str(model.root), onnx=True, force=True))
    assert model.finished_folds() == ("0",)


def test_a_missing_package_is_named_with_the_command(
    write_model: WriteModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SettingError, match="needs the package onnx") as caught:
        onnx_of(write_model(tmp_path / "model"), tmp_path / "onnx")
    assert caught.value.hint == "pip install 'autoseg[onnx]'"
    assert not (tmp_path / "onnx").exists()
