"""Records survive the trip to disk, refuse what does not fit, and never leave half a file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from autoseg import records
from autoseg.errors import RecordError, ResourceError, SettingError
from autoseg.schema.dataset import CaseFiles, DatasetSpec, Label, Labels
from autoseg.schema.report import MeanScores
from autoseg.schema.splits import Fold, Splits


def spec() -> DatasetSpec:
    labels = Labels(foreground=(Label(name="liver", values=(6,)), Label(name="spleen", values=(2,))), ignore=9)
    case = CaseFiles(id="a", images=("/data/a_0000.nii.gz",), label=None)
    return DatasetSpec(name="Dataset001_X", channels=("CT",), labels=labels, file_ending=".nii.gz", cases=(case,))


def test_a_record_comes_back_equal(tmp_path: Path) -> None:
    records.save(tmp_path / "deep" / "dataset.json", spec())
    assert records.load(DatasetSpec, tmp_path / "deep" / "dataset.json") == spec()


def test_all_problems_are_listed_with_their_path() -> None:
    data = json.loads(records.to_json(spec()))
    data["channels"] = [1]
    data["labels"]["ignore"] = "nine"
    data["colour"] = "red"
    with pytest.raises(RecordError) as caught:
        records.structure(DatasetSpec, data, source="dataset.json")
    text = str(caught.value)
    assert "dataset.json" in text
    for part in ("channels[0]", "labels.ignore", "colour"):
        assert part in text


@pytest.mark.parametrize("value", ["3", 2.7, True])
def test_an_integer_field_takes_nothing_else(value: object) -> None:
    data = {"version": 1, "seed": value, "folds": []}
    with pytest.raises(RecordError, match="seed"):
        records.structure(Splits, data)


def test_another_version_is_named() -> None:
    with pytest.raises(RecordError, match="version 7"):
        records.from_json(Splits, '{"version": 7, "seed": 0, "folds": []}')


def test_nan_is_null_in_the_file_and_nan_again_in_memory() -> None:
    figures = dict.fromkeys(("dice", "iou", "precision", "recall", "hd95", "assd", "surface_dice", "lesion_f1"), 0.5)
    row = MeanScores(
        label="a", cases=1, empty_both=0, empty_reference=0, empty_prediction=0, **figures | {"hd95": math.nan}
    )
    text = records.to_json(row)
    assert json.loads(text)["hd95"] is None
    assert math.isnan(records.from_json(MeanScores, text).hd95)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    records.save(path, Splits(seed=1, folds=(Fold(train=("a",), val=("b",)),)))
    before = path.read_bytes()
    with pytest.raises(RuntimeError), records.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["splits.json"]


def test_a_temporary_name_keeps_the_ending_that_image_writers_look_at(tmp_path: Path) -> None:
    with records.atomic_path(tmp_path / "case.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"x")
    assert (tmp_path / "case.nii.gz").read_bytes() == b"x"


@pytest.mark.parametrize("text", ["", "{", "[1, 2"])
def test_a_truncated_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=r"plan\.json is not valid JSON"):
        records.load(Splits, path)


def test_labels_map_any_integers_to_consecutive_indices() -> None:
    labels = spec().labels
    assert labels.leaves == (0, 2, 6)
    assert labels.num_heads == 3
    assert labels.ignore_index == 3
    assert [labels.internal(label) for label in labels.foreground] == [(2,), (1,)]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(28, "No space left on device"), ResourceError),
        (OSError(27, "File too large"), ResourceError),
        (OSError(30, "Read-only file system"), SettingError),
        (PermissionError(13, "Permission denied"), SettingError),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598"), ResourceError),
        (RuntimeError("something else"), RuntimeError),
        (OSError(5, "Input/output error"), OSError),
    ],
)
def test_a_write_that_fails_says_why_and_leaves_nothing(tmp_path: Path, error: Exception, kind: type) -> None:
    with pytest.raises(Exception) as caught, records.atomic_path(tmp_path / "x.json") as temporary:
        temporary.write_text("half")
        raise error
    assert type(caught.value) is kind
    assert kind in {RuntimeError, OSError} or str(tmp_path / "x.json") in str(caught.value)
    assert list(tmp_path.iterdir()) == []
