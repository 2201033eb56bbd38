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
import tifffile

from autoseg import records
from autoseg.errors import SettingError
from autoseg.inference import onnx_runner
from autoseg.inference.predictor import Predictor
from autoseg.io.images import read_label
from autoseg.pipeline.export import export
from autoseg.pipeline.predict import predict
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Normalization, Plan
from autoseg.schema.postprocessing import PostProcessing, PostStep
from autoseg.schema.settings import PredictSettings
from autoseg.schema.sharing import OnnxModel
from autoseg.schema.tools import ExportSettings
from tests.synthetic import write_volume

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
    theirs = onnx_runner.segment(folder, image[:, None], (1.0, 1.5))
    assert len(np.unique(ours)) > 1
    assert (ours == theirs[0]).mean() >= AGREEMENT


def predicted(model: ModelFolder, source: Path, outputs: Path, **changes: object) -> np.ndarray:
    """Labels (z, y, x) that autoseg_predict writes for the one image of a folder, without mirroring."""
    run = PredictSettings(inputs=str(source), outputs=str(outputs), model=str(model.root), device="cpu", tta=False)
    report = predict(replace(run, **changes))  # type: ignore[arg-type]
    return read_label(report.written[0]).data[0]


@needs_onnx
@pytest.mark.usefixtures("full_precision")
def test_post_processing_of_a_volume_goes_along(write_model: WriteModel, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    steps = (
        PostStep(rule="remove_small", label="near", values=(5,), minimum_mm3=2.5),
        PostStep(rule="keep_largest", label="foreground", values=(5, 9)),
    )
    source = tmp_path / "in" / "a_0000.nii.gz"
    image = noise(24, 26, 22)
    write_volume(source, image, spacing=(1.0, 0.9, 1.1))
    raw = predicted(model, source.parent, tmp_path / "raw")
    # Each of the steps changes something, so that leaving out any of them would show.
    stages = [raw]
    for step in steps:
        records.save(model.postprocessing, PostProcessing(steps=steps[: steps.index(step) + 1]))
        ours = predicted(model, source.parent, tmp_path / step.rule)
        assert (ours != stages[-1]).any()
        stages.append(ours)
    folder = onnx_of(model, tmp_path / "onnx")
    assert records.load(OnnxModel, folder / "model.json").postprocessing == steps
    theirs = onnx_runner.segment(folder, image, (1.0, 0.9, 1.1))
    assert (theirs == stages[-1]).mean() >= AGREEMENT
    # The same steps on the same labels leave no voxel of doubt.
    described = json.loads((folder / "model.json").read_text())["postprocessing"]
    np.testing.assert_array_equal(onnx_runner.postprocess(raw, described, 1.0 * 0.9 * 1.1), stages[-1])


@needs_onnx
@pytest.mark.usefixtures("full_precision")
def test_smallest_sizes_and_holes_of_a_picture_are_those_of_its_plane(write_model: WriteModel, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", ndim=2, file_ending=".tif")
    edited(model, spacing=(0.5, 0.5))
    # 12 mm2 are 48 pixels; as a volume of 0.5 mm planes they would be 96.
    small = PostStep(rule="remove_small", label="far", values=(9,), minimum_mm3=12.0)
    holes = PostStep(rule="fill_holes", label="near", values=(5,), fill=5)
    records.save(model.postprocessing, PostProcessing(steps=(small, holes)))
    image = noise(48, 40)
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a_0000.tif", image)
    (tmp_path / "in" / "a.json").write_text(json.dumps({"spacing": [0.5, 0.5]}))
    raw = predicted(model, tmp_path / "in", tmp_path / "raw", postprocess=False)
    ours = predicted(model, tmp_path / "in", tmp_path / "ours")
    folder = onnx_of(model, tmp_path / "onnx")
    described = json.loads((folder / "model.json").read_text())["postprocessing"]
    for number in (1, 2):
        assert (onnx_runner.postprocess(raw, described[:number], 0.25) != raw).any()
    np.testing.assert_array_equal(onnx_runner.postprocess(raw, described, 0.25), ours)
    theirs = onnx_runner.segment(folder, image[None], (0.5, 0.5))
    assert (theirs == ours).mean() >= AGREEMENT
    with pytest.raises(ValueError, match="2 spacings"):
        onnx_runner.segment(folder, np.stack([image, image]), (0.5, 0.5))


def test_steps_do_what_the_words_say() -> None:
    """By hand: a ring with another label inside, a speck at its corner, and two small ones of the same size."""
    plane = np.array(
        [
            [5, 5, 5, 0, 0, 0, 0, 0],
            [5, 0, 5, 0, 0, 0, 9, 0],
            [5, 7, 5, 0, 0, 0, 0, 0],
            [5, 5, 5, 0, 0, 0, 9, 0],
            [0, 0, 0, 5, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 5, 0, 0],
        ]
    )
    steps = [
        {"rule": "keep_largest", "label": "ring", "values": [5]},
        {"rule": "fill_holes", "label": "ring", "values": [5], "fill": 5},
        {"rule": "keep_largest", "label": "twins", "values": [9]},
        {"rule": "remove_small", "label": "seven", "values": [7], "minimum_mm3": 0.4},
    ]
    expected = plane.copy()
    expected[5, 5] = 0  # the corner at (4, 3) is joined to the ring, this one is not
    expected[1, 1] = 5
    np.testing.assert_array_equal(
        onnx_runner.postprocess(plane[None], steps, 0.2)[0], np.where(plane == 7, 0, expected)
    )
    np.testing.assert_array_equal(onnx_runner.postprocess(plane[None], steps, 0.4)[0], expected)
    # In a volume nothing encloses the middle of the ring, in a shell something does.
    volume = np.zeros((3, *plane.shape), dtype=int)
    volume[1] = plane
    np.testing.assert_array_equal(onnx_runner.postprocess(volume, steps[1:2], 1.0), volume)
    volume[[0, 2], 1, 1] = 5
    closed = onnx_runner.postprocess(volume, steps[1:2], 1.0)
    assert np.argwhere(closed != volume).tolist() == []
    volume[[0, 2], 2, 1] = 5
    closed = onnx_runner.postprocess(volume, steps[1:2], 1.0)
    assert np.argwhere(closed != volume).tolist() == [[1, 1, 1]]


@needs_onnx
def test_terms_go_along_and_stale_steps_do_not(
    write_model: WriteModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_model(tmp_path / "model")
    steps = (PostStep(rule="keep_largest", label="near", values=(5,)),)
    records.save(model.postprocessing, PostProcessing(steps=steps, weights={"0": "0" * 64}))
    (tmp_path / "licence.txt").write_text("Our licence\n\nUse it well.\n")
    given = ExportSettings(
        model=str(model.root),
        output=str(tmp_path / "onnx"),
        onnx=True,
        licence=str(tmp_path / "licence.txt"),
        intended_use="Research on livers.",
    )
    folder = export(given)
    assert "post-processing that was chosen for the old weights is left out" in caplog.text
    assert "no licence is stated" not in caplog.text
    description = json.loads((folder / "model.json").read_text())
    assert description["postprocessing"] == []
    assert (description["licence"], description["intended_use"]) == ("Our licence", "Research on livers.")
    assert (folder / "LICENCE.txt").read_text() == "Our licence\n\nUse it well.\n"
    caplog.clear()
    folder = export(replace(given, licence=None, intended_use=None, force=True))
    assert "no licence is stated" in caplog.text
    assert "not stated" in (folder / "LICENCE.txt").read_text()
    assert "not a medical device" in json.loads((folder / "model.json").read_text())["intended_use"]


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
