"""One fold of a model as it judges cases that neither it nor, in a cascade, the stage before it was trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from autoseg import records
from autoseg.errors import ModelFolderError
from autoseg.inference.cascade import model_before
from autoseg.inference.predictor import Predictor
from autoseg.schema.folders import ModelFolder
from autoseg.schema.splits import Splits


def held_out_predictor(model: ModelFolder, fold: str, **how: Any) -> Predictor:
    """The predictor of one fold, for the cases that it held out; ``how`` are further arguments of ``Predictor.load``.

    Raises:
        ModelFolderError: as ``Predictor.load``, or the stages of a cascade held out other cases.
    """
    predictor = Predictor.load(model.root, folds=(fold,), stages=False, **how)
    if predictor.configuration.previous_stage is None:
        return predictor
    before = model_before(model, predictor.configuration)
    cases, theirs = (set(records.load(Splits, one.splits).folds[int(fold)].val) for one in (model, before))
    if cases != theirs:
        raise ModelFolderError(
            f"fold {fold} of {before.root} holds out other cases than that of {model.root}",
            hint="train both stages with the same splits, or leave the cascade out",
        )
    return replace(predictor, first=Predictor.load(before.root, folds=(fold,), **how))
