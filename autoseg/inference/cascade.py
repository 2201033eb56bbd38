"""The two stages of a cascade at prediction: which model comes first, and its segmentation on the second one's grid."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoseg import records
from autoseg.errors import ModelFolderError, SettingError
from autoseg.preprocessing.case import label_on_grid
from autoseg.preprocessing.trace import between_grids
from autoseg.schema.dataset import Labels
from autoseg.schema.folders import PREVIOUS_MODEL, ModelFolder
from autoseg.schema.plan import Configuration, Plan
from autoseg.schema.report import RunReport

if TYPE_CHECKING:
    from autoseg.inference.predictor import Predictor
    from autoseg.preprocessing.case import PreprocessedCase


def model_before(folder: ModelFolder, configuration: Configuration) -> ModelFolder:
    """The model whose segmentations the one in ``folder`` refines.

    Raises:
        ModelFolderError: run.json does not name it, or it is not there.
    """
    named = records.load(RunReport, folder.run).settings.get(PREVIOUS_MODEL)
    if not isinstance(named, str):
        raise ModelFolderError(
            f"{folder.root} refines predictions of {configuration.previous_stage}, but run.json names no model of it",
            hint="use a model of another configuration, or train the cascade with autoseg_train",
        )
    # Usually ``../NAME``, which is not for the eyes; of a link, that is beside the folder which it leads to.
    before = ModelFolder(Path(os.path.normpath(folder.root.resolve() / named)))
    if not before.finished_folds():
        raise ModelFolderError(
            f"{folder.root} refines predictions of {configuration.previous_stage}, and that model is not in "
            f"{before.root}",
            hint=f"keep both models side by side: copy {before.root.name} to where {folder.root.name} lies",
        )
    return before


def check_before(theirs: Plan, name: str, plan: Plan, configuration: Configuration) -> None:
    """Whether a model of the configuration ``name`` of the plan ``theirs`` can be the first stage of another one.

    Raises:
        ModelFolderError: it is of another configuration, refines another model itself, or its plan has other channels,
            labels or axes.
    """
    problems = [
        what
        for what, differs in (
            ("configuration", name != configuration.previous_stage),
            ("number of stages", theirs.configuration(name).previous_stage is not None),
            ("channels", theirs.channels != plan.channels),
            ("labels", theirs.labels != plan.labels),
            ("axis order", theirs.transpose != plan.transpose),
        )
        if differs
    ]
    if problems:
        raise ModelFolderError(
            f"the model of {name} does not fit that of {configuration.name}: other {' and '.join(problems)}",
            hint="use the two models that were trained together",
        )


def numbered(labels: Labels) -> Labels:
    """The same labels with their internal indices for integers: what is restored with them needs no translation.

    Raises:
        SettingError: regions are written as integers that no label file has.
    """
    position = {value: index for index, value in enumerate(labels.leaves)}
    order = labels.regions_class_order
    unknown = sorted(set(order or ()) - set(position))
    if unknown:
        raise SettingError(
            f"regions_class_order writes {', '.join(map(str, unknown))}, which no region is made of, so that a "
            f"cascade cannot tell what it stands for",
            hint="train 3d_fullres, or write integers that occur in the labels",
        )
    return replace(
        labels,
        foreground=tuple(replace(label, values=labels.internal(label)) for label in labels.foreground),
        ignore=None,
        regions_class_order=None if order is None else tuple(position[value] for value in order),
    )


def segment_before(before: Predictor, case: PreprocessedCase, configuration: Configuration) -> np.ndarray:
    """Internal indices (z, y, x) on the grid of ``case``, from the image on the coarse grid that comes with it.

    The logits of the first stage are resampled once, from its grid to that of the second, as nnU-Net does for
    training. For prediction it goes by way of a label file on the image's own grid; here both are the same, except for
    models that nnU-Net trained, which are to predict what they predict there.
    """
    coarse = case.coarse
    if coarse is None:
        raise ValueError("the case was not prepared for two stages")
    if configuration.previous_as_nnunet:
        return _as_label_file(_indexed(before).infer(coarse).labels, case, configuration)
    return segment_onto(before, coarse, case.trace.resampled_shape, case.trace.target_spacing)


def _as_label_file(labels: np.ndarray, case: PreprocessedCase, configuration: Configuration) -> np.ndarray:
    """A segmentation on the image's own grid, brought to that of ``case`` as nnU-Net brings label files there.

    It marks background where the image is empty as a label of its own, so that it does not vote with the rest of the
    background when labels are resized.
    """
    if case.empty is not None and case.empty.any():
        labels = np.where(case.empty & (labels == 0), np.int16(-1), labels.astype(np.int16))
    return label_on_grid(labels, case.trace, configuration.resampling)


def segment_onto(
    before: Predictor, coarse: PreprocessedCase, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> np.ndarray:
    """Internal indices on a grid of ``shape`` (z, y, x), axes transposed, and ``spacing`` in mm."""
    trace = between_grids(coarse.image.shape[1:], coarse.trace.target_spacing, shape, spacing)
    return _indexed(before).infer(replace(coarse, trace=trace)).labels


def _indexed(before: Predictor) -> Predictor:
    """The same model, which says internal indices."""
    return replace(before, plan=replace(before.plan, labels=numbered(before.plan.labels)))
