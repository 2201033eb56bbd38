"""Fine-tuning from models of nnU-Net: a results folder, a checkpoint, and the real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autoseg import records
from autoseg.interop.nnunet_model import as_model_folder
from autoseg.nets import build_network
from autoseg.pipeline.initial import read_source
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Plan
from autoseg.training.transfer import apply_transfer


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
