"""A plan on another dataset: what must stay stays, what must change changes, what cannot fit is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg import records
from autoseg.cli.main import main
from autoseg.errors import SettingError
from autoseg.io.images import write_image, write_label
from autoseg.io.volume import Geometry, Volume
from autoseg.nets import build_network
from autoseg.pipeline.move_plan import fit_plan, move_plan
from autoseg.schema.dataset import DatasetSpec, Label, Labels
from autoseg.schema.fingerprint import CaseFingerprint, Fingerprint
from autoseg.schema.plan import Normalization, Plan
from autoseg.schema.tools import MovePlanSettings
from tests.conftest import small_plan


def dataset(folder: Path, *, labels: int = 1, channels: int = 1, spacing: float = 1.0, size: int = 20) -> Path:
    names = {"background": 0, **{f"label{value}": value for value in range(1, labels + 1)}}
    described = {"channel_names": {str(index): "MRI" for index in range(channels)}, "labels": names}
    geometry = Geometry.upright((spacing, 1.0, 1.0))
    for seed, name in enumerate("abc"):
        rng = np.random.default_rng(seed)
        for channel in range(channels):
            data = rng.uniform(1, 9, (1, size, 24, 22)).astype(np.float32)
            write_image(folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz", Volume(data, geometry))
        label = np.zeros((size, 24, 22), np.uint8)
        for value in range(1, labels + 1):
            label[2 * value : 2 * value + 2, 4:12, 4:12] = value
        write_label(folder / "labelsTr" / f"{name}.nii.gz", label, geometry)
    (folder / "dataset.json").write_text(json.dumps({**described, "numTraining": 3, "file_ending": ".nii.gz"}))
    return folder


def spec(*, channels: int = 1, labels: int = 3) -> DatasetSpec:
    foreground = tuple(Label(name=f"l{value}", values=(value,)) for value in range(1, labels + 1))
    names = tuple(f"channel {index}" for index in range(channels))
    return DatasetSpec(
        name="Dataset009_New", channels=names, labels=Labels(foreground=foreground), file_ending=".nii.gz", cases=()
    )


def measured(*shapes: tuple[int, ...], spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Fingerprint:
    cases = tuple(
        CaseFingerprint(id=str(number), shape=shape, cropped_shape=shape, spacing=spacing, classes=(), intensities=())
        for number, shape in enumerate(shapes)
    )
    return Fingerprint(dataset="Dataset009_New", content_hash="x", cases=cases, intensities=())


def test_all_that_weights_depend_on_stays() -> None:
    source = small_plan(spacing=2.0)
    before = source.configurations[0]
    moved = fit_plan(source, spec(), measured((40, 60, 80), spacing=(1.0, 2.0, 4.0)))
    after = moved.plan.configurations[0]
    assert replace(after, median_shape=before.median_shape) == before
    assert after.median_shape == (20, 60, 160)
    assert (moved.plan.dataset, moved.plan.labels.num_heads) == ("Dataset009_New", 4)
    assert "outputs of the network: 3 -> 4" in moved.changes
    assert moved.doubts == ()


def test_what_cannot_fit_is_refused_with_every_reason() -> None:
    with pytest.raises(SettingError) as caught:
        fit_plan(replace(small_plan(), transpose=(1, 0, 2)), spec(), measured((1, 40, 40)))
    assert "3d_fullres is for volumes, its images are pictures" in caught.value.message
    assert "its images are pictures, and the plan reorders the axes of volumes" in caught.value.message


def test_with_other_channels_those_of_a_known_name_keep_their_normalisation() -> None:
    source = small_plan()
    known = Normalization(scheme="rescale_0_1")
    item = replace(source.configurations[0], normalization=(known,))
    source = replace(source, channels=("T1",), configurations=(item,))
    moved = fit_plan(source, replace(spec(), channels=("PET", "t1", "noNorm")), measured((30, 40, 50)))
    own = (Normalization(scheme="zscore"), known, Normalization(scheme="none"))
    assert moved.plan.configurations[0].normalization == own
    assert moved.plan.channels == ("PET", "t1", "noNorm")
    assert any("no channel PET, noNorm" in doubt for doubt in moved.doubts)


def test_a_cascade_of_nnunet_is_trained_here_as_cascades_are_here() -> None:
    source = small_plan()
    item = source.configurations[0]
    second = replace(item, name="second", previous_stage=item.name, previous_as_nnunet=True)
    moved = fit_plan(replace(source, configurations=(item, second)), spec(), measured((30, 40, 50)))
    assert moved.plan.configuration("second").previous_stage == item.name
    assert not moved.plan.configuration("second").previous_as_nnunet


def test_as_many_channels_go_by_name_where_any_name_is_shared_and_else_by_place() -> None:
    source = small_plan(channels=2)
    first, second = Normalization(scheme="rescale_0_1"), Normalization(scheme="rgb_0_1")
    item = replace(source.configurations[0], normalization=(first, second))
    source = replace(source, channels=("T1", "T2"), configurations=(item,))
    turned = fit_plan(source, replace(spec(), channels=("t2", "T1")), measured((30, 40, 50)))
    assert turned.plan.configurations[0].normalization == (second, first)
    assert turned.doubts == ()
    partly = fit_plan(source, replace(spec(), channels=("noNorm", "T1")), measured((30, 40, 50)))
    assert partly.plan.configurations[0].normalization == (Normalization(scheme="none"), first)
    assert any("no channel noNorm" in doubt for doubt in partly.doubts)
    others = fit_plan(source, replace(spec(), channels=("PET", "noNorm")), measured((30, 40, 50)))
    assert others.plan.configurations[0].normalization == (first, second)


def test_a_plan_of_pictures_serves_the_slices_of_volumes() -> None:
    moved = fit_plan(small_plan(ndim=2), spec(), measured((30, 40, 50)))
    assert moved.plan.configurations[0].median_shape == (40, 50)


def test_doubts_are_told() -> None:
    source = small_plan()
    ct = Normalization(scheme="ct", mean=1.0, std=2.0)
    source = replace(source, channels=("CT",), configurations=(replace(source.configurations[0], normalization=(ct,)),))
    moved = fit_plan(source, spec(), measured((30, 40, 50), spacing=(9.0, 1.0, 1.0)))
    assert moved.plan.configurations[0].normalization == (ct,)
    for words in ("was CT and is channel 0", "scaled by those of Dataset007_Small", "mostly 9x1x1 mm"):
        assert any(words in doubt for doubt in moved.doubts)


def test_the_command_makes_networks_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work"
    first = dataset(work / "raw" / "Dataset001_A")
    dataset(work / "raw" / "Dataset002_B", labels=3, spacing=2.0, size=16)
    common = ["--workdir", str(work), "--workers", "0", "--device", "cpu"]
    assert main(["plan", "-d", str(first), "--memory", "2GB", *common]) == 0
    assert main(["move_plan", "-s", "1", "-t", "2", "--workdir", str(work)]) == 0
    source, moved = (
        records.load(Plan, work / "preprocessed" / name / "plan.json") for name in ("Dataset001_A", "Dataset002_B")
    )
    assert moved.labels.names == ("label1", "label2", "label3")
    shapes = []
    for plan in (source, moved):
        item = plan.configuration(plan.default_configuration)
        network = build_network(
            item.architecture,
            item.topology,
            ndim=item.ndim,
            in_channels=len(plan.channels),
            num_heads=plan.labels.num_heads,
            patch_size=item.patch_size,
        )
        assert sum(value.numel() for value in network.parameters()) == item.cost.parameters
        shapes.append([tuple(value.shape) for value in network.parameters()])
    different = [pair for pair in zip(*shapes, strict=True) if pair[0] != pair[1]]
    assert different
    assert all(pair[0][0] == 2 and pair[1][0] == 4 for pair in different)
    # Twice is once, and another plan is not lost.
    assert main(["move_plan", "-s", "1", "-t", "2", "--workdir", str(work)]) == 0
    text = (work / "preprocessed" / "Dataset002_B" / "plan.json").read_text()
    with pytest.raises(SettingError, match="has a plan already"):
        move_plan(
            MovePlanSettings(workdir=str(work), source="1", target="2", configurations=(source.default_configuration,))
        )
    capsys.readouterr()
    # Planning keeps it, and preprocessing takes it.
    assert main(["plan_and_preprocess", "-d", "2", *common]) == 0
    assert "was edited by hand: it is kept" in capsys.readouterr().err
    assert (work / "preprocessed" / "Dataset002_B" / "plan.json").read_text() == text


def test_a_plan_file_and_a_folder_are_sources_too(tmp_path: Path) -> None:
    work = tmp_path / "work"
    target = dataset(work / "raw" / "Dataset002_B", labels=2)
    records.save(tmp_path / "model" / "plan.json", replace(small_plan(), memory_bytes=10**9))
    for source in (tmp_path / "model", tmp_path / "model" / "plan.json", tmp_path / "model" / "fold_0"):
        moved = move_plan(MovePlanSettings(workdir=str(work), source=str(source), target=str(target)))
        assert moved.plan.dataset == "Dataset002_B"
