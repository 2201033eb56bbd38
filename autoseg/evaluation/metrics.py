"""All scores of one case, and their means over cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from autoseg.errors import DatasetError
from autoseg.evaluation.boxes import Slices, value_boxes
from autoseg.evaluation.lesions import lesion_f1
from autoseg.evaluation.surface import assd, hd95, surface_dice, surface_distances
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.report import CaseScores, ClassScores, EvaluationReport, MeanScores

# ``ClassScores.empty`` of a label that nobody looked for in the reference.
UNANNOTATED = "unannotated"


def case_scores(
    reference: np.ndarray,
    prediction: np.ndarray,
    labels: Labels,
    spacing: Sequence[float],
    *,
    tolerance_mm: float = 2.0,
    id: str = "",  # noqa: A002 - the record's field
    reference_file: str = "",
    prediction_file: str = "",
    annotated: Sequence[str] | None = None,
    boxes: Sequence[Mapping[int, Slices]] | None = None,
) -> CaseScores:
    """Score one segmentation, one entry per foreground label or region.

    Voxels that the reference marks with ``labels.ignore`` belong to no mask and end no surface. What each figure means
    is said at ``hd95``, ``assd``, ``surface_dice`` and ``lesion_f1``; what empty masks score, at ``ClassScores``.

    Args:
        reference: integers as in label files, (z, y, x); z = 1 for a picture, whose surfaces are contours.
        prediction: the same shape.
        labels: names and integers; a region is scored as the union of its integers.
        spacing: (z, y, x) in mm.
        tolerance_mm: of the surface Dice.
        id: of the case.
        reference_file: path to note in the result.
        prediction_file: path to note in the result.
        annotated: names of the labels that the reference was searched for, None for all; the others have no scores.
        boxes: ``value_boxes`` of reference and prediction, None to find them here.

    Raises:
        DatasetError: arrays that are not integer or differ in shape.
    """
    _check_arrays(reference, prediction, id)
    ignored = None
    if labels.ignore is not None:
        ignored = reference == labels.ignore
    boxes = boxes or (value_boxes(reference), value_boxes(prediction))
    classes = tuple(
        _class_scores(label, reference, prediction, ignored, boxes, spacing, tolerance_mm)
        if annotated is None or label.name in annotated
        else _without_scores(label.name, UNANNOTATED, volume=math.nan)
        for label in labels.foreground
    )
    return CaseScores(id=id, reference=reference_file, prediction=prediction_file, classes=classes)


def _check_arrays(reference: np.ndarray, prediction: np.ndarray, case: str) -> None:
    if reference.shape != prediction.shape:
        raise DatasetError(
            f"{case}: the reference has shape {reference.shape}, the prediction {prediction.shape}",
            hint="resample the prediction to the grid of the reference",
        )
    for name, array in (("reference", reference), ("prediction", prediction)):
        if array.dtype.kind not in "iub":
            raise DatasetError(f"{case}: the {name} holds {array.dtype}, not integers", hint="save it as integers")


def _union(boxes: Sequence[Slices], shape: tuple[int, ...]) -> Slices:
    """The box around all boxes and one voxel more, because an ignored neighbour decides whether there is a surface."""
    return tuple(
        slice(max(0, min(box[axis].start for box in boxes) - 1), min(length, max(box[axis].stop for box in boxes) + 1))
        for axis, length in enumerate(shape)
    )


def _class_scores(
    label: Label,
    reference: np.ndarray,
    prediction: np.ndarray,
    ignored: np.ndarray | None,
    boxes: Sequence[Mapping[int, Slices]],
    spacing: Sequence[float],
    tolerance_mm: float,
) -> ClassScores:
    around = [found[value] for value in label.values for found in boxes if value in found]
    if not around:
        return _without_scores(label.name, "both", volume=0.0)
    box = _union(around, reference.shape)
    skipped = None if ignored is None else ignored[box]
    first, second = (_mask(array[box], label.values, skipped) for array in (reference, prediction))
    shared = int(np.count_nonzero(first & second))
    sizes = int(np.count_nonzero(first)), int(np.count_nonzero(second))
    if not any(sizes):
        return _without_scores(label.name, "both", volume=0.0)
    forward, backward = surface_distances(first, second, spacing, ignored=skipped)
    millilitres = math.prod(spacing) / 1000
    return ClassScores(
        label=label.name,
        empty="reference" if not sizes[0] else "prediction" if not sizes[1] else "",
        dice=2 * shared / sum(sizes),
        iou=shared / (sum(sizes) - shared),
        precision=shared / max(sizes[1], 1),
        recall=shared / max(sizes[0], 1),
        reference_ml=sizes[0] * millilitres,
        prediction_ml=sizes[1] * millilitres,
        hd95=hd95(forward, backward),
        assd=assd(forward, backward),
        surface_dice=surface_dice(forward, backward, tolerance_mm),
        lesion_f1=lesion_f1(first, second),
    )


def _mask(array: np.ndarray, values: Sequence[int], ignored: np.ndarray | None) -> np.ndarray:
    mask = array == values[0] if len(values) == 1 else np.isin(array, values)
    return mask if ignored is None else mask & ~ignored


def _without_scores(name: str, empty: str, *, volume: float) -> ClassScores:
    nan = float("nan")
    return ClassScores(
        label=name,
        empty=empty,
        dice=nan,
        iou=nan,
        precision=nan,
        recall=nan,
        reference_ml=volume,
        prediction_ml=volume,
        hd95=nan,
        assd=nan,
        surface_dice=nan,
        lesion_f1=nan,
    )


def summarize(
    cases: Sequence[CaseScores],
    labels: Labels,
    *,
    tolerance_mm: float = 2.0,
    missing: Sequence[str] = (),
    faults: Sequence[str] = (),
) -> EvaluationReport:
    """Means over cases per label; the foreground Dice is the mean of the labels' means.

    A case whose figure is NaN stays out of that mean only; the report counts the empty cases beside it.
    """
    mean = tuple(_mean_scores(name, cases) for name in labels.names)
    return EvaluationReport(
        foreground_dice=_mean(scores.dice for scores in mean),
        surface_tolerance_mm=tolerance_mm,
        mean=mean,
        cases=tuple(sorted(cases, key=lambda case: case.id)),
        missing=tuple(sorted(missing)),
        faults=tuple(sorted(faults)),
    )


def case_dice(case: CaseScores) -> float:
    """The mean over the labels of a case, to tell good cases from bad ones; NaN if every label is empty in both."""
    return _mean(scores.dice for scores in case.classes)


def _mean_scores(name: str, cases: Sequence[CaseScores]) -> MeanScores:
    rows = [scores for case in cases for scores in case.classes if scores.label == name]

    def mean(figure: Callable[[ClassScores], float]) -> float:
        return _mean(figure(row) for row in rows)

    return MeanScores(
        label=name,
        cases=sum(row.empty != UNANNOTATED for row in rows),
        empty_both=sum(row.empty == "both" for row in rows),
        empty_reference=sum(row.empty == "reference" for row in rows),
        empty_prediction=sum(row.empty == "prediction" for row in rows),
        dice=mean(lambda row: row.dice),
        iou=mean(lambda row: row.iou),
        precision=mean(lambda row: row.precision),
        recall=mean(lambda row: row.recall),
        hd95=mean(lambda row: row.hd95),
        assd=mean(lambda row: row.assd),
        surface_dice=mean(lambda row: row.surface_dice),
        lesion_f1=mean(lambda row: row.lesion_f1),
    )


def _mean(values: Iterator[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else float("nan")
