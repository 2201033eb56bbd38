"""nnU-Net models: the networks compute what its layout says, plans are followed, and nothing in a file is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from autoseg import records
from autoseg.cli.main import main
from autoseg.errors import ModelFolderError, SettingError
from autoseg.inference.predictor import Predictor
from autoseg.interop.nnunet_model import as_model_folder, import_model, is_nnunet_model
from autoseg.interop.nnunet_weights import read_checkpoint
from autoseg.io.images import read_label
from autoseg.io.staging import staging
from autoseg.nets import build_network
from autoseg.pipeline.choose import choose_model
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Plan
from autoseg.schema.report import RunReport
from autoseg.schema.settings import PredictSettings

FLAT = (((1, 1), (2, 2), (2, 2)), ((3, 3), (3, 3), (3, 3)), (4, 6, 6))
DEEP = (((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (4, 6, 8))
NAME = "nnUNetTrainer__nnUNetPlans__3d_fullres"


def by_names(weights: dict[str, torch.Tensor], kind: str, strides: list, x: torch.Tensor) -> torch.Tensor:
    """nnU-Net's forward pass written from its description, with nothing but the named tensors."""
    ndim = x.ndim - 2
    conv, up = (F.conv2d, F.conv_transpose2d) if ndim == 2 else (F.conv3d, F.conv_transpose3d)
    pool = F.avg_pool2d if ndim == 2 else F.avg_pool3d

    def unit(prefix: str, x: torch.Tensor, stride: tuple[int, ...] | int = 1, *, active: bool = True) -> torch.Tensor:
        weight = weights[f"{prefix}.conv.weight"]
        padding = [(size - 1) // 2 for size in weight.shape[2:]]
        x = conv(x, weight, weights.get(f"{prefix}.conv.bias"), stride, padding)
        x = F.instance_norm(x, weight=weights[f"{prefix}.norm.weight"], bias=weights[f"{prefix}.norm.bias"], eps=1e-5)
        return F.leaky_relu(x, 0.01) if active else x

    skips = []
    if kind == "ResidualEncoderUNet":
        x = unit("encoder.stem.convs.0", x)
    for s, stride in enumerate(strides):
        for b in range(2):
            step = stride if b == 0 else 1
            if kind == "PlainConvUNet":
                x = unit(f"encoder.stages.{s}.0.convs.{b}", x, step)
                continue
            block = f"encoder.stages.{s}.blocks.{b}"
            y = unit(f"{block}.conv2", unit(f"{block}.conv1", x, step), active=False)
            if step != 1 and max(stride) > 1:
                x = pool(x, stride, stride)
            for place in (0, 1):
                if f"{block}.skip.{place}.conv.weight" in weights:
                    x = unit(f"{block}.skip.{place}", x, active=False)
            x = F.leaky_relu(x + y, 0.01)
        skips.append(x)
    for d in range(len(strides) - 1):
        stride = strides[len(strides) - 1 - d]
        x = up(x, weights[f"decoder.transpconvs.{d}.weight"], weights[f"decoder.transpconvs.{d}.bias"], stride)
        x = torch.cat([x, skips[-2 - d]], dim=1)
        for i in range(2 if kind == "PlainConvUNet" else 1):
            x = unit(f"decoder.stages.{d}.convs.{i}", x)
    last = len(strides) - 2
    return conv(x, weights[f"decoder.seg_layers.{last}.weight"], weights[f"decoder.seg_layers.{last}.bias"])


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize("topology", [FLAT, DEEP], ids=["2d", "3d"])
def test_the_network_computes_what_the_peers_layout_says(write_peer, tmp_path, kind, topology):
    folder = write_peer(tmp_path / "peer", kind=kind, topology=topology)
    model = ModelFolder(as_model_folder(folder, tmp_path / "cache"))
    plan = records.load(Plan, model.plan)
    (configuration,) = plan.configurations
    predictor = Predictor.load(model.root, device="cpu")
    assert predictor.configuration.patch_size == configuration.patch_size
    network = build_network(
        configuration.architecture,
        configuration.topology,
        ndim=configuration.ndim,
        in_channels=1,
        num_heads=3,
        patch_size=configuration.patch_size,
    ).eval()
    network.load_state_dict(load_file(model.fold(0).weights))
    weights = dict(read_checkpoint(folder / "fold_0" / "checkpoint_final.pth").weights)
    x = torch.randn((1, 1, *configuration.patch_size), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = by_names(weights, kind, list(topology[0]), x)
        torch.testing.assert_close(network(x)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_model_predicts_with_all_its_folds_and_facts(write_peer, tmp_path):
    folder = write_peer(tmp_path / NAME, folds=("0", "3", "all"))
    root = as_model_folder(folder, tmp_path / "cache")
    predictor = Predictor.load(root, device="cpu", tta=True)
    assert predictor.folds == ("0", "3", "all")
    assert records.load(RunReport, ModelFolder(root).run).settings["mirror_axes"] == [0, 2]
    image = np.random.default_rng(0).normal(40, 20, (10, 20, 18))
    labels = predictor.predict_array(image, spacing=(2.0, 1.0, 1.2))
    assert labels.shape == image.shape
    assert set(np.unique(labels)) <= {0, 1, 2}
    spec = records.load(DatasetSpec, ModelFolder(root).dataset)
    assert (spec.name, spec.channels, spec.file_ending) == ("Dataset011_Made", ("CT",), ".nii.gz")


def test_a_model_of_another_architecture_is_called_as_it_was_typed(write_peer, tmp_path):
    folder = write_peer(tmp_path / NAME)
    settings = PredictSettings(model=str(folder), arch="vnet", workdir=str(tmp_path / "work"))
    with pytest.raises(SettingError) as caught:
        choose_model(settings)
    assert caught.value.message == f"{folder} is a model of architecture unet, not vnet"


def test_plans_are_translated_field_by_field(write_peer, tmp_path):
    def change(data):
        data["transpose_forward"] = [2, 0, 1]
        (values,) = data["configurations"].values()
        values |= {
            "spacing": [3.0, 0.5, 0.75],
            "normalization_schemes": ["ZScoreNormalization", "ZScoreNormalization", "CTNormalization"],
            "use_mask_for_norm": [True, False, False],
            "batch_size": 7,
        }
        for what, order in (("data", 2), ("probabilities", 0)):
            values[f"resampling_fn_{what}_kwargs"] |= {"order": order, "order_z": 1, "force_separate_z": False}
        properties = data["foreground_intensity_properties_per_channel"]
        properties["2"] = {"mean": 1.5, "std": 2.5, "percentile_00_5": -3.5, "percentile_99_5": 4.5}

    def widen(weights):
        for name in list(weights):
            if name.endswith(
                ("encoder.stages.0.0.convs.0.conv.weight", "encoder.stages.0.0.convs.0.all_modules.0.weight")
            ):
                weights[name] = weights[name].repeat(1, 3, 1, 1, 1)

    dataset = {
        "channel_names": {"0": "T1", "1": "T2", "2": "CT"},
        "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        "regions_class_order": [1, 2],
        "numTraining": 1,
        "file_ending": ".nrrd",
    }
    folder = write_peer(tmp_path / "peer", plans=change, weights=widen, dataset=dataset, heads=2, axes=None)
    model = ModelFolder(as_model_folder(folder, tmp_path / "cache"))
    plan = records.load(Plan, model.plan)
    (configuration,) = plan.configurations
    assert plan.transpose == (2, 0, 1)
    assert (configuration.spacing, configuration.batch_size) == ((3.0, 0.5, 0.75), 7)
    assert [item.scheme for item in configuration.normalization] == ["zscore_masked", "zscore", "ct"]
    ct = configuration.normalization[2]
    assert (ct.mean, ct.std, ct.lower, ct.upper) == (1.5, 2.5, -3.5, 4.5)
    rules = configuration.resampling
    assert (rules.order_image, rules.order_logits, rules.order_z) == (2, 0, 1)
    assert rules.anisotropy_threshold > 1e6
    assert (plan.labels.names, plan.labels.ignore, plan.labels.regions_class_order) == (("whole", "core"), 3, (1, 2))
    assert plan.labels.num_heads == 2
    assert records.load(RunReport, model.run).settings["mirror_axes"] == []


def test_old_plans_give_the_same_model(write_peer, tmp_path):
    def age(data):
        (values,) = data["configurations"].values()
        old = values.pop("architecture")["arch_kwargs"]
        values |= {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": 4,
            "unet_max_num_features": 8,
            "n_conv_per_stage_encoder": old["n_conv_per_stage"],
            "n_conv_per_stage_decoder": old["n_conv_per_stage_decoder"],
            "pool_op_kernel_sizes": old["strides"],
            "conv_kernel_sizes": old["kernel_sizes"],
        }

    topology = (DEEP[0], DEEP[1], (4, 8, 8))
    new = as_model_folder(write_peer(tmp_path / "new", topology=topology), tmp_path / "cache")
    old = as_model_folder(write_peer(tmp_path / "old", topology=topology, plans=age), tmp_path / "cache")
    assert (new / "plan.json").read_text() == (old / "plan.json").read_text()
    assert ModelFolder(new).fold(0).weights.read_bytes() == ModelFolder(old).fold(0).weights.read_bytes()


def test_batch_normalisation_is_noticed_in_the_weights(write_peer, tmp_path):
    def running(weights):
        for name in [name for name in weights if name.endswith("norm.bias")]:
            weights[name.replace("bias", "running_mean")] = torch.zeros_like(weights[name])
            weights[name.replace("bias", "running_var")] = torch.ones_like(weights[name])
            weights[name.replace("bias", "num_batches_tracked")] = torch.tensor(5)

    root = as_model_folder(write_peer(tmp_path / "peer", weights=running), tmp_path / "cache")
    plan = records.load(Plan, root / "plan.json")
    assert plan.configurations[0].architecture.arguments["normalization"] == "batch"
    Predictor.load(root, device="cpu")


def zipped(folder: Path, target: Path, prefix: str) -> zipfile.ZipFile:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, f"{prefix}/{path.relative_to(folder).as_posix()}")
    return target


def test_a_zip_gives_the_same_model_and_writes_nothing_else(write_peer, tmp_path):
    folder = write_peer(tmp_path / NAME)
    archive = zipped(folder, tmp_path / "model.zip", f"Dataset011_Made/{NAME}")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("../../escaped.txt", "x")
        opened.writestr(f"Dataset011_Made/{NAME}/fold_../../escaped.pth", "x")
        opened.writestr(f"Dataset011_Made/{NAME}/fold_1/../../../escaped/checkpoint_final.pth", "x")
        opened.writestr("/escaped/plans.json", "x")
    before = set(tmp_path.rglob("*"))
    root = as_model_folder(archive, tmp_path / "deep" / "cache")
    direct = as_model_folder(folder, tmp_path / "other")
    assert ModelFolder(root).finished_folds() == ("0",)
    for name in ("plan.json", "dataset.json", "run.json", "fold_0/weights.safetensors"):
        assert (root / name).read_bytes() == (direct / name).read_bytes()
    made = set(tmp_path.rglob("*")) - before
    allowed = (tmp_path / "deep", tmp_path / "other")
    assert all(any(path == top or top in path.parents for top in allowed) for path in made)


def test_a_translation_is_kept_until_the_model_changes(write_peer, tmp_path):
    folder = write_peer(tmp_path / NAME)
    first = as_model_folder(folder, tmp_path / "cache")
    made = (first / "run.json").stat().st_mtime_ns
    assert as_model_folder(folder, tmp_path / "cache") == first
    assert (first / "run.json").stat().st_mtime_ns == made
    os.utime(folder / "fold_0" / "checkpoint_final.pth", ns=(1, 1))
    assert as_model_folder(folder, tmp_path / "cache") != first
    assert not list((tmp_path / "cache").glob(".*"))


def test_folders_that_are_no_models_of_nnunet_pass_unchanged(write_model, tmp_path):
    own = write_model(tmp_path / "own").root
    assert as_model_folder(own, tmp_path / "cache") == own
    assert as_model_folder(tmp_path / "nowhere", tmp_path / "cache") == tmp_path / "nowhere"
    assert not is_nnunet_model(own)
    assert not (tmp_path / "cache").exists()


def test_one_of_several_models_is_chosen_by_its_configuration(write_peer, tmp_path):
    results = tmp_path / "results" / "Dataset011_Made"
    write_peer(results / NAME)
    write_peer(results / "nnUNetTrainer__nnUNetPlans__2d", topology=FLAT)
    with pytest.raises(ModelFolderError, match="several models"):
        as_model_folder(results, tmp_path / "cache")
    for top in (results, results.parent):
        root = as_model_folder(top, tmp_path / "cache", configuration="2d")
        assert records.load(Plan, root / "plan.json").names == ("2d",)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_checkpoint_that_would_run_code_is_refused_and_not_run(write_peer, tmp_path):
    folder = write_peer(tmp_path / NAME)
    path = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    torch.save({**content, "more": Harmful(tmp_path / "harmed")}, path)
    with pytest.raises(ModelFolderError, match="could run code") as caught:
        as_model_folder(folder, tmp_path / "cache")
    assert "\n" not in caught.value.message
    assert not (tmp_path / "harmed").exists()
    assert not list((tmp_path / "cache").iterdir())


def test_everything_that_cannot_be_followed_is_listed(write_peer, tmp_path):
    def change(data):
        data["image_reader_writer"] = "NibabelIOWithReorient"
        (values,) = data["configurations"].values()
        values |= {
            "preprocessor_name": "OwnPreprocessor",
            "normalization_schemes": ["OwnNormalization"],
            "resampling_fn_data": "no_resampling_data_or_seg_to_shape",
        }
        arguments = values["architecture"]["arch_kwargs"]
        arguments |= {"nonlin": "torch.nn.GELU", "dropout_op": "torch.nn.Dropout3d", "n_conv_per_stage": [1, 2, 2]}

    folder = write_peer(tmp_path / NAME, plans=change)
    with pytest.raises(ModelFolderError) as caught:
        as_model_folder(folder, tmp_path / "cache")
    for words in ("Reorient", "OwnPreprocessor", "OwnNorm", "no_resampling", "GELU", "dropout_op", "different numbers"):
        assert words in caught.value.message


def test_another_network_or_a_damaged_file_is_refused_in_a_sentence(write_peer, tmp_path):
    def other(data):
        (values,) = data["configurations"].values()
        values["architecture"]["network_class_name"] = "somewhere.Primus"

    def strange(weights):
        weights["eva.blocks.0.weight"] = torch.zeros(3)

    def short(weights):
        del weights["decoder.transpconvs.1.bias"]

    for number, (arguments, words) in enumerate(
        [({"plans": other}, "Primus"), ({"weights": strange}, "eva.blocks"), ({"weights": short}, r"up\.0\.bias")]
    ):
        folder = write_peer(tmp_path / f"{number}", **arguments)
        with pytest.raises(ModelFolderError, match=words):
            as_model_folder(folder, tmp_path / "cache")
    damaged = write_peer(tmp_path / "damaged") / "fold_0" / "checkpoint_final.pth"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(ModelFolderError, match="cannot be read"):
        as_model_folder(damaged.parents[1], tmp_path / "cache")
    torch.save({"state_dict": {}}, damaged)
    with pytest.raises(ModelFolderError, match="not a checkpoint of nnU-Net"):
        as_model_folder(damaged.parents[1], tmp_path / "cache")
    plans = write_peer(tmp_path / "plans") / "plans.json"
    plans.write_text(json.dumps({"configurations": {}}))
    with pytest.raises(ModelFolderError, match=r"plans\.json is not a plans file"):
        as_model_folder(plans.parent, tmp_path / "cache")


@pytest.mark.parametrize("kind", ["packed data", "encrypted", "method", "checksum"])
@pytest.mark.parametrize("member", ["plans.json", "fold_0/checkpoint_final.pth"])
def test_a_damaged_or_encrypted_zip_is_one_sentence(write_peer, tmp_path, capsys, kind, member):
    folder = write_peer(tmp_path / NAME)
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in sorted(folder.rglob("*.*")):
            target.write(path, f"{NAME}/{path.relative_to(folder).as_posix()}")
    with zipfile.ZipFile(archive) as opened:
        info = opened.getinfo(f"{NAME}/{member}")
    content = bytearray(archive.read_bytes())
    local = info.header_offset
    name = info.filename.encode()
    central = content.index(name, content.index(b"PK\1\2")) - 46
    if kind == "packed data":
        # A block of a type that deflate does not have.
        content[local + 30 + len(name)] = 0xFF
    elif kind == "encrypted":
        content[local + 6] |= 1
        content[central + 8] |= 1
    elif kind == "method":
        content[local + 8] = content[central + 10] = 99
    else:
        content[local + 14] ^= 0xFF
        content[central + 16] ^= 0xFF
    archive.write_bytes(content)
    assert main(["import", "-i", str(archive), "--workdir", str(tmp_path / "work"), "--quiet"]) == 2
    shown = capsys.readouterr().err
    assert f"{archive} is damaged" in shown
    assert "Traceback" not in shown
    assert not list((tmp_path / "work").rglob("*.json"))


def test_a_single_model_of_another_configuration_is_refused(write_peer, tmp_path):
    folder = write_peer(tmp_path / "a name of its own")
    for _ in range(2):
        with pytest.raises(ModelFolderError, match="holds a model of 3d_fullres, not of 2d"):
            as_model_folder(folder, tmp_path / "cache", configuration="2d")
    with pytest.raises(ModelFolderError, match="holds a model of 3d_fullres, not of 2d"):
        import_model(folder, tmp_path / "results", configuration="2d")
    assert not list((tmp_path / "results").iterdir())
    assert import_model(folder, tmp_path / "results", configuration="3d_fullres").is_dir()
    with pytest.raises(ModelFolderError, match="cannot be called 'selection'"):
        import_model(folder.rename(tmp_path / "selection"), tmp_path / "results")


def test_what_a_killed_translation_left_goes(write_peer, tmp_path):
    cache = tmp_path / "cache"
    script = (
        "import os, pathlib, sys\n"
        "from autoseg.interop import nnunet_model\n"
        "nnunet_model.write_tensors = lambda *_, **__: os._exit(9)\n"
        "nnunet_model.as_model_folder(*map(pathlib.Path, sys.argv[1:]))"
    )
    folder = write_peer(tmp_path / NAME)
    done = subprocess.run([sys.executable, "-c", script, str(folder), str(cache)], check=False)
    assert done.returncode == 9
    (left,) = cache.iterdir()
    with staging(cache, "translating") as busy:
        assert not left.exists()
        root = as_model_folder(folder, cache)
        assert busy.is_dir()
    assert list(cache.iterdir()) == [root]


SOME = ("hippocampus_164", "hippocampus_166", "hippocampus_033")


@pytest.mark.parametrize("tta", [False, True])
def test_a_trained_model_agrees_with_nnunet(shared, tmp_path, tta):
    agree(shared, tmp_path, tta, SOME)


@pytest.mark.slow
@pytest.mark.parametrize("tta", [False, True])
def test_a_trained_model_agrees_with_nnunet_on_every_image(shared, tmp_path, tta):
    agree(shared, tmp_path, tta, None)


def agree(shared: Path, tmp_path: Path, tta: bool, ids: tuple[str, ...] | None) -> None:
    source = shared / "models" / "nnunet_hippocampus"
    root = as_model_folder(source / "nnUNetTrainer__nnUNetPlansSmall__3d_fullres", tmp_path / "cache")
    predictor = Predictor.load(root, device="cpu", tta=tta)
    truth = source / ("predictions_tta" if tta else "predictions_no_tta")
    chosen = ids or [path.name.removesuffix(".nii.gz") for path in sorted(truth.glob("*.nii.gz"))]
    assert len(chosen) in (3, 60)
    images = shared / "data" / "Dataset004_Hippocampus" / "imagesTs"
    for id_ in chosen:
        mine = predictor.predict_files([images / f"{id_}_0000.nii.gz"]).data
        theirs = read_label(truth / f"{id_}.nii.gz").data
        assert (mine == theirs).mean() >= 0.999, id_
