"""The choice between models, ensembles and post-processing, and prediction that follows it."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from scipy import ndimage

from autoseg import records
from autoseg.cli.main import main
from autoseg.errors import DatasetError, ModelFolderError, ResourceError, SettingError
from autoseg.inference.joint import JointPredictor
from autoseg.inference.predictor import Predictor
from autoseg.io.images import read_channels, read_label, write_image, write_label
from autoseg.io.label_maps import open_label_map
from autoseg.io.volume import Geometry, Volume
from autoseg.pipeline.choose import choose_model
from autoseg.pipeline.predict import predict
from autoseg.pipeline.select import select
from autoseg.schema.afterwards import SelectSettings
from autoseg.schema.dataset import CaseFiles, CurrentDataset, DatasetSpec, Label, Labels
from autoseg.schema.folders import ModelFolder, SelectionFolder, Workspace
from autoseg.schema.plan import Plan
from autoseg.schema.postprocessing import KEEP_LARGEST, REMOVE_SMALL, PostProcessing
from autoseg.schema.report import PredictionRun, RunReport
from autoseg.schema.selection import Selection
from autoseg.schema.settings import PredictSettings
from autoseg.schema.splits import Fold, Splits
from tests.synthetic import write_dataset

NAME = "Dataset007_Small"
SHAPE = (12, 20, 18)
GEOMETRY = Geometry.upright((2.0, 1.0, 1.0))
IDS = tuple(f"case_{index}" for index in range(8))
SPLITS = Splits(seed=0, folds=(Fold(train=IDS[4:], val=IDS[:4]), Fold(train=IDS[:4], val=IDS[4:])))


class Room:
    """A work directory with images, labels and models whose networks are random."""

    def __init__(self, root: Path, write_model: Callable[..., ModelFolder]) -> None:
        self.workspace, self.raw, self.write_model = Workspace(root / "work"), root / "raw", write_model
        self.folder = self.workspace.selection(NAME)
        self.cases = tuple(
            CaseFiles(id=id_, images=(str(self.raw / f"{id_}_0000.nii.gz"),), label=str(self.raw / f"{id_}.nii.gz"))
            for id_ in IDS
        )
        for seed, case in enumerate(self.cases):
            data = np.random.default_rng(seed).uniform(1, 9, (1, *SHAPE)).astype(np.float32)
            write_image(case.images[0], Volume(data, GEOMETRY))
            write_label(case.label, truth(seed), GEOMETRY)
        records.save(self.workspace.current, CurrentDataset(dataset=NAME))
        (self.workspace.preprocessed / NAME).mkdir(parents=True)

    def model(self, name: str, *, folds: tuple[str, ...] = ("0", "1"), **plan: object) -> ModelFolder:
        model = self.write_model(self.folder.root / name, folds=folds, **plan)
        spec = records.load(DatasetSpec, model.dataset)
        records.save(model.dataset, replace(spec, cases=self.cases))
        records.save(model.splits, SPLITS)
        return model

    def segmented(self, model: ModelFolder, change: Callable[[int, np.ndarray], np.ndarray]) -> None:
        """Validation segmentations: the truth of each case, changed."""
        for seed, id_ in enumerate(IDS):
            fold = model.fold("0" if id_ in SPLITS.folds[0].val else "1")
            write_label(fold.validation / f"{id_}.nii.gz", change(seed, truth(seed)), GEOMETRY)

    def select(self, **fields: object) -> Selection:
        return select(SelectSettings(workdir=str(self.workspace.root), device="cpu", workers=0, **fields))

    def predict(self, outputs: str, **fields: object) -> dict[str, np.ndarray]:
        settings = PredictSettings(
            inputs=str(self.raw / "case_0_0000.nii.gz"),
            outputs=str(self.raw.parent / outputs),
            workdir=str(self.workspace.root),
            device="cpu",
        )
        report = predict(replace(settings, **fields))
        return {path.name: read_label(path).data[0] for path in (*report.written, *report.skipped)}


@pytest.fixture
def room(tmp_path: Path, write_model: Callable[..., ModelFolder]) -> Room:
    return Room(tmp_path, write_model)


def truth(seed: int) -> np.ndarray:
    """A box of label 5 beside two boxes of label 9, which is in two pieces by nature."""
    rng = np.random.default_rng(100 + seed)
    label = np.zeros(SHAPE, dtype=np.uint8)
    z, y, x = rng.integers(1, 3, 3)
    label[z : z + 6, y : y + 8, x : x + 6] = 5
    label[z : z + 5, 13:18, 10:13] = 9
    label[z : z + 4, 13:18, 14:17] = 9
    return label


def with_islands(seed: int, label: np.ndarray) -> np.ndarray:
    """Two small islands of label 5 far away, and the border of label 9 shaved."""
    made = label.copy()
    made[10, 1 : 2 + seed % 2, 15] = 5
    made[11, 10, 16] = 5
    made[:, 17][made[:, 17] == 9] = 0
    return made


def dice(truth: np.ndarray, guess: np.ndarray) -> float:
    """The mean over both labels."""
    scores = []
    for value in (5, 9):
        first, second = truth == value, guess == value
        scores.append(2 * (first & second).sum() / (first.sum() + second.sum()))
    return float(np.mean(scores))


def test_post_processing_is_chosen_where_it_helps_and_only_there(room: Room) -> None:
    room.segmented(room.model("unet_3d_fullres"), with_islands)
    selection = room.select()
    (step,) = selection.postprocessing
    assert (step.rule, step.label, step.values) == (REMOVE_SMALL, "near", (5,))
    (candidate,) = selection.candidates
    raw = [dice(truth(seed), with_islands(seed, truth(seed))) for seed in range(8)]
    clean = []
    for seed in range(8):
        guess = with_islands(seed, truth(seed))
        numbered, count = ndimage.label(guess == 5, structure=np.ones((3, 3, 3)))
        for number in range(1, count + 1):
            if (numbered == number).sum() * 2.0 < step.minimum_mm3:
                guess[numbered == number] = 0
        clean.append(dice(truth(seed), guess))
    assert candidate.dice.mean == pytest.approx(np.mean(raw))
    assert candidate.dice_after.mean == pytest.approx(np.mean(clean))
    assert candidate.dice.low < np.mean(raw) < candidate.dice.high
    # Keeping one component of label 9 would take half of it away; the foreground is in pieces too.
    refused = {(trial.step.label, trial.step.rule): trial.adopted for trial in candidate.trials}
    assert refused["foreground", KEEP_LARGEST] is False
    assert records.load(Selection, room.folder.file) == selection
    model = room.folder.model("unet_3d_fullres")
    assert records.load(PostProcessing, model.postprocessing).steps == (step,)


def test_good_segmentations_are_left_as_they_are(room: Room) -> None:
    model = room.model("unet_3d_fullres")
    room.segmented(model, lambda seed, label: label)
    records.save(model.postprocessing, PostProcessing())
    selection = room.select()
    assert selection.postprocessing == ()
    assert selection.candidates[0].dice.mean == 1
    assert not model.postprocessing.exists()


def test_the_better_model_wins_and_missing_segmentations_are_made(room: Room) -> None:
    room.segmented(room.model("good_3d_fullres"), with_islands)
    poor = room.model("poor_3d_fullres", spacing=1.5)
    selection = room.select(ensembles=False)
    assert selection.models == ("good_3d_fullres",)
    assert [one.name for one in selection.candidates] == ["good_3d_fullres", "poor_3d_fullres"]
    assert selection.candidates[1].difference.high < 0
    # Only the other one has a summary, by which models are compared where nothing was selected.
    assert choose_model(PredictSettings(workdir=str(room.workspace.root))).root.name == "good_3d_fullres"
    assert not list((room.folder.root / "selection").glob("*+*"))
    predictor = Predictor.load(poor.root, folds=("1",), device="cpu")
    expected = predictor.predict(read_channels([Path(room.cases[5].images[0])]))
    np.testing.assert_array_equal(read_label(poor.fold(1).validation / "case_5.nii.gz").data[0], expected)


def pair_decisions(room: Room, case: CaseFiles, fold: str, *models: ModelFolder) -> tuple[np.ndarray, np.ndarray]:
    """The decision of the mean probabilities, and where it is beyond doubt."""
    volume = read_channels([Path(case.images[0])])
    found = [
        Predictor.load(model.root, folds=(fold,), device="cpu").segment(volume, probabilities=True).probabilities
        for model in models
    ]
    mean = np.mean([one.astype(np.float64) for one in found], axis=0)
    ordered = np.sort(mean, axis=0)
    return np.array([0, 5, 9])[mean.argmax(axis=0)], ordered[-1] - ordered[-2] > 5e-3


def test_two_models_together_hold_out_what_each_held_out_and_are_followed(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = room.model("a_3d_fullres", spacing=1.3), room.model("b_3d_fullres", spacing=1.8)
    room.select()
    names = ("a_3d_fullres", "b_3d_fullres")
    place = room.folder.segmentations(names)
    for case, fold in ((room.cases[1], "0"), (room.cases[6], "1")):
        decided, clear = pair_decisions(room, case, fold, one, two)
        assert clear.mean() > 0.8
        np.testing.assert_array_equal(read_label(place / f"{case.id}.nii.gz").data[0][clear], decided[clear])

    # The truth is now what both say together: nothing is predicted again, but all scores are.
    before = {path: path.stat().st_mtime_ns for path in place.glob("*.nii.gz")}
    for case in room.cases:
        write_label(case.label, read_label(place / f"{case.id}.nii.gz").data[0], GEOMETRY)
    selection = room.select()
    assert {path: path.stat().st_mtime_ns for path in place.glob("*.nii.gz")} == before
    assert selection.models == names
    assert selection.candidates[0].dice.mean == 1
    assert "alone has -" in selection.verdict

    with caplog.at_level(logging.INFO, logger="autoseg"):
        logging.getLogger("autoseg").propagate = True
        made = room.predict("out")["case_0.nii.gz"]
    assert "a_3d_fullres + b_3d_fullres" in caplog.text
    joint = JointPredictor.together([Predictor.load(model.root, device="cpu") for model in (one, two)])
    np.testing.assert_array_equal(made, joint.segment(read_channels([Path(room.cases[0].images[0])])).labels)
    run = records.load(PredictionRun, room.raw.parent / "out" / "predict.json")
    assert sorted(run.weights) == [f"{name}/{fold}" for name in names for fold in "01"]
    # A name is stronger than the selection.
    alone = room.predict("alone", model=str(two.root))["case_0.nii.gz"]
    expected = Predictor.load(two.root, device="cpu").predict(read_channels([Path(room.cases[0].images[0])]))
    np.testing.assert_array_equal(alone, expected)
    assert not np.array_equal(alone, made)


def test_what_is_missing_is_done_again_and_nothing_else(room: Room) -> None:
    names = ("a_3d_fullres", "b_3d_fullres")
    models = [room.model(name, spacing=spacing) for name, spacing in zip(names, (1.0, 1.6), strict=True)]
    first = room.select()
    place = room.folder.segmentations(names)
    files = sorted([*place.glob("*.nii.gz"), *room.folder.scores(names, "").parent.glob("*.json")])
    assert len(files) == 2 * len(IDS)
    (place / "case_3.nii.gz").unlink()
    room.folder.scores(names, "case_5").write_text("{", encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in files if path.exists()}
    assert room.select() == first
    changed = {path for path in files if path.stat().st_mtime_ns != before.get(path)}
    scores = {room.folder.scores(names, case) for case in ("case_3", "case_5")}
    assert changed == {place / "case_3.nii.gz", *scores}
    # New weights: what the old ones made is out of date.
    weights = models[1].fold(1).weights
    os.utime(weights, (weights.stat().st_mtime + 1e6,) * 2)
    for case in IDS[4:]:
        later = models[1].fold(1).validation / f"{case}.nii.gz"
        os.utime(later, (weights.stat().st_mtime + 1,) * 2)
    before = {path: path.stat().st_mtime_ns for path in place.glob("*.nii.gz")}
    room.select()
    changed = {path.name for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed == {f"{case}.nii.gz" for case in IDS[4:]}


def test_prediction_does_what_helped_unless_told_not_to(room: Room) -> None:
    model = room.model("unet_3d_fullres")
    room.segmented(model, with_islands)
    (step,) = room.select().postprocessing
    bare = Predictor.load(model.root, device="cpu").predict(read_channels([Path(room.cases[0].images[0])]))
    numbered, count = ndimage.label(bare == 5, structure=np.ones((3, 3, 3)))
    expected = bare.copy()
    for number in range(1, count + 1):
        if (numbered == number).sum() * 2.0 < step.minimum_mm3:
            expected[numbered == number] = 0
    assert not np.array_equal(bare, expected)
    np.testing.assert_array_equal(room.predict("followed")["case_0.nii.gz"], expected)
    np.testing.assert_array_equal(room.predict("named", model=str(model.root))["case_0.nii.gz"], expected)
    np.testing.assert_array_equal(room.predict("bare", postprocess=False)["case_0.nii.gz"], bare)
    # What was made with other post-processing does not count as complete.
    np.testing.assert_array_equal(room.predict("followed", postprocess=False, continue_=True)["case_0.nii.gz"], bare)


def test_a_selection_whose_models_are_gone_is_not_followed(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    room.segmented(room.model("a_3d_fullres"), with_islands)
    room.segmented(room.model("b_3d_fullres", spacing=2.0), lambda seed, label: label)
    assert room.select(ensembles=False).models == ("b_3d_fullres",)
    fresh = room.model("new_3d_fullres", spacing=1.2)
    with caplog.at_level(logging.INFO, logger="autoseg"):
        logging.getLogger("autoseg").propagate = True
        room.predict("one")
        assert "not compared yet, autoseg_select does that: new_3d_fullres" in caplog.text
        for name in ("b_3d_fullres", "new_3d_fullres"):
            for path in room.folder.model(name).root.glob("fold_*/weights.safetensors"):
                path.unlink()
        room.predict("two")
        assert "b_3d_fullres; run autoseg_select again" in caplog.text
    assert fresh.finished_folds() == ()
    assert choose_model(PredictSettings(workdir=str(room.workspace.root))).root.name == "a_3d_fullres"


def test_models_that_cannot_be_compared_are_left_out_with_the_reason(room: Room) -> None:
    room.segmented(room.model("old_3d_fullres"), with_islands)
    everything = room.model("all_3d_fullres", folds=("all",))
    other = room.model("labels_3d_fullres")
    labels = Labels(foreground=(Label(name="near", values=(5,)), Label(name="else", values=(9,))))
    records.save(other.dataset, replace(records.load(DatasetSpec, other.dataset), labels=labels))
    newest = room.folder.model("old_3d_fullres").fold(0).weights
    os.utime(newest, (newest.stat().st_mtime + 9,) * 2)
    room.segmented(room.folder.model("old_3d_fullres"), with_islands)
    for path in room.folder.model("old_3d_fullres").root.glob("fold_*/validation/*.nii.gz"):
        os.utime(path, (newest.stat().st_mtime + 1,) * 2)
    selection = room.select()
    assert selection.models == ("old_3d_fullres",)
    assert set(selection.left_out) == {everything.root.name, other.root.name}
    assert "held out" in selection.left_out[everything.root.name]
    assert "labels" in selection.left_out[other.root.name]


def test_only_common_cases_count_and_none_is_an_error(room: Room) -> None:
    room.segmented(room.model("a_3d_fullres", folds=("0",)), with_islands)
    room.segmented(room.model("b_3d_fullres"), with_islands)
    assert room.select(ensembles=False).cases == 4
    records.save(
        room.folder.model("a_3d_fullres").splits,
        Splits(seed=0, folds=(Fold(train=IDS, val=("case_100",)),)),
    )
    spec = room.folder.model("a_3d_fullres").dataset
    known = records.load(DatasetSpec, spec)
    records.save(spec, replace(known, cases=(*known.cases, replace(known.cases[0], id="case_100"))))
    with pytest.raises(ModelFolderError, match="no case was held out by every model"):
        room.select()


def test_labels_that_nobody_looked_for_do_not_count(room: Room) -> None:
    model = room.model("unet_3d_fullres")
    room.segmented(model, with_islands)
    spec = records.load(DatasetSpec, model.dataset)
    cases = tuple(replace(case, annotated=("far",)) for case in spec.cases)
    records.save(model.dataset, replace(spec, cases=cases))
    selection = room.select()
    far = [2 * (b == 9).sum() / ((a == 9).sum() + (b == 9).sum()) for a, b in map(_truth_and_guess, range(8))]
    assert selection.candidates[0].dice.mean == pytest.approx(np.mean(far))
    records.save(model.dataset, replace(spec, cases=tuple(replace(case, annotated=()) for case in spec.cases)))
    with pytest.raises(DatasetError, match="annotated"):
        room.select()


def _truth_and_guess(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The truth and what is left of label 9, which is only shaved."""
    return truth(seed), with_islands(seed, truth(seed))


def retrain(model: ModelFolder, fold: str, factor: float = -1.0) -> None:
    """Other weights, as another training would leave them."""
    path = model.fold(fold).weights
    values = {name: value * factor for name, value in load_file(path).items()}
    save_file(values, path, {"configuration": "3d_fullres"})


@pytest.mark.parametrize("named", [False, True])
def test_steps_that_were_chosen_for_other_weights_are_not_applied(
    room: Room, caplog: pytest.LogCaptureFixture, named: bool
) -> None:
    model = room.model("unet_3d_fullres")
    room.segmented(model, with_islands)
    assert room.select().postprocessing
    words = {"model": str(model.root)} if named else {}
    retrain(model, "1")
    with caplog.at_level(logging.INFO, logger="autoseg"):
        logging.getLogger("autoseg").propagate = True
        made = room.predict("both", **words)["case_0.nii.gz"]
        assert "unet_3d_fullres was trained again since autoseg_select (fold 1)" in caplog.text
        assert "is left out; run autoseg_select again" in caplog.text
        assert "afterwards" not in caplog.text
        bare = Predictor.load(model.root, device="cpu").predict(read_channels([Path(room.cases[0].images[0])]))
        np.testing.assert_array_equal(made, bare)
        # The other fold is what it was.
        caplog.clear()
        room.predict("first", fold=("0",), **words)
        assert "trained again" not in caplog.text
        assert "afterwards" in caplog.text


def test_new_folds_are_told(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    model = room.model("unet_3d_fullres", folds=("0",))
    room.segmented(model, with_islands)
    assert room.select().postprocessing
    shutil.copy(model.fold(0).weights, model.fold(1).weights)
    with caplog.at_level(logging.INFO, logger="autoseg"):
        logging.getLogger("autoseg").propagate = True
        room.predict("out")
    assert "new folds since autoseg_select: 1" in caplog.text
    assert "afterwards" in caplog.text


def test_a_named_model_of_another_architecture_is_refused(room: Room) -> None:
    model = room.model("unet_3d_fullres")
    with pytest.raises(SettingError, match="is a model of architecture unet, not vnet") as caught:
        room.predict("out", model=str(model.root), arch="vnet")
    assert "--arch" in caught.value.hint
    assert room.predict("out", model=str(model.root), arch="unet")


def test_a_foreign_model_does_not_stop_the_others(room: Room) -> None:
    room.segmented(room.model("a_3d_fullres"), with_islands)
    others = {"imported": {}, "channels": {"channels": 2}, "damaged": {}}
    made = {name: room.model(f"{name}_3d_fullres", **plan) for name, plan in others.items()}
    made["imported"].splits.unlink()
    made["damaged"].dataset.write_text("{", encoding="utf-8")
    labels = Labels(foreground=(Label(name="else", values=(9,)),))
    spec = records.load(DatasetSpec, made["imported"].dataset)
    records.save(made["imported"].dataset, replace(spec, labels=labels, cases=()))
    # The newest that can take part says what is compared.
    for name, seconds in (("channels", -50), ("imported", 50), ("damaged", 60)):
        for fold in "01":
            path = made[name].fold(fold).weights
            os.utime(path, (path.stat().st_mtime + seconds,) * 2)
    selection = room.select()
    assert selection.models == ("a_3d_fullres",)
    assert selection.left_out["imported_3d_fullres"] == "it held out no case"
    assert selection.left_out["channels_3d_fullres"] == "other channels than a_3d_fullres, which was trained last"
    assert "dataset.json" in selection.left_out["damaged_3d_fullres"]


def test_memory_is_kept_to_for_single_models_too(room: Room) -> None:
    room.model("a_3d_fullres")
    with pytest.raises(ResourceError):
        room.select(memory=1)


def test_a_fine_tuned_model_is_pointed_out(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    model = room.model("a_3d_fullres")
    room.segmented(model, with_islands)
    run = records.load(RunReport, model.run)
    records.save(model.run, replace(run, settings={**run.settings, "init": "models/other"}))
    with caplog.at_level(logging.WARNING, logger="autoseg"):
        logging.getLogger("autoseg").propagate = True
        room.select()
    assert "a_3d_fullres began with models/other: its scores are honest only if" in caplog.text


def test_nothing_trained_is_a_clear_error(room: Room) -> None:
    with pytest.raises(ModelFolderError, match="no trained model"):
        room.select()


def test_the_command_says_what_it_chose(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    room.segmented(room.model("unet_3d_fullres"), with_islands)
    assert main(["select", "--workdir", str(room.workspace.root), "--device", "cpu", "-w", "0"]) == 0
    shown = capsys.readouterr().err
    assert "chosen: unet_3d_fullres: Dice 0." in shown
    assert "remove components of near below" in shown
    written = json.loads(room.folder.file.read_text(encoding="utf-8"))
    assert written["models"] == ["unet_3d_fullres"]
    assert isinstance(room.folder, SelectionFolder)
    assert records.load(Plan, room.folder.model("unet_3d_fullres").plan).dataset == NAME


@pytest.mark.slow
def test_the_first_stage_of_a_cascade_holds_the_case_out_too(tmp_path: Path) -> None:
    write_dataset(tmp_path / "raw", cases=4, test_cases=0, shape=(36, 36, 36), spacing=(1.0, 1.0, 1.0))
    common = ("--workdir", str(tmp_path), "--device", "cpu", "-w", "0", "--quiet")
    small = ("--patch-size", "16,16,16", "--memory", "200MB", "--batch-size", "2")
    short = ("--folds", "2", "--epochs", "1", "--iterations", "2", "--val-iterations", "1")
    assert main(["plan_and_preprocess", "-d", "7", "-c", "3d_lowres", "3d_cascade_fullres", *small, *common]) == 0
    assert main(["train", "-c", "3d_cascade_fullres", *short, *common]) == 0
    assert main(["select", *common]) == 0
    folder = Workspace(tmp_path).selection("Dataset007_Tiny")
    names = ("unet_3d_cascade_fullres", "unet_3d_lowres")
    assert {one.models for one in records.load(Selection, folder.file).candidates} == {(names[0],), (names[1],), names}
    first, second = folder.model(names[1]), folder.model(names[0])
    for fold, splits in enumerate(records.load(Splits, second.splits).folds):
        case = splits.val[0]
        volume = read_channels([tmp_path / "raw" / "Dataset007_Tiny" / "imagesTr" / f"{case}_0000.nii.gz"])
        low = Predictor.load(first.root, folds=(fold,), device="cpu").segment(volume, probabilities=True)
        high = Predictor.load(second.root, folds=(fold,), device="cpu", stages=False)
        (stored,) = second.previous_stage.glob(f"fold_{fold}/{case}.labels.b2nd")
        refined = high.infer(high.prepare(volume), probabilities=True, previous=open_label_map(stored)[0])
        mean = low.probabilities.astype(np.float64) + refined.probabilities.astype(np.float64)
        ordered = np.sort(mean, axis=0)
        clear = ordered[-1] - ordered[-2] > 1e-2
        made = read_label(folder.segmentations(names) / f"{case}.nii.gz").data[0]
        assert clear.mean() > 0.7
        assert (made == mean.argmax(axis=0))[clear].mean() > 0.999
    # What is missing, or older than the first stage, is segmented again by the folds that held the case out.
    case = records.load(Splits, second.splits).folds[0].val[0]
    kept = read_label(second.fold(0).validation / f"{case}.nii.gz").data[0]
    (second.fold(0).validation / f"{case}.nii.gz").unlink()
    assert main(["select", "--no-ensembles", *common]) == 0
    place = folder.segmentations((names[0],))
    assert [path.name for path in place.glob("*.nii.gz")] == [f"{case}.nii.gz"]
    assert (read_label(place / f"{case}.nii.gz").data[0] == kept).mean() > 0.99
    weights = first.fold(1).weights
    later = max(path.stat().st_mtime for path in second.root.rglob("*.nii.gz")) + 1
    os.utime(weights, (later, later))
    assert main(["select", "--no-ensembles", *common]) == 0
    held_out = {case, *records.load(Splits, second.splits).folds[1].val}
    assert {path.name for path in place.glob("*.nii.gz")} == {f"{one}.nii.gz" for one in held_out}
