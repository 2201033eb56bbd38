"""Fine-tuning: weights go where their names say, the rest stays fresh, and what is frozen does not move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoseg.errors import SettingError, StoppedError
from autoseg.nets import build_network
from autoseg.nets.device import choose_device
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.plan import Architecture, Plan
from autoseg.training.checkpoint import load_weights
from autoseg.training.distributed import read_world
from autoseg.training.fold import FoldTask, make_kitchen, make_state, train_fold
from autoseg.training.transfer import (
    Source,
    Start,
    apply_transfer,
    channel_names,
    compare,
    describe,
    freeze_parameters,
    label_names,
    transfer_text,
)
from tests.conftest import small_plan

MakeTask = Callable[..., FoldTask]
Tensors = dict[str, torch.Tensor]
STEM = "encoder.0.0.0.weight"


def planned(channels: tuple[str, ...] = ("CT",), names: tuple[str, ...] = ("near", "far"), **more: object) -> Plan:
    """Labels 1, 2, ... of these names."""
    plan = small_plan(channels=len(channels), **more)  # type: ignore[arg-type]
    foreground = tuple(Label(name=name, values=(value,)) for value, name in enumerate(names, start=1))
    return replace(plan, channels=channels, labels=Labels(foreground=foreground))


def network_of(plan: Plan, seed: int) -> torch.nn.Module:
    item = plan.configurations[0]
    torch.manual_seed(seed)
    return build_network(
        item.architecture,
        item.topology,
        ndim=item.ndim,
        in_channels=len(plan.channels),
        num_heads=plan.labels.num_heads,
        patch_size=item.patch_size,
    )


def source_of(plan: Plan, weights: Tensors | None = None) -> Source:
    weights = weights if weights is not None else network_of(plan, seed=1).state_dict()
    return Source(
        place="model, fold 0",
        plan="model/plan.json",
        weights=weights,
        channels=channel_names(plan, plan.configurations[0]),
        labels=label_names(plan.labels),
        regions=plan.labels.has_regions,
    )


def moved(before: Plan, after: Plan) -> tuple[Tensors, Tensors, Tensors]:
    """Trained weights, fresh weights, and what the transfer makes of the fresh ones."""
    source, network = source_of(before), network_of(after, seed=2)
    fresh = {name: value.clone() for name, value in network.state_dict().items()}
    apply_transfer(network, source, plan=after, configuration=after.configurations[0])
    return dict(source.weights), fresh, network.state_dict()


def test_from_itself_every_tensor_is_equal() -> None:
    plan = planned()
    trained, _, result = moved(plan, plan)
    assert trained.keys() == result.keys()
    assert all(torch.equal(trained[name], result[name]) for name in trained)
    transfer = compare(source_of(plan), plan=plan, configuration=plan.configurations[0])
    assert {entry.how for entry in transfer.entries} == {"loaded"}
    assert transfer.share == 1


def test_rows_of_the_heads_follow_the_names_of_labels() -> None:
    before, after = planned(names=("liver", "spleen", "kidney")), planned(names=("Kidney", "tumour", "liver"))
    trained, fresh, result = moved(before, after)
    heads = [name for name in result if name.startswith("heads.")]
    assert heads
    for name in heads:
        for new, old in ((0, 0), (1, 3), (3, 1)):
            assert torch.equal(result[name][new], trained[name][old])
        assert torch.equal(result[name][2], fresh[name][2])
    others = [name for name in result if name not in heads]
    assert all(torch.equal(result[name], trained[name]) for name in others)


def test_the_integers_of_labels_do_not_matter_only_their_names() -> None:
    before = planned(names=("a", "b"))
    swapped = Labels(foreground=(Label(name="a", values=(9,)), Label(name="b", values=(4,))))
    after = replace(before, labels=swapped)
    trained, _, result = moved(before, after)
    # Heads are in the order of the integers: b (4), then a (9).
    for name in (name for name in result if name.startswith("heads.")):
        assert torch.equal(result[name][1:], trained[name][1:].flip(0))


def test_channels_of_the_same_name_are_copied_and_new_ones_share_the_sum() -> None:
    trained, _, result = moved(planned(("T1", "T2")), planned(("T2", "FLAIR", "t1")))
    assert torch.equal(result[STEM][:, 0], trained[STEM][:, 1])
    assert torch.equal(result[STEM][:, 2], trained[STEM][:, 0])
    torch.testing.assert_close(result[STEM][:, 1], (trained[STEM][:, 0] + trained[STEM][:, 1]) / 3)


def test_one_channel_becomes_three_that_answer_alike_to_a_grey_image() -> None:
    before, after = planned(("CT",)), planned(("R", "G", "B"))
    source, network = source_of(before), network_of(after, seed=2)
    apply_transfer(network, source, plan=after, configuration=after.configurations[0])
    one = network_of(before, seed=3)
    one.load_state_dict(dict(source.weights))
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        expected = one.eval()(image)[0]
        found = network.eval()(image.expand(1, 3, 16, 16, 16))[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_renamed_channels_keep_their_place_and_the_table_says_so() -> None:
    before, after = planned(("MRI", "PET")), planned(("T1", "CT"))
    trained, _, result = moved(before, after)
    assert torch.equal(result[STEM], trained[STEM])
    lost = compare(source_of(before), plan=planned(("PET", "CT", "T1")), configuration=after.configurations[0])
    assert "channels by name: PET; from all trained channels: CT, T1" in transfer_text(lost)


def test_softmax_rows_do_not_become_regions() -> None:
    regions = Labels(
        foreground=(Label(name="near", values=(1, 2)), Label(name="far", values=(2,))), regions_class_order=(1, 2)
    )
    after = replace(planned(), labels=regions)
    _, fresh, result = moved(planned(), after)
    heads = [name for name in result if name.startswith("heads.")]
    assert all(torch.equal(result[name], fresh[name]) for name in heads)
    transfer = compare(source_of(planned()), plan=after, configuration=after.configurations[0])
    assert {entry.name for entry in transfer.of("fresh")} == set(heads)
    assert "regions, which overlap" in transfer.of("fresh")[0].note


@pytest.mark.parametrize("architecture", ["unet", "resenc_unet", "unetpp", "segresnet_vae", "unetr"])
def test_channels_and_labels_of_any_architecture_are_found(architecture: str) -> None:
    more = {"architecture": architecture, "patch": 32}
    before, after = planned(("A", "B"), ("x",), **more), planned(("B", "C", "A"), ("y", "x"), **more)
    source = source_of(before)
    transfer = compare(source, plan=after, configuration=after.configurations[0])
    differing = {
        name for name, value in network_of(after, 0).state_dict().items() if value.shape != source.weights[name].shape
    }
    assert transfer.share == 1
    assert {entry.name for entry in transfer.of("adapted")} >= differing
    assert not transfer.of("fresh")
    network = network_of(after, seed=4)
    apply_transfer(network, source, plan=after, configuration=after.configurations[0])


def test_what_is_missing_is_fresh_and_what_is_left_over_unused() -> None:
    plan = planned()
    weights = dict(network_of(plan, seed=1).state_dict())
    lost = next(name for name in weights if name.startswith("decoder") and name.endswith("bias"))
    del weights[lost]
    weights["teacher.weight"] = torch.zeros(3)
    transfer = compare(source_of(plan, weights), plan=plan, configuration=plan.configurations[0])
    assert [entry.name for entry in transfer.of("fresh")] == [lost]
    assert [entry.name for entry in transfer.of("unused")] == ["teacher.weight"]
    assert 0.9 < transfer.share < 1
    assert describe(transfer)["fresh"] == {lost: "the source has no tensor of this name"}
    text = transfer_text(transfer)
    assert lost in text
    assert "teacher.weight" in text


def test_another_network_is_refused_with_the_command_that_helps() -> None:
    plan = planned()
    item = plan.configurations[0]
    wide = replace(item, topology=replace(item.topology, features=(8, 16)))
    for other in (wide, replace(item, architecture=Architecture(name="vnet"))):
        with pytest.raises(SettingError) as caught:
            compare(source_of(plan), plan=replace(plan, configurations=(other,)), configuration=other)
        assert "autoseg_move_plan -s model/plan.json -t Dataset007_Small" in caught.value.hint


def start(source: Source, *freeze: str) -> Start:
    return Start(origin="model", freeze=freeze, read=lambda: source)


def refuse() -> Source:
    raise AssertionError("the source was opened")


def task_source(task: FoldTask) -> Source:
    return source_of(task.plan)


def test_frozen_parameters_stay_and_the_others_move(make_task: MakeTask) -> None:
    source = task_source(make_task())
    task = replace(make_task(), start=start(source, "encoder"))
    state = make_state(task, make_kitchen(task, choose_device("cpu"), read_world()))
    trained = {id(parameter) for group in state.optimizer.param_groups for parameter in group["params"]}
    for name, parameter in state.network.named_parameters():
        assert torch.equal(parameter, source.weights[name])
        assert (id(parameter) in trained) == (not name.startswith("encoder."))
    train_fold(task, stop=lambda: False)
    after = load_weights(task.folder.weights)
    for name, value in after.items():
        assert torch.equal(value, source.weights[name]) == name.startswith("encoder."), name


def test_stopped_it_goes_on_bit_for_bit_without_the_source(make_task: MakeTask) -> None:
    begun = start(task_source(make_task()), "encoder.0")
    whole, parts = (replace(make_task(folder=name), start=begun) for name in ("whole", "parts"))
    train_fold(whole, stop=lambda: False)
    answers = iter([False] * 3)
    with pytest.raises(StoppedError):
        train_fold(parts, stop=lambda: next(answers, True))
    train_fold(replace(parts, start=replace(begun, read=refuse)), stop=lambda: False)
    first, second = load_weights(whole.folder.weights), load_weights(parts.folder.weights)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_start_changes_the_signature_and_no_start_does_not(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task()
    begun = replace(task, start=start(task_source(task)))
    frozen = replace(task, start=start(task_source(task), "encoder"))
    assert len({task.signature, begun.signature, frozen.signature}) == 3


def test_names_to_freeze() -> None:
    plan = planned()
    network = network_of(plan, seed=0)
    expected = sum(value.numel() for name, value in network.named_parameters() if name.startswith("encoder.0."))
    assert freeze_parameters(network, ("encoder.0.*",)) == expected
    with pytest.raises(SettingError, match="--freeze encodr") as caught:
        freeze_parameters(network, ("encodr",))
    assert "encoder, up, decoder, heads" in caught.value.hint
    with pytest.raises(SettingError, match="nothing to train"):
        freeze_parameters(network, ("*",))
