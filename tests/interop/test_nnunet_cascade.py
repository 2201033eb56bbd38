"""Cascades of nnU-Net: both stages are found, and the second sees of the first what nnU-Net would show it."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.transform import resize

from autoseg import records
from autoseg.cli.main import main
from autoseg.errors import ModelFolderError
from autoseg.inference.predictor import Predictor
from autoseg.interop.nnunet_model import as_model_folder, import_model
from autoseg.interop.nnunet_weights import read_checkpoint
from autoseg.io.images import read_label
from autoseg.pipeline.export import export
from autoseg.pipeline.initial import read_source
from autoseg.pipeline.install import install
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Plan
from autoseg.schema.report import RunReport
from autoseg.schema.tools import ExportSettings, InstallSettings
from tests.interop.conftest import PEER_LOW, PEER_SECOND, TOPOLOGY, write_peer_cascade
from tests.interop.test_nnunet_model import by_names
from tests.synthetic import write_volume

PLAIN = {"background": 0, "tumour": 2, "organ": 1}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3]}
SIZE, PATCH, STEP = 20, 16, 0.8


def logits(folder: Path, x: np.ndarray) -> np.ndarray:
    weights = dict(read_checkpoint(folder / "fold_0" / "checkpoint_final.pth").weights)
    with torch.inference_mode():
        inputs = torch.from_numpy(x[None].astype(np.float32))
        return by_names(weights, "PlainConvUNet", list(TOPOLOGY[0]), inputs)[0].numpy()


def grid(channels: np.ndarray, size: int, order: int) -> np.ndarray:
    return np.stack([resize(one, (size,) * 3, order=order, mode="edge", anti_aliasing=False) for one in channels])


def decided(scores: np.ndarray, order: tuple[int, ...] | None) -> np.ndarray:
    if order is None:
        return scores.argmax(0)
    result = np.zeros(scores.shape[1:], dtype=int)
    for score, value in zip(scores, order, strict=True):
        result[score > 0] = value
    return result


def as_nnunet(second: Path, image: np.ndarray, integers: int, order: tuple[int, ...] | None) -> np.ndarray:
    """What nnU-Net does with an image that is one window at both spacings (1 mm), written from its description."""
    x = grid(((np.clip(image, -100, 300) - 40) / 20)[None], PATCH, 3)
    low = decided(grid(logits(second.with_name(PEER_LOW), x), SIZE, 1), order)
    # The label file, resized one label at a time; background where the image is empty is a label of its own.
    low[(low == 0) & (image == 0)] = -1
    values = np.unique(low)
    votes = grid(np.stack([low == value for value in values]).astype(float), PATCH, 1)
    coarse = values[votes.argmax(0)]
    shown = np.stack([coarse == value for value in range(1, integers + 1)])
    return decided(grid(logits(second, np.concatenate([x, shown])), SIZE, 1), order)


def picture(*, empty: bool) -> np.ndarray:
    image = np.random.default_rng(1).normal(40, 30, (5, 5, 5))
    image = resize(image, (SIZE,) * 3, order=1, mode="edge")
    if empty:
        z, y, x = np.indices(image.shape)
        image[(z + y + x < 16) | (z + y + x > 43)] = 0
    return image.astype(np.float32)


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize(
    ("labels", "order", "integers"), [(PLAIN, None, 2), (REGIONS, (1, 2), 3)], ids=["labels", "regions"]
)
def test_the_second_stage_sees_what_nnunet_shows_it(tmp_path, labels, order, integers, empty):
    one = (1.0, 1.0, 1.0)
    second = write_peer_cascade(tmp_path / "Dataset011_Made", labels=labels, order=order, low_spacing=one)
    predictor = Predictor.load(as_model_folder(second, tmp_path / "cache"), device="cpu", tta=False, exact=True)
    image = picture(empty=empty)
    found = predictor.predict_array(image, (STEP,) * 3)
    expected = as_nnunet(second, image, integers, order)
    assert len(np.unique(expected)) > 1
    assert (found == expected).mean() >= 0.999


def facts(root: Path) -> tuple[ModelFolder, ModelFolder]:
    model = ModelFolder(root)
    return model, model.first_stage


def test_both_stages_lie_in_one_model_with_all_their_folds(tmp_path):
    second = write_peer_cascade(tmp_path / "Dataset011_Made", folds=("0", "2"))
    model, first = facts(as_model_folder(second, tmp_path / "cache"))
    assert (model.finished_folds(), first.finished_folds()) == (("0", "2"), ("0", "2"))
    assert records.load(RunReport, model.run).settings["previous_model"] == "first_stage"
    assert "previous_model" not in records.load(RunReport, first.run).settings
    assert records.load(Plan, first.plan).names == ("3d_lowres",)
    predictor = Predictor.load(model.root, device="cpu")
    assert predictor.first is not None
    assert (predictor.first.configuration.name, predictor.first.configuration.spacing) == ("3d_lowres", (2.0,) * 3)


def test_it_predicts_from_a_folder_and_from_a_zip_of_both(tmp_path):
    results = tmp_path / "Dataset011_Made"
    second = write_peer_cascade(results)
    archive = tmp_path / "both.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in sorted(results.rglob("*.*")):
            target.write(path, path.relative_to(tmp_path).as_posix())
    write_volume(tmp_path / "in" / "case_0000.nii.gz", picture(empty=False))
    found = []
    # Where only the two stages are given, the second is meant.
    for number, source in enumerate((second, results, archive)):
        out = tmp_path / f"out_{number}"
        words = ["predict", "-m", str(source), "-i", str(tmp_path / "in"), "-o", str(out), "--device", "cpu"]
        assert main([*words, "--workdir", str(tmp_path / f"work_{number}"), "--quiet"]) == 0
        found.append(read_label(out / "case.nii.gz").data)
        weights = json.loads((out / "predict.json").read_text())["weights"]
        assert set(weights) == {"0", "first_stage/0"}
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_the_first_stage_alone_and_others_beside_it_are_chosen_by_name(tmp_path, write_peer):
    results = tmp_path / "Dataset011_Made"
    write_peer_cascade(results)
    low = as_model_folder(results, tmp_path / "cache", configuration="3d_lowres")
    assert not facts(low)[1].root.exists()
    write_peer(results / "nnUNetTrainer__nnUNetPlans__3d_fullres")
    with pytest.raises(ModelFolderError, match="several models"):
        as_model_folder(results, tmp_path / "cache")
    root = as_model_folder(results, tmp_path / "cache", configuration="3d_cascade_fullres")
    assert facts(root)[1].finished_folds() == ("0",)


def test_a_missing_first_stage_is_one_sentence(tmp_path, capsys):
    results = tmp_path / "Dataset011_Made"
    second = write_peer_cascade(results)
    archive = tmp_path / "one.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in sorted(second.rglob("*.*")):
            target.write(path, path.relative_to(tmp_path).as_posix())
    shutil.rmtree(results / PEER_LOW / "fold_0")
    for source in (second, archive):
        with pytest.raises(ModelFolderError, match=f"{PEER_LOW} .*missing") as caught:
            as_model_folder(source, tmp_path / "cache")
        assert "\n" not in caught.value.message
        assert "nnUNetv2_export_model_to_zip -c 3d_lowres 3d_cascade_fullres" in caught.value.hint
        assert not (tmp_path / "cache").exists()
    words = ["-i", str(tmp_path), "-o", str(tmp_path / "out"), "--workdir", str(tmp_path / "work")]
    assert main(["predict", "-m", str(second), *words]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_second_stage_whose_name_says_nothing_is_refused(tmp_path):
    second = write_peer_cascade(tmp_path / "Dataset011_Made")
    archive = tmp_path / f"{PEER_SECOND}.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in sorted(second.rglob("*.*")):
            target.write(path, path.relative_to(second).as_posix())
    renamed = second.rename(second.with_name("my cascade"))
    for source in (renamed, archive):
        with pytest.raises(ModelFolderError, match="its name does not say where the first lies") as caught:
            import_model(source, tmp_path / "results")
        assert "TRAINER__PLANS__3d_lowres" in caught.value.hint
    assert not list((tmp_path / "results").iterdir())
    assert read_source(renamed, workdir=str(tmp_path / "work")).weights


def test_a_fine_tuning_needs_no_first_stage(tmp_path):
    second = write_peer_cascade(tmp_path / "Dataset011_Made")
    shutil.rmtree(second.with_name(PEER_LOW))
    source = read_source(second, workdir=str(tmp_path / "work"))
    assert source.weights["encoder.0.0.0.weight"].shape[1] == 3


def test_a_translation_is_made_again_when_the_first_stage_changes(tmp_path):
    second = write_peer_cascade(tmp_path / "Dataset011_Made")
    before = as_model_folder(second, tmp_path / "cache")
    assert as_model_folder(second, tmp_path / "cache") == before
    os.utime(second.with_name(PEER_LOW) / "fold_0" / "checkpoint_final.pth", ns=(1, 1))
    assert as_model_folder(second, tmp_path / "cache") != before


def test_an_imported_cascade_can_be_shared(tmp_path):
    second = write_peer_cascade(tmp_path / "Dataset011_Made")
    imported = import_model(second, tmp_path / "results")
    assert imported == tmp_path / "results" / "Dataset011_Made" / PEER_SECOND
    assert import_model(second, tmp_path / "results") == imported
    path = export(ExportSettings(model=str(imported), output=str(tmp_path / "x.zip"), licence="MIT"))
    there = install(InstallSettings(file=str(path), workdir=str(tmp_path / "work"))).model
    image = picture(empty=True)
    ours, theirs = (
        Predictor.load(root, device="cpu").predict_array(image, (1, 1, 1)) for root in (imported, there.root)
    )
    np.testing.assert_array_equal(ours, theirs)
    weights = second.with_name(PEER_LOW) / "fold_0" / "checkpoint_final.pth"
    content = torch.load(weights, weights_only=False)
    content["network_weights"]["decoder.seg_layers.1.bias"] += 1
    torch.save(content, weights)
    with pytest.raises(ModelFolderError, match="holds another model"):
        import_model(second, tmp_path / "results")


def test_labels_that_are_resized_in_another_way_are_refused(tmp_path):
    def change(data):
        data["configurations"]["3d_fullres"]["resampling_fn_seg"] = "resample_torch_fornnunet"

    def steeper(data):
        data["configurations"]["3d_fullres"]["resampling_fn_seg_kwargs"]["order"] = 3

    for number, (edit, words) in enumerate([(change, "resample_torch_fornnunet"), (steeper, "order 3")]):
        second = write_peer_cascade(tmp_path / f"{number}" / "Dataset011_Made", change=edit)
        with pytest.raises(ModelFolderError, match=f"segmentations of the stage before are resampled.*{words}"):
            as_model_folder(second, tmp_path / "cache")
