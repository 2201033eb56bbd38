from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the field's name

from autoseg import records
from autoseg.errors import DatasetError
from autoseg.evaluation.lesions import lesion_f1
from autoseg.evaluation.metrics import case_scores, summarize
from autoseg.schema.dataset import Label, Labels
from autoseg.schema.report import CaseScores, EvaluationReport

OVERLAPS = ("dice", "iou", "precision", "recall", "surface_dice", "lesion_f1")


def plain_labels(*values: int, ignore: int | None = None) -> Labels:
    return Labels(foreground=tuple(Label(name=f"l{value}", values=(value,)) for value in values), ignore=ignore)


def blobs(seed: int, shape: tuple[int, int, int] = (10, 24, 22), classes: int = 3) -> np.ndarray:
    """A label map of soft random regions."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    fields = [gaussian_filter(rng.standard_normal(shape), 2.0) for _ in range(classes + 1)]
    return np.argmax(fields, axis=0).astype(np.uint8)


def test_overlaps_agree_with_simpleitk() -> None:
    reference, prediction = blobs(0), blobs(1)
    prediction[:5] = reference[:5]
    scores = case_scores(reference, prediction, plain_labels(1, 2, 3), (3.0, 1.0, 1.0), id="a")
    oracle = sitk.LabelOverlapMeasuresImageFilter()
    oracle.Execute(sitk.GetImageFromArray(prediction), sitk.GetImageFromArray(reference))
    for value, row in zip((1, 2, 3), scores.classes, strict=True):
        assert row.dice == pytest.approx(oracle.GetDiceCoefficient(value))
        assert row.iou == pytest.approx(oracle.GetJaccardCoefficient(value))
        assert row.recall == pytest.approx(1 - oracle.GetFalseNegativeError(value))
        assert row.precision == pytest.approx(1 - oracle.GetFalseDiscoveryRate(value))
        assert row.reference_ml == pytest.approx(np.sum(reference == value) * 3.0 / 1000)
        assert row.prediction_ml == pytest.approx(np.sum(prediction == value) * 3.0 / 1000)


def test_distances_of_a_case_use_its_spacing_and_survive_cropping() -> None:
    reference = np.zeros((40, 50, 60), np.int16)
    reference[10, 20, 30] = 300
    prediction = np.zeros_like(reference)
    prediction[12, 20, 34] = 300
    (row,) = case_scores(reference, prediction, plain_labels(300), (2.0, 1.0, 0.75), id="a").classes
    assert row.hd95 == row.assd == pytest.approx(5.0)
    assert (row.dice, row.surface_dice, row.lesion_f1) == (0, 0, 0)


def test_empty_masks_follow_the_rule_of_the_schema() -> None:
    reference = np.zeros((3, 4, 5), np.uint8)
    prediction = np.zeros_like(reference)
    reference[1, 1, 1] = 1
    prediction[1, 1, 1] = 2
    only_reference, only_prediction, neither = case_scores(
        reference, prediction, plain_labels(1, 2, 3), (1, 1, 1), id="a"
    ).classes
    assert (only_reference.empty, only_prediction.empty, neither.empty) == ("prediction", "reference", "both")
    for row in (only_reference, only_prediction):
        assert [getattr(row, name) for name in OVERLAPS] == [0] * 6
        assert math.isnan(row.hd95)
        assert math.isnan(row.assd)
    assert all(math.isnan(getattr(neither, name)) for name in (*OVERLAPS, "hd95", "assd"))
    assert neither.reference_ml == neither.prediction_ml == 0


def test_a_perfect_prediction_is_perfect_in_everything() -> None:
    reference = blobs(3)
    for row in case_scores(reference, reference.copy(), plain_labels(1, 2, 3), (2.0, 1.0, 1.0), id="a").classes:
        assert [getattr(row, name) for name in OVERLAPS] == [1] * 6
        assert row.hd95 == row.assd == 0


def test_a_region_scores_like_its_integers_merged() -> None:
    reference, prediction = blobs(4), blobs(5)
    regions = Labels(
        foreground=(Label(name="whole", values=(1, 2, 3)), Label(name="core", values=(2, 3))),
        regions_class_order=(1, 2),
    )
    scores = case_scores(reference, prediction, regions, (1.5, 1.0, 1.0), id="a")
    for row, values in zip(scores.classes, ((1, 2, 3), (2, 3)), strict=True):
        merged = [np.isin(array, values).astype(np.uint8) for array in (reference, prediction)]
        (expected,) = case_scores(*merged, plain_labels(1), (1.5, 1.0, 1.0), id="a").classes
        assert [getattr(row, name) for name in (*OVERLAPS, "hd95", "assd")] == [
            getattr(expected, name) for name in (*OVERLAPS, "hd95", "assd")
        ]


def test_ignored_voxels_do_not_change_any_score() -> None:
    rng = np.random.default_rng(6)
    reference, prediction = blobs(6), blobs(7)
    reference[:, 12:] = 9
    first = case_scores(reference, prediction, plain_labels(1, 2, 3, ignore=9), (1, 1, 1), id="a")
    prediction[:, 12:] = rng.integers(0, 4, prediction[:, 12:].shape)
    second = case_scores(reference, prediction, plain_labels(1, 2, 3, ignore=9), (1, 1, 1), id="a")
    assert first == second
    shared = np.sum((reference == 1) & (prediction == 1))
    sizes = np.sum(reference == 1) + np.sum(prediction[:, :12] == 1)
    assert first.classes[0].dice == pytest.approx(2 * shared / sizes)


def test_a_picture_is_measured_along_its_contour() -> None:
    reference, prediction = np.zeros((2, 1, 60, 60), np.uint8)
    reference[0, 10:50, 10:50] = 1
    prediction[0, 15:45, 15:45] = 1
    (row,) = case_scores(reference, prediction, plain_labels(1), (1.0, 0.5, 0.5), id="a").classes
    # From the inner square outwards every voxel is 5 pixels = 2.5 mm away; only corners of the outer one are farther.
    corner = 2.5 * math.sqrt(2)
    assert 2.5 <= row.hd95 < corner
    assert row.surface_dice == 0
    assert row.assd > 2.5


def test_shapes_and_types_that_do_not_fit_are_refused() -> None:
    labels = plain_labels(1)
    with pytest.raises(DatasetError, match=r"case7.*\(1, 2, 3\).*\(1, 2, 4\)"):
        case_scores(np.zeros((1, 2, 3), int), np.zeros((1, 2, 4), int), labels, (1, 1, 1), id="case7")
    with pytest.raises(DatasetError, match="prediction holds float64"):
        case_scores(np.zeros((1, 2, 3), int), np.zeros((1, 2, 3)), labels, (1, 1, 1), id="case7")


def test_lesions_count_as_found_when_one_voxel_is_shared() -> None:
    reference, prediction = np.zeros((2, 1, 1, 20), bool)
    reference[..., [1, 2, 5, 6, 9]] = True  # three lesions
    prediction[..., [2, 3, 12, 15]] = True  # finds the first, and two that are none
    assert lesion_f1(reference, prediction) == pytest.approx(2 * 1 / (2 * 1 + 2 + 2))


def test_lesions_that_touch_at_a_corner_are_one() -> None:
    reference, prediction = np.zeros((2, 4, 4, 4), bool)
    reference[0, 0, 0] = reference[1, 1, 1] = True
    prediction[0, 0, 0] = True
    assert lesion_f1(reference, prediction) == 1.0


def test_means_leave_out_what_is_undefined_and_count_the_empty() -> None:
    def case(name: str, reference: list[int], prediction: list[int]) -> CaseScores:
        arrays = (np.array(values, np.uint8).reshape(1, 1, -1) for values in (reference, prediction))
        return case_scores(*arrays, plain_labels(1, 2, 3), (1, 1, 1), id=name)

    cases = [
        case("b", [1, 1, 0, 0], [1, 1, 0, 0]),
        case("a", [1, 1, 0, 2], [1, 0, 0, 0]),
        case("c", [0, 0, 0, 0], [1, 0, 0, 0]),
    ]
    report = summarize(cases, plain_labels(1, 2, 3), tolerance_mm=1.0, missing=["z", "y"])
    one, two, three = report.mean
    assert one.dice == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert (one.cases, one.empty_both, one.empty_reference, one.empty_prediction) == (3, 0, 1, 0)
    assert one.hd95 == pytest.approx((0 + 0.95) / 2)
    assert (two.dice, two.empty_both, two.empty_prediction) == (0, 2, 1)
    assert math.isnan(three.dice)
    assert report.foreground_dice == pytest.approx((5 / 9 + 0) / 2)
    assert [scores.id for scores in report.cases] == ["a", "b", "c"]
    assert report.missing == ("y", "z")
    assert records.to_json(records.from_json(EvaluationReport, records.to_json(report))) == records.to_json(report)
