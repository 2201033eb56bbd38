"""Finished folds keep their cases: what they trained on never counts as held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import autoseg
from autoseg import records
from autoseg.errors import SettingError
from autoseg.pipeline.splits import refuse_other_splits
from autoseg.schema.folders import ModelFolder, Workspace
from autoseg.schema.splits import Fold, Splits
from tests.synthetic import write_dataset

SHORT = {"epochs": 1, "iterations": 2, "val_iterations": 1, "workers": 0, "device": "cpu", "validate": False}
NAME = "Dataset007_Tiny"
AB = Fold(train=("a", "b"), val=("c", "d"))
CD = Fold(train=("c", "d"), val=("a", "b"))


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.suffix != ".b2nd"}


def test_other_folds_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_dataset(tmp_path / "raw", cases=6, test_cases=0)
    autoseg.plan_and_preprocess(dataset="7", workdir=str(tmp_path), workers=0, device="cpu", memory="2GB")
    model = autoseg.train(dataset="7", workdir=str(tmp_path), folds=2, fold=("0",), **SHORT)
    known = records.load(Splits, model.splits)
    mine = [{"train": list(fold.val), "val": list(fold.train)} for fold in known.folds]
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    before = contents(tmp_path)
    for other in ({"folds": 3}, {"splits": str(tmp_path / "mine.json")}):
        for fold in ("0", "1"):
            with pytest.raises(SettingError, match="other folds: what fold 0 would hold out") as caught:
                autoseg.train(dataset="7", workdir=str(tmp_path), fold=(fold,), **other, **SHORT)
            assert "--folds or --splits" in caught.value.hint
    assert contents(tmp_path) == before
    # The same folds, by whatever way, are welcome.
    same = [{"train": list(fold.train), "val": list(fold.val)} for fold in known.folds]
    (tmp_path / "same.json").write_text(json.dumps(same))
    again = autoseg.train(dataset="7", workdir=str(tmp_path), splits=str(tmp_path / "same.json"), fold=("1",), **SHORT)
    assert again.finished_folds() == ("0", "1")
    # Another model may have others.
    assert Workspace(tmp_path).prepared(NAME).splits.exists()
    other = autoseg.train(dataset="7", workdir=str(tmp_path), arch="resenc_unet", folds=3, fold=("2",), **SHORT)
    assert len(records.load(Splits, other.splits).folds) == 3
    assert records.load(Splits, model.splits).folds == known.folds


@pytest.mark.parametrize(
    ("finished", "known", "today", "refused"),
    [
        (("0",), (AB, CD), (AB, CD), False),
        (("0",), (AB, CD), (Fold(train=("b", "a"), val=("d", "c")), AB), False),
        (("1",), (AB, CD), (AB, AB), True),
        (("1",), (AB, CD), (AB,), True),
        (("0",), (AB, CD), (Fold(train=("a", "b", "e"), val=("c", "d")), CD), True),
        (("all",), (AB, CD), (CD, AB), False),
        (("all",), (AB, CD), (Fold(train=("a",), val=("c",)),), True),
        (("0",), None, (AB, CD), True),
        ((), (AB, CD), (CD,), False),
    ],
)
def test_only_cases_of_finished_folds_count(write_model, tmp_path: Path, finished, known, today, refused: bool) -> None:
    model: ModelFolder = write_model(tmp_path / "model", folds=finished)
    if known is not None:
        records.save(model.splits, Splits(seed=0, folds=known))
    if refused:
        with pytest.raises(SettingError, match=f"fold {finished[0]} would hold out now"):
            refuse_other_splits(model, Splits(seed=0, folds=today))
    else:
        refuse_other_splits(model, Splits(seed=0, folds=today))
