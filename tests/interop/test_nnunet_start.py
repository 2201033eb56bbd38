"""Fine-tuning from models of nnU-Net: a results folder, a checkpoint, and the real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autoseg import records
from autoseg.errors import RecordError
from autoseg.interop.nnunet_model import as_model_folder
from autoseg.nets import build_network
from autoseg.pipeline.initial import read_source
from autoseg.pipeline.move_plan import move_plan
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Plan
from autoseg.schema.tools import MovePlanSettings
from autoseg.training.transfer import apply_transfer, compare
from tests.interop.conftest import write_peer_cascade
from tests.pipeline.test_move_plan import dataset


def started(source, plan: Plan) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A network of the plan before and after the transfer."""
    item = plan.configurations[0]
    network = build_network(
        item.architecture,
        item.topology,
        ndim=item.ndim,
        in_channels=len(plan.channels),
        num_heads=plan.labels.num_heads,
        patch_size=item.patch_size,
    )
    before = {name: value.clone() for name, value in network.state_dict().items()}
    apply_transfer(network, source, plan=plan, configuration=item)
    return before, network.state_dict()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_model_of_nnunet_starts_a_training(write_peer, tmp_path: Path, checkpoint: bool) -> None:
    peer = write_peer(tmp_path / "peer" / "nnUNetTrainer__nnUNetPlans__3d_fullres", folds=("0", "1"))
    path = peer / "fold_1" / "checkpoint_final.pth" if checkpoint else peer / "fold_1"
    source = read_source(path, workdir=str(tmp_path / "work"))
    assert source.place.endswith("fold 1")
    folder = ModelFolder(as_model_folder(peer, tmp_path / "cache"))
    plan = records.load(Plan, folder.plan)
    trained = load_file(folder.fold(1).weights)
    _, same = started(source, plan)
    assert all(torch.equal(same[name], trained[name]) for name in trained)
    names = [*plan.labels.names[::-1], "new"]
    labels = Labels(foreground=tuple(Label(name=name, values=(value,)) for value, name in enumerate(names, start=1)))
    fresh, moved = started(source, replace(plan, labels=labels))
    count = len(plan.labels.names)
    for name in (name for name in moved if name.startswith("heads.")):
        assert torch.equal(moved[name][1 : count + 1], trained[name][1:].flip(0))
        assert torch.equal(moved[name][count + 1], fresh[name][count + 1])


@pytest.mark.parametrize("named", ["", "fold_1", "fold_1/checkpoint_final.pth", "plans.json", "plan.json"])
def test_a_dataset_gets_the_plan_of_a_model_of_nnunet(write_peer, tmp_path: Path, named: str) -> None:
    peer = write_peer(tmp_path / "peer" / "nnUNetTrainer__nnUNetPlans__3d_fullres", folds=("0", "1"))
    work = tmp_path / "work"
    target = dataset(work / "raw" / "Dataset002_B", labels=3)
    moved = move_plan(MovePlanSettings(workdir=str(work), source=str(peer / named), target=str(target))).plan
    item = moved.configurations[0]
    assert compare(read_source(peer, workdir=str(work)), plan=moved, configuration=item).share > 0.95
    (folder,) = (work / "cache" / "nnunet").iterdir()
    given = records.load(Plan, folder / "plan.json").configurations[0]
    kept = ("spacing", "patch_size", "batch_size", "topology", "architecture", "resampling", "normalization")
    assert [getattr(item, name) for name in kept] == [getattr(given, name) for name in kept]
    assert moved.labels.names == ("label1", "label2", "label3")
    # What nnU-Net's files do not say is this machine's.
    assert moved.memory_bytes > 0
    assert item.cost.flops > 0
    network = build_network(
        item.architecture, item.topology, ndim=3, in_channels=1, num_heads=4, patch_size=item.patch_size
    )
    assert item.cost.parameters == sum(value.numel() for value in network.parameters())
    assert records.load(Plan, work / "preprocessed" / "Dataset002_B" / "plan.json") == moved


def test_a_cascade_of_nnunet_gives_the_plan_of_both_stages(tmp_path: Path) -> None:
    second = write_peer_cascade(tmp_path / "results" / "Dataset050_Peer")
    work = tmp_path / "work"
    target = str(dataset(work / "raw" / "Dataset002_B", labels=2))
    for source, chosen in ((second, ()), (second.parent, ("3d_lowres",))):
        settings = MovePlanSettings(
            workdir=str(work), source=str(source), target=target, configurations=chosen, force=True
        )
        assert move_plan(settings).plan.names == (chosen or ("3d_lowres", "3d_cascade_fullres"))


def test_a_file_that_is_not_there_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"nowhere/plan\.json does not exist"):
        move_plan(MovePlanSettings(workdir=str(tmp_path), source=str(tmp_path / "nowhere" / "plan.json"), target="2"))


def test_the_real_model_starts_a_training_of_other_labels(shared: Path, tmp_path: Path) -> None:
    path = shared / "models" / "nnunet_hippocampus" / "nnUNetTrainer__nnUNetPlansSmall__3d_fullres"
    source = read_source(path / "fold_0" / "checkpoint_final.pth", workdir=str(tmp_path))
    (plan_path,) = (tmp_path / "cache" / "nnunet").glob("*/plan.json")
    plan = records.load(Plan, plan_path)
    posterior = Labels(foreground=(Label(name="posterior", values=(7,)),))
    _, moved = started(source, replace(plan, channels=(*source.channels, "another"), labels=posterior))
    assert torch.equal(moved["heads.0.weight"][1], source.weights["heads.0.weight"][2])
    stem = "encoder.0.0.0.weight"
    # The channel of the same name is copied; the new one has half of it.
    assert torch.equal(moved[stem][:, :1], source.weights[stem])
    torch.testing.assert_close(moved[stem][:, 1:], source.weights[stem] / 2)
