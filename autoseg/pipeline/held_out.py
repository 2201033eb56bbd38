"""One fold of a model as it judges cases that neither it nor, in a cascade, the stage before it was trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from autoseg import records
from autoseg.errors import ModelFolderError, RecordError
from autoseg.inference.predictor import Predictor
from autoseg.pipeline.weights import stage_before
from autoseg.schema.folders import ModelFolder
from autoseg.schema.splits import Splits


def held_out_cases(model: ModelFolder, fold: str) -> tuple[str, ...]:
    """The cases that a fold ("0", "1", ...) held out.

    Raises:
        ModelFolderError: the model does not say.
    """
    hint = "use a model that was trained here, or train this fold again"
    try:
        folds = records.load(Splits, model.splits).folds
    except RecordError as error:
        raise ModelFolderError(
            f"{model.root} does not say which cases were held out: {error.message}", hint=hint
        ) from error
    if int(fold) >= len(folds):
        raise ModelFolderError(
            f"{model.root} does not say which cases were held out by fold {fold}: {model.splits.name} has "
            f"{len(folds)} folds",
            hint=hint,
        )
    return folds[int(fold)].val


def first_stage(model: ModelFolder, fold: str) -> ModelFolder | None:
    """Of a cascade, the model before, whose fold of the same name held out the same cases.

    Raises:
        ModelFolderError: it is not there, or held out other cases.
    """
    before = stage_before(model)
    if before is not None and set(held_out_cases(model, fold)) != set(held_out_cases(before, fold)):
        raise ModelFolderError(
            f"fold {fold} of {before.root} holds out other cases than that of {model.root}",
            hint="train both stages with the same splits, or leave the cascade out",
        )
    return before


def held_out_predictor(model: ModelFolder, fold: str, **how: Any) -> Predictor:
    """The predictor of one fold, for the cases that it held out; ``how`` are further arguments of ``Predictor.load``.

    Raises:
        ModelFolderError: as ``Predictor.load``, or the stages of a cascade held out other cases.
    """
    predictor = Predictor.load(model.root, folds=(fold,), stages=False, **how)
    before = first_stage(model, fold)
    return predictor if before is None else replace(predictor, first=Predictor.load(before.root, folds=(fold,), **how))
