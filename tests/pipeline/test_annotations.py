"""Labels as people have them, through the commands: any integers, regions, ignored voxels, and partial annotation."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the field's name

from autoseg import records
from autoseg.cli.main import main
from autoseg.errors import SettingError
from autoseg.io.discover import read_dataset
from autoseg.io.store import CaseStore
from autoseg.pipeline.objective import choose_objective
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.fingerprint import Fingerprint
from autoseg.schema.folders import ModelFolder, Workspace
from autoseg.schema.plan import Plan
from autoseg.schema.report import EvaluationReport, FoldRun, RunReport
from autoseg.schema.settings import TrainSettings
from tests.synthetic import write_manifest, write_volume

SHAPE = (14, 24, 18)
CASES, TEST_CASES = 6, 2
COMMON = ("--device", "cpu", "--quiet")

# (index of the case, label of balls (1) and tubes (2)) -> label as written
Relabel = Callable[[int, np.ndarray], np.ndarray]


def scene(index: int) -> tuple[np.ndarray, np.ndarray]:
    """A brighter ball (1) and a darker tube (2), apart, in noise."""
    rng = np.random.default_rng(index)
    z, y, x = np.indices(SHAPE)
    label = np.zeros(SHAPE, np.int16)
    centre = np.array([8, 7, 9]) + rng.uniform(-1.5, 1.5, 3)
    label[(z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < 20] = 1
    across = np.array([17, 10]) + rng.uniform(-2, 2, 2)
    label[(np.hypot(y - across[0], x - across[1]) < 3) & (z > 2) & (z < 14)] = 2
    image = np.array([0.0, 3.0, -3.0])[label] + 0.5 * rng.standard_normal(SHAPE)
    return image.astype(np.float32), label


def write_scenes(root: Path, relabel: Relabel, labels: Mapping[str, object], **more: object) -> tuple[Workspace, Path]:
    """A dataset of ``CASES`` training and ``TEST_CASES`` held-out scenes; held-out labels are relabelled too."""
    folder = root / "raw" / "Dataset011_Scenes"
    for index in range(CASES + TEST_CASES):
        image, label = scene(index)
        part = "Tr" if index < CASES else "Ts"
        write_volume(folder / f"images{part}" / f"case_{index}_0000.nii.gz", image)
        write_volume(folder / f"labels{part}" / f"case_{index}.nii.gz", relabel(index, label))
    write_manifest(folder, channels=("MRI",), labels=dict(labels), cases=CASES, ending=".nii.gz", **more)
    return Workspace(root), folder


def run(workspace: Workspace, *words: str) -> None:
    assert main([*words, "--workdir", str(workspace.root), *COMMON]) == 0


def prepare(workspace: Workspace) -> None:
    run(workspace, "plan_and_preprocess", "-d", "11", "--memory", "1GB", "--patch-size", "16,24,16", "-w", "0")


def train_and_predict(workspace: Workspace, folder: Path, *flags: str, steps: int = 32) -> dict[str, np.ndarray]:
    """Train on every case, segment the held-out ones, and score them; the written label maps by case."""
    length = ("--epochs", "2", "--iterations", str(steps // 2), "--val-iterations", "1", "--batch-size", "2")
    run(workspace, "train", "-f", "all", "-w", "0", "--no-mirror", "--lr", "0.02", *length, *flags)
    out = workspace.root / "out"
    run(workspace, "predict", "-i", str(folder / "imagesTs"), "-o", str(out))
    assert main(["evaluate", "-r", str(folder / "labelsTs"), "-p", str(out), "-w", "0", "--quiet"]) == 0
    return {path.name.split(".")[0]: read(path) for path in sorted(out.glob("*.nii.gz"))}


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def scores(workspace: Workspace) -> EvaluationReport:
    return records.load(EvaluationReport, workspace.root / "out" / "summary.json")


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def model_of(workspace: Workspace) -> ModelFolder:
    (root,) = (workspace.results / "Dataset011_Scenes").iterdir()
    return ModelFolder(root)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Predictions of the scenes with the labels 1 (tube) and 2 (ball)."""
    exchanged = np.array([0, 2, 1], dtype=np.uint8)
    workspace, folder = write_scenes(
        tmp_path_factory.mktemp("plain"), lambda _, label: exchanged[label], {"background": 0, "tube": 1, "ball": 2}
    )
    prepare(workspace)
    return train_and_predict(workspace, folder)


def test_any_integers_give_what_consecutive_ones_give(plain: dict[str, np.ndarray], tmp_path: Path) -> None:
    table = np.array([0, 255, -3], dtype=np.int16)
    labels = {"tube": -3, "background": 0, "ball": 255}
    # The network's outputs follow the integers, so the twin of these has the tube first.
    workspace, folder = write_scenes(tmp_path, lambda _, label: table[label], labels)
    prepare(workspace)
    made = train_and_predict(workspace, folder)
    assert made.keys() == plain.keys()
    back = {0: 0, 1: -3, 2: 255}
    for name, found in made.items():
        assert set(np.unique(found)) == {0, -3, 255}
        np.testing.assert_array_equal(found, np.vectorize(back.get)(plain[name]))
    for case in scores(workspace).cases:
        truth = read(folder / "labelsTs" / f"{case.id}.nii.gz")
        for row in case.classes:
            value = labels[row.label]
            assert row.dice == pytest.approx(dice(truth == value, made[case.id] == value))
            assert row.dice > 0.7


def test_overlapping_regions(tmp_path: Path) -> None:
    labels = {"background": 0, "anything": [1, 2], "tube": [2], "ball": [1]}
    workspace, folder = write_scenes(tmp_path, lambda _, label: label, labels, regions_class_order=[3, 2, 1])
    prepare(workspace)
    assert records.load(Plan, workspace.prepared("Dataset011_Scenes").plan).labels.num_heads == 3
    made = train_and_predict(workspace, folder)
    for case in scores(workspace).cases:
        truth, found = read(folder / "labelsTs" / f"{case.id}.nii.gz"), made[case.id]
        # The integers of the order come out; a part, where it is on, wins over the whole.
        assert {1, 2} <= set(np.unique(found)) <= {0, 1, 2, 3}
        assert dice(truth > 0, found > 0) > 0.7
        # In scores, a region is the union of its integers: 3 is of none.
        unions = {"anything": (1, 2), "tube": (2,), "ball": (1,)}
        expected = {name: dice(np.isin(truth, parts), np.isin(found, parts)) for name, parts in unions.items()}
        assert {row.label: row.dice for row in case.classes} == pytest.approx(expected)
        assert min(expected.values()) > 0.7


def half_ignored(index: int, label: np.ndarray) -> np.ndarray:
    """The upper half was not looked at."""
    return np.where(np.indices(SHAPE)[0] < 8, 4, label).astype(np.uint8)


def test_ignored_voxels_take_part_in_nothing(tmp_path: Path) -> None:
    labels = {"background": 0, "ball": 1, "tube": 2, "ignore": 4}
    workspace, folder = write_scenes(tmp_path, half_ignored, labels)
    prepare(workspace)
    measured = records.load(Fingerprint, workspace.prepared("Dataset011_Scenes").fingerprint)
    for index, case in enumerate(measured.cases):
        image, label = scene(index)
        seen = (label > 0) & (np.indices(SHAPE)[0] >= 8)
        assert case.intensities[0].count == seen.sum()
        assert case.intensities[0].mean == pytest.approx(float(image[seen].mean()), abs=1e-5)
        assert [item.voxels for item in case.classes] == [(seen & (label == value)).sum() for value in (1, 2)]
    made = train_and_predict(workspace, folder)
    below = np.indices(SHAPE)[0] >= 8
    for case in scores(workspace).cases:
        truth, found = scene(int(case.id[-1]))[1], made[case.id]
        assert 4 not in found
        for row, value in zip(case.classes, (1, 2), strict=True):
            assert row.dice == pytest.approx(dice((truth == value) & below, (found == value) & below))
            assert row.dice > 0.6


FIRST_WITH_TUBE = 4


def one_class_each(index: int, label: np.ndarray) -> np.ndarray:
    """Four cases have only the ball, two only the tube; the held-out ones have both."""
    kept = (1, 2) if index >= CASES else (1,) if index < FIRST_WITH_TUBE else (2,)
    return np.where(np.isin(label, kept), label, 0).astype(np.uint8)


def annotated() -> dict[str, list[str]]:
    return {f"case_{index}": ["ball"] if index < FIRST_WITH_TUBE else ["tube"] for index in range(CASES)}


LABELS = {"background": 0, "ball": 1, "tube": 2}


def mean_dice(made: Mapping[str, np.ndarray], value: int) -> float:
    return float(np.mean([dice(scene(int(name[-1]))[1] == value, found == value) for name, found in made.items()]))


def test_one_model_learns_from_cases_that_have_different_labels(tmp_path: Path) -> None:
    workspace, folder = write_scenes(tmp_path, one_class_each, LABELS, annotated=annotated())
    prepare(workspace)
    made = train_and_predict(workspace, folder)
    assert mean_dice(made, 1) > 0.75
    assert mean_dice(made, 2) > 0.75


@pytest.mark.slow
def test_without_saying_so_the_rarer_label_is_learnt_as_background(tmp_path: Path) -> None:
    """What the key is for."""
    workspace, folder = write_scenes(tmp_path, one_class_each, LABELS)
    prepare(workspace)
    assert mean_dice(train_and_predict(workspace, folder), 2) < 0.5


def test_partial_annotation_from_dataset_json_to_scores(tmp_path: Path) -> None:
    partly = {**annotated(), "case_0": ["tube", "ball"], "case_6": ["tube"]}
    workspace, folder = write_scenes(tmp_path, one_class_each, LABELS, annotated=partly)
    spec = read_dataset(folder)
    # A case with every label is an ordinary one; case_6 is held out.
    assert [case.annotated for case in spec.cases] == [None, *[("ball",)] * 3, ("tube",), ("tube",)]
    assert spec.labels.partial == (("ball",), ("tube",))
    assert spec.labels.ambiguous == ((0, 1), (0, 2))
    prepare(workspace)
    prepared = workspace.prepared("Dataset011_Scenes")
    assert records.load(DatasetSpec, prepared.dataset) == spec
    store = CaseStore(prepared.store("3d_fullres"))
    assert set(np.unique(store.open("case_0").label[:])) == {0, 1}
    # Background, or a ball that nobody looked for: 2 + 2 + 0.
    assert set(np.unique(store.open("case_4").label[:])) == {4, 2}
    assert set(np.unique(store.open("case_1").label[:])) == {5, 1}
    assert store.open("case_4").heads == (1,)
    length = ("--epochs", "1", "--iterations", "2", "--val-iterations", "1")
    run(workspace, "train", "-f", "0", "--folds", "3", "-w", "0", *length)
    report = records.load(EvaluationReport, model_of(workspace).fold("0").summary)
    rows = {(case.id, row.label): row for case in report.cases for row in case.classes}
    looked_for = {case.id: case.annotated or ("ball", "tube") for case in spec.cases}
    for (case, label), row in rows.items():
        assert (row.empty == "unannotated") == (label not in looked_for[case])
        assert np.isnan(row.dice) or row.empty != "unannotated"
    for mean in report.mean:
        assert mean.cases == sum(mean.label in looked_for[case.id] for case in report.cases)
    # Held-out references are scored by the same key.
    out = workspace.root / "out"
    run(workspace, "predict", "-i", str(folder / "imagesTs"), "-o", str(out))
    assert main(["evaluate", "-r", str(folder / "labelsTs"), "-p", str(out), "-w", "0", "--quiet"]) == 0
    assert {
        (case.id, row.label) for case in scores(workspace).cases for row in case.classes if row.empty == "unannotated"
    } == {("case_6", "ball")}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"case_0": ["liver"]}, "no label of this dataset: liver"),
        ({"case_0": []}, "must be a list of label names"),
        (["case_0"], "must map a case to the labels"),
        ({"case_99": ["ball"]}, '"case_99"'),
    ],
)
def test_a_wrong_key_is_one_sentence(
    given: object, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, _ = write_scenes(tmp_path, one_class_each, LABELS, annotated=given)
    assert main(["fingerprint", "-d", "11", "-w", "0", "--workdir", str(workspace.root), "--quiet"]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


def test_voxels_of_a_label_that_was_not_annotated_are_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, _ = write_scenes(tmp_path, lambda _, label: label, LABELS, annotated={"case_3": ["ball"]})
    assert main(["fingerprint", "-d", "11", "-w", "0", "--workdir", str(workspace.root), "--quiet"]) == 2
    shown = capsys.readouterr().err
    assert f"does not name for it: 2 ({(scene(3)[1] == 2).sum()} voxels)" in shown.replace("\n", " ")


def test_the_objective_is_recorded_and_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    workspace, _ = write_scenes(tmp_path, lambda _, label: label, LABELS)
    prepare(workspace)
    length = ("--epochs", "1", "--iterations", "2", "--val-iterations", "1", "-w", "0", "--no-validate")
    run(workspace, "train", "-f", "0", "--loss", "tversky", "--class-weights", "auto", *length)
    model = model_of(workspace)
    first = records.load(RunReport, model.run).settings
    measured = records.load(Fingerprint, workspace.prepared("Dataset011_Scenes").fingerprint)
    voxels = np.array([[item.voxels for item in case.classes] for case in measured.cases]).sum(0)
    background = CASES * np.prod(SHAPE) - voxels.sum()
    expected = np.sqrt(background / np.array([background, *voxels])).clip(max=10)
    assert (first["loss"], first["sampling"]) == ("tversky", "default")
    np.testing.assert_allclose(first["class_weights"], expected, atol=1e-3)
    # Neither the same fold nor the next needs the flags again.
    run(workspace, "train", "-f", "0", "1", *length)
    again = records.load(RunReport, model.run).settings
    assert [again[key] for key in ("loss", "sampling", "class_weights")] == [
        first[key] for key in ("loss", "sampling", "class_weights")
    ]
    signatures = [records.load(FoldRun, model.fold(name).run).signature for name in ("0", "1")]
    assert len(set(signatures)) == 2
    # Class weights of other labels are not taken for a flag that was given.
    bare = TrainSettings(workdir=str(workspace.root))
    plan = records.load(Plan, model.plan)
    fewer = replace(plan, labels=replace(plan.labels, foreground=plan.labels.foreground[:1]))
    fingerprint = workspace.prepared("Dataset011_Scenes").fingerprint
    with pytest.raises(SettingError, match=r"begun with 3 class weights, .* has 2 outputs"):
        choose_objective(bare, fewer, records.load(DatasetSpec, model.dataset), fingerprint, model)
    # Another loss must not go on from these weights.
    monkeypatch.setattr(logging.getLogger("autoseg"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("autoseg"), "level", logging.NOTSET)
    same, other = replace(bare, loss="tversky"), replace(bare, loss="dice_focal")
    for chosen, warnings in ((same, 0), (other, 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            choose_objective(chosen, plan, records.load(DatasetSpec, model.dataset), fingerprint, model)
        assert sum("trained with another loss" in message for message in caplog.messages) == warnings
    words = ["train", "-f", "0", "--loss", "dice_focal", *length, "--workdir", str(workspace.root), *COMMON]
    before = model.run.read_bytes()
    assert main(words) != 0
    # What was refused is not what the next command goes by.
    assert model.run.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--loss", "dice"), "there is no loss called 'dice'"),
        (("--class-weights", "1,2"), "background, ball, tube"),
        (("--class-weights", "many"), "write auto, or numbers like 1,5,5"),
        (("--sampling", "often"), "class_balanced"),
    ],
)
def test_a_wrong_flag_is_one_sentence(
    flags: tuple[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, _ = write_scenes(tmp_path, lambda _, label: label, LABELS)
    prepare(workspace)
    assert main(["train", *flags, "--workdir", str(workspace.root), *COMMON]) == 2
    assert said in capsys.readouterr().err
    assert json.loads((workspace.prepared("Dataset011_Scenes").plan).read_text())["labels"].get("partial") is None
