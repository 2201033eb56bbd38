from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the field's name

from autoseg import records
from autoseg.errors import DatasetError, PartialError, SettingError
from autoseg.pipeline import evaluate as module
from autoseg.pipeline.evaluate import Pair, evaluate, evaluate_pairs
from autoseg.schema.dataset import DatasetSpec, Label, Labels
from autoseg.schema.report import EvaluationReport
from autoseg.schema.settings import EvaluateSettings

LABELS = {"background": 0, "liver": 1, "tumour": 2}


def write(path: Path, array: np.ndarray, *, spacing: tuple[float, ...] = (1.0, 1.0, 3.0), origin: float = 0.0) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[: array.ndim])
    image.SetOrigin([origin] * array.ndim)
    sitk.WriteImage(image, str(path))


def label_map(*, start: int = 2, tumour: bool = True) -> np.ndarray:
    array = np.zeros((6, 20, 20), np.uint8)
    array[1:5, start : start + 10, 2:12] = 1
    if tumour:
        array[2:4, start + 2 : start + 5, 4:7] = 2
    return array


@pytest.fixture(autouse=True)
def messages_reach_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line, if another test ran it, keeps messages from the root logger."""
    monkeypatch.setattr(logging.getLogger("autoseg"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("autoseg"), "level", logging.NOTSET)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    references, predictions = tmp_path / "labels", tmp_path / "out"
    for name, start in (("a", 2), ("b", 3), ("c", 4)):
        write(references / f"{name}.nii.gz", label_map(start=start))
        write(predictions / f"{name}.nii.gz", label_map())
    description = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 3, "file_ending": ".nii.gz"}
    (references / "dataset.json").write_text(json.dumps(description))
    return references, predictions


def settings(folders: tuple[Path, Path], **changes: object) -> EvaluateSettings:
    return EvaluateSettings(references=str(folders[0]), predictions=str(folders[1]), **{"workers": 0, **changes})


def test_scores_equal_simpleitk_and_are_written(folders: tuple[Path, Path]) -> None:
    report = evaluate(settings(folders))
    oracle = sitk.LabelOverlapMeasuresImageFilter()
    for case, name in zip(report.cases, "abc", strict=True):
        oracle.Execute(*(sitk.ReadImage(str(folder / f"{name}.nii.gz")) for folder in folders))
        assert case.id == name
        assert [row.label for row in case.classes] == ["liver", "tumour"]
        assert [row.dice for row in case.classes] == pytest.approx([oracle.GetDiceCoefficient(i) for i in (1, 2)])
    assert report.foreground_dice == pytest.approx(
        np.mean([[row.dice for row in case.classes] for case in report.cases])
    )
    summary = folders[1] / "summary.json"
    assert records.to_json(records.load(EvaluationReport, summary)) == records.to_json(report)
    rows = list(csv.DictReader((folders[1] / "scores.csv").open()))
    assert [(row["id"], row["label"]) for row in rows] == [(i, name) for i in "abc" for name in ("liver", "tumour")]
    assert float(rows[2]["dice"]) == report.cases[1].classes[0].dice
    assert float(rows[0]["reference_ml"]) == pytest.approx((400 - 18) * 3 / 1000)


def test_worker_processes_give_the_same_report(folders: tuple[Path, Path], tmp_path: Path) -> None:
    alone = evaluate(settings(folders))
    together = evaluate(settings(folders, workers=2, output=str(tmp_path / "scores")))
    assert records.to_json(alone) == records.to_json(together)
    assert (tmp_path / "scores" / "summary.json").exists()


@pytest.mark.parametrize("workers", [0, None])
@pytest.mark.parametrize(
    ("timed", "slow", "to_start", "ahead"),
    [(3, 1.0, 3.0, 1 << 24), (1, 1.0, 60.0, 1 << 24), (1, 1.0, 60.0, 0), (2, 0.0, 60.0, 1 << 24), (2, 1.0, 0.0, 0)],
)
def test_however_files_are_read_scores_and_faults_are_the_same(
    folders: tuple[Path, Path],
    workers: int | None,
    timed: int,
    slow: float,
    to_start: float,
    ahead: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folders[0] / "b.nii.gz").write_bytes(b"no image")
    write(folders[1] / "d.nii.gz", label_map())
    write(folders[0] / "d.nii.gz", label_map()[:, 1:])
    labels = Labels(foreground=(Label(name="liver", values=(1,)), Label(name="tumour", values=(2,))))
    pairs = [Pair(id=i, reference=folders[0] / f"{i}.nii.gz", prediction=folders[1] / f"{i}.nii.gz") for i in "abcd"]
    one_by_one = [evaluate_pairs([pair], labels, workers=0) for pair in pairs]
    for name, value in [
        ("_TIMED", timed),
        ("_SLOW_SECONDS", slow),
        ("SECONDS_TO_START_WORKERS", to_start),
        ("_VOXELS_READ_AHEAD", ahead),
    ]:
        monkeypatch.setattr(module, name, value)
    together = evaluate_pairs(pairs, labels, workers=workers)
    assert together.cases == tuple(case for report in one_by_one for case in report.cases)
    assert [case.id for case in together.cases] == ["a", "c"]
    assert together.faults == tuple(fault for report in one_by_one for fault in report.faults)
    assert [fault[0] for fault in together.faults] == ["b", "d"]


def test_missing_and_extra_files_are_named(folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    (folders[1] / "b.nii.gz").rename(folders[1] / "x.nii.gz")
    with caplog.at_level(logging.INFO), pytest.raises(PartialError, match=r"1 of 3 references .*: b") as caught:
        evaluate(settings(folders))
    assert "predict these" in caught.value.hint
    report = records.load(EvaluationReport, folders[1] / "summary.json")
    assert report.missing == ("b",)
    assert [case.id for case in report.cases] == ["a", "c"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("no reference" in text and "x" in text for text in warnings)
    assert any("no segmentation: b" in text for text in warnings)


def test_a_shifted_grid_is_a_fault_and_the_others_are_scored(folders: tuple[Path, Path]) -> None:
    write(folders[1] / "b.nii.gz", label_map(), origin=5.0)
    with pytest.raises(PartialError, match=r"b: .*8\.66 mm apart") as caught:
        evaluate(settings(folders))
    assert caught.value.exit_code == 6
    report = records.load(EvaluationReport, folders[1] / "summary.json")
    assert [case.id for case in report.cases] == ["a", "c"]
    assert len(report.faults) == 1


def test_header_noise_is_no_fault(folders: tuple[Path, Path]) -> None:
    write(folders[1] / "b.nii.gz", label_map(), origin=1e-3)
    assert not evaluate(settings(folders)).faults


def test_the_tolerance_of_the_grids_can_be_given_and_shapes_always_count(folders: tuple[Path, Path]) -> None:
    write(folders[1] / "a.nii.gz", label_map(), origin=5.0)
    write(folders[1] / "b.nii.gz", label_map()[:5])
    pairs = [Pair(id=i, reference=folders[0] / f"{i}.nii.gz", prediction=folders[1] / f"{i}.nii.gz") for i in "ab"]
    labels = Labels(foreground=(Label(name="liver", values=(1,)),))
    scored = {
        tolerance: [case.id for case in evaluate_pairs(pairs, labels, workers=0, grid_tolerance_mm=tolerance).cases]
        for tolerance in (8.6, 8.7, math.inf)
    }
    assert scored == {8.6: [], 8.7: ["a"], math.inf: ["a"]}


def test_other_shapes_and_broken_files_are_faults(folders: tuple[Path, Path]) -> None:
    write(folders[1] / "a.nii.gz", label_map()[:5])
    content = (folders[1] / "b.nii.gz").read_bytes()
    (folders[1] / "b.nii.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(PartialError) as caught:
        evaluate(settings(folders))
    assert "(5, 20, 20) voxels" in caught.value.message
    assert "b: " in caught.value.message


def test_if_nothing_can_be_scored_nothing_is_written(folders: tuple[Path, Path]) -> None:
    for name in "abc":
        write(folders[1] / f"{name}.nii.gz", label_map()[:5])
    with pytest.raises(DatasetError, match="no pair could be scored"):
        evaluate(settings(folders))
    assert not (folders[1] / "summary.json").exists()


def test_endings_may_differ_and_other_files_are_left_alone(folders: tuple[Path, Path]) -> None:
    write(folders[1] / "a.mha", label_map())
    (folders[1] / "a.nii.gz").unlink()
    (folders[1] / "a.npz").write_bytes(b"probabilities")
    (folders[1] / ".hidden.nii.gz").write_bytes(b"")
    assert [case.id for case in evaluate(settings(folders)).cases] == ["a", "b", "c"]


def test_two_files_of_one_case_are_refused(folders: tuple[Path, Path]) -> None:
    write(folders[1] / "a.mha", label_map())
    with pytest.raises(DatasetError, match=r"a\.mha and a\.nii\.gz"):
        evaluate(settings(folders))


def test_folders_without_a_common_name_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write(tmp_path / "other" / "z.nii.gz", label_map())
    with pytest.raises(SettingError, match=r"z.*a, b, c"):
        evaluate(settings((folders[0], tmp_path / "other")))
    with pytest.raises(SettingError, match="--predictions"):
        evaluate(settings((folders[0], tmp_path / "nowhere")))


def test_without_dataset_json_plain_integers_are_scored(folders: tuple[Path, Path]) -> None:
    (folders[0] / "dataset.json").unlink()
    array = label_map()
    array[0, 0, 0] = 7
    write(folders[1] / "a.nii.gz", array)
    report = evaluate(settings(folders))
    assert [mean.label for mean in report.mean] == ["1", "2", "7"]
    assert (report.mean[2].empty_reference, report.mean[2].empty_both) == (1, 2)
    assert report.mean[2].dice == 0


def test_negative_integers_are_scored_without_names_too(folders: tuple[Path, Path]) -> None:
    (folders[0] / "dataset.json").unlink()
    array = np.array([0, 1, -7], np.int16)[label_map()]
    for folder in folders:
        for path in folder.glob("*.nii.gz"):
            write(path, array)
    assert [(mean.label, mean.dice) for mean in evaluate(settings(folders)).mean] == [("-7", 1.0), ("1", 1.0)]


def test_a_raw_dataset_may_have_a_version_of_its_own(folders: tuple[Path, Path]) -> None:
    path = folders[0] / "dataset.json"
    description = json.loads(path.read_text())
    for more in ({"version": "1.2"}, {"version": 1, "release": "first"}):
        path.write_text(json.dumps({**description, **more}))
        assert [mean.label for mean in evaluate(settings(folders)).mean] == ["liver", "tumour"]


def test_a_model_folder_names_the_labels(folders: tuple[Path, Path], tmp_path: Path) -> None:
    labels = Labels(
        foreground=(Label(name="whole", values=(1, 2)), Label(name="core", values=(2,))), regions_class_order=(1, 2)
    )
    spec = DatasetSpec(name="D", channels=("CT",), labels=labels, file_ending=".nii.gz", cases=())
    (folders[0] / "dataset.json").unlink()
    records.save(tmp_path / "model" / "dataset.json", spec)
    validation = tmp_path / "model" / "fold_0" / "validation"
    for name in "ab":
        write(validation / f"{name}.nii.gz", label_map())
    (folders[0] / "c.nii.gz").unlink()
    report = evaluate(settings((folders[0], validation)))
    assert [mean.label for mean in report.mean] == ["whole", "core"]
    named = evaluate(settings((folders[0], validation), labels=str(tmp_path / "model" / "dataset.json")))
    assert records.to_json(named) == records.to_json(report)


def test_integers_without_a_label_are_mentioned(folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    array = label_map()
    array[0, 0, 0] = 77
    write(folders[1] / "a.nii.gz", array)
    with caplog.at_level(logging.WARNING):
        report = evaluate(settings(folders))
    assert "77" in caplog.text
    assert report.cases[0].classes[0].dice == 1


def test_pictures_are_scored_by_their_contours(tmp_path: Path) -> None:
    picture = np.zeros((40, 50), np.uint8)
    picture[10:30, 10:30] = 1
    write(tmp_path / "ref" / "p.png", picture)
    write(tmp_path / "out" / "p.png", np.roll(picture, 3, axis=1))
    report = evaluate_pairs(
        [Pair(id="p", reference=tmp_path / "ref" / "p.png", prediction=tmp_path / "out" / "p.png")],
        Labels(foreground=(Label(name="cell", values=(1,)),)),
        workers=0,
    )
    (row,) = report.cases[0].classes
    assert row.dice == pytest.approx(17 / 20)
    assert row.hd95 == 3.0
    # The contour has 76 pixels; were the whole squares measured, far more of them would lie on each other.
    assert 0.4 < row.surface_dice < 0.7


def test_the_table_shows_scores_and_what_is_undefined(
    folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    for folder in folders:
        write(folder / "a.nii.gz", label_map(tumour=False))
        for name in "bc":
            (folder / f"{name}.nii.gz").unlink()
    with caplog.at_level(logging.INFO):
        report = evaluate(settings(folders))
    assert math.isnan(report.mean[1].dice)
    lines = [line.split() for line in caplog.text.splitlines()]
    assert ["liver", "1", *["1.0000"] * 4, "0.00", "0.00", "1.0000", "1.0000", "0", "0", "0"] in lines
    assert ["tumour", "1", *["-"] * 8, "0", "0", "1"] in lines
