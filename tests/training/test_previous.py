"""The second stage of a cascade sees the first one's segmentation, moved exactly as the image is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from autoseg.augment import Policy, make_policy
from autoseg.io.label_maps import LabelMaps
from autoseg.io.store import CaseStore
from autoseg.nets.label_channels import add_label_channels, label_groups
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.folders import FoldFolder
from autoseg.training.data import PatchLoader, Sample
from autoseg.training.distributed import World
from autoseg.training.fold import FoldTask, make_kitchen, patch_source, train_fold
from autoseg.training.previous import PreviousStage, previous_as_channels
from autoseg.training.step import make_batch, network_batch
from tests.training.conftest import IDS, SHAPE, ball_case
from tests.training.test_fold import never, same_weights, stop_after

MakeTask = Callable[..., FoldTask]
ALONE = World(size=1, rank=0, local_rank=0)


def coarse_guess(seed: int) -> np.ndarray:
    """What a first stage might say of a case: its label, shifted and blocky."""
    label = ball_case(seed)[1][0][::2, ::2, ::2].repeat(2, 0).repeat(2, 1).repeat(2, 2)
    return np.roll(label, (1, -1, 2), axis=(0, 1, 2))[: SHAPE[0], : SHAPE[1], : SHAPE[2]]


@pytest.fixture
def make_second(make_task: MakeTask, tmp_path: Path) -> MakeTask:
    maps = LabelMaps(tmp_path / "previous")
    maps.begin("guesses")
    for seed, name in enumerate(IDS):
        maps.write(name, coarse_guess(seed), (16, 16, 16))
    stage = PreviousStage(files={name: maps.path(name) for name in IDS}, identity="guesses")

    def make(**settings: object) -> FoldTask:
        task = make_task(**settings)
        configuration = replace(task.configuration, previous_stage="3d_lowres")
        plan = replace(task.plan, configurations=(configuration,))
        return replace(task, plan=plan, configuration=configuration, previous=stage)

    return make


def samples_of(task: FoldTask, policy: Policy | None, *, steps: int) -> list[list[Sample]]:
    kitchen = make_kitchen(task, torch.device("cpu"), ALONE)
    loader = PatchLoader(replace(patch_source(task, kitchen, ALONE), policy=policy))
    return [loader.generate_train_batch()["samples"] for _ in range(steps)]


def moved(volume: np.ndarray, sample: Sample, patch: tuple[int, ...], *, beyond: float) -> np.ndarray:
    """A volume as read, turned, zoomed, cut and mirrored by scipy as the sample says."""
    spatial = sample.spatial
    assert spatial is not None
    offsets = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in patch), indexing="ij"))
    middle = np.array(sample.centre)
    places = np.tensordot(spatial.matrix, offsets, axes=1) + middle[:, None, None, None]
    result = ndimage.map_coordinates(volume.astype(float), places, order=1, mode="grid-constant", cval=beyond)
    return np.flip(result, spatial.flips)


def test_input_channels_are_the_stored_segmentation_moved_as_the_image(make_second: MakeTask) -> None:
    task = make_second()
    patch = task.configuration.patch_size
    policy = replace(make_policy(task.configuration, mirror_axes=(0, 1, 2)), p_rotation=1.0, p_scale=1.0)
    kitchen = replace(make_kitchen(task, torch.device("cpu"), ALONE), policy=None)
    compared = 0
    for samples in samples_of(task, policy, steps=3):
        image, target = make_batch(samples, kitchen, step=0)
        inputs, label = previous_as_channels(image, target, kitchen.previous, [])
        assert inputs.shape == (2, 3, *patch)
        assert label.shape == (2, 1, *patch)
        for index, sample in enumerate(samples):
            np.testing.assert_allclose(
                inputs[index, 0].numpy(), moved(sample.image[0], sample, patch, beyond=0.0), atol=2e-4
            )
            for channel, source in ((0, label[index, 0].numpy()), (1, None)):
                shares = np.stack(
                    [
                        moved(sample.label[channel].clip(0) == value, sample, patch, beyond=float(value == 0))
                        for value in (0, 1, 2)
                    ]
                )
                ranked = np.sort(shares, axis=0)
                clear = ranked[-1] - ranked[-2] > 1e-3
                winners = shares.argmax(0)
                if source is not None:
                    np.testing.assert_array_equal(source[clear], winners[clear])
                    continue
                for value in (1, 2):
                    shown = inputs[index, value].numpy()
                    assert set(np.unique(shown)) <= {0.0, 1.0}
                    np.testing.assert_array_equal(shown[clear] == 1, winners[clear] == value)
                    compared += int((winners[clear] == value).sum())
    assert compared > 500


def test_samples_hold_what_is_stored_and_background_beyond_the_case(make_second: MakeTask) -> None:
    task = make_second()
    kitchen = replace(make_kitchen(task, torch.device("cpu"), ALONE), policy=None)
    source = replace(patch_source(task, kitchen, ALONE), ids=IDS[1:2], policy=None, patch_size=(24, 24, 24))
    (sample, _) = PatchLoader(source).generate_train_batch()["samples"]
    # The patch is larger than the case, which is in its middle.
    inside = tuple(slice((24 - n) // 2, (24 - n) // 2 + n) for n in SHAPE)
    np.testing.assert_array_equal(sample.label[1][inside], coarse_guess(1))
    np.testing.assert_array_equal(sample.label[0][inside], ball_case(1)[1][0])
    image, target = network_batch([sample], replace(kitchen, patch_size=(24, 24, 24)), step=0)
    expected = np.zeros((2, 24, 24, 24))
    for channel, value in enumerate((1, 2)):
        expected[(channel, *inside)] = coarse_guess(1) == value
    np.testing.assert_array_equal(image[0, 1:].numpy(), expected)
    assert target.shape == (1, 1, 24, 24, 24)


def test_faults_come_with_augmentation_and_repeat_exactly(make_second: MakeTask) -> None:
    task = make_second()
    kitchen = make_kitchen(task, torch.device("cpu"), ALONE)
    plain = replace(kitchen, policy=None)
    differing = 0
    for step, samples in enumerate(samples_of(task, None, steps=30)):
        first, again = (network_batch(samples, kitchen, step=step)[0][:, 1:] for _ in range(2))
        assert torch.equal(first, again)
        differing += not torch.equal(first, network_batch(samples, plain, step=step)[0][:, 1:])
    # One in three steps has no fault in either of its two samples.
    assert 10 < differing < 28


def test_regions_have_one_channel_each() -> None:
    regions = Labels(
        foreground=(Label(name="whole", values=(1, 2, 4)), Label(name="core", values=(2, 4))),
        regions_class_order=(1, 2),
    )
    assert label_groups(regions) == ((1, 2, 3), (2, 3))
    label = torch.tensor([0, 1, 2, 3]).reshape(1, 1, 4, 1, 1)
    joined = add_label_channels(torch.zeros(1, 1, 4, 1, 1), label, label_groups(regions))
    assert joined.flatten(2)[0].tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 1, 1]]


def test_stopped_in_the_middle_the_second_stage_goes_on_bit_for_bit(make_second: MakeTask) -> None:
    whole, parts = make_second(folder="whole"), make_second(folder="parts")
    train_fold(whole, stop=never)
    with pytest.raises(Exception, match="after 3 steps"):
        train_fold(parts, stop=stop_after(3))
    train_fold(parts, stop=never)
    assert same_weights(whole, parts)


def test_it_learns_from_the_segmentation_where_the_image_says_nothing(
    make_second: MakeTask, ball_store: CaseStore, tmp_path: Path
) -> None:
    noise = CaseStore(tmp_path / "noise")
    noise.begin("noise")
    for seed, name in enumerate(IDS):
        image, label = np.random.default_rng(seed).normal(size=(1, *SHAPE)), ball_case(seed)[1]
        locations = {head: np.argwhere(label[0] == head + 1) for head in (0, 1)}
        noise.write_case(name, image, label, {}, locations, (16, 16, 16))
    settings = {"epochs": 1, "iterations": 30, "val_iterations": 4, "lr": 0.02}
    scores = {}
    for kind in ("with", "without"):
        task = replace(make_second(folder=kind, **settings), store=noise.root)
        if kind == "without":
            alone = replace(task.configuration, previous_stage=None)
            task = replace(task, configuration=alone, previous=None)
        train_fold(task, stop=never)
        last = FoldFolder(task.folder.root).log.read_text().splitlines()[-1]
        scores[kind] = float(last.split('"mean_dice": ')[1].split(",")[0])
    assert scores["with"] > scores["without"] + 0.2


def test_another_first_stage_is_another_training(make_second: MakeTask) -> None:
    task = make_second()
    assert task.previous is not None
    other = replace(task, previous=replace(task.previous, identity="others"))
    assert task.signature != other.signature


def test_maps_of_another_first_stage_are_made_again(tmp_path: Path) -> None:
    maps = LabelMaps(tmp_path)
    maps.begin("one")
    maps.write("a", np.ones((3, 4, 5), np.int16), (2, 2, 2))
    (tmp_path / ".b.labels.b2nd.x.partial.b2nd").write_bytes(b"half")
    maps.begin("one")
    assert maps.missing(["b", "a"], "one") == ("b",)
    assert maps.missing(["b", "a"], "two") == ("a", "b")
    maps.begin("two")
    assert maps.missing(["b", "a"], "two") == ("a", "b")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
