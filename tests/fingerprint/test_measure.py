"""Exact per case, equal weight per case in the pool, and never a voxel of the ignore label."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from autoseg.fingerprint import case_stats, content_hash, merge
from autoseg.fingerprint.measure import SKETCH
from autoseg.io.volume import Geometry, Volume
from autoseg.schema.dataset import CaseFiles, DatasetSpec, Label, Labels

LABELS = Labels(foreground=(Label(name="a", values=(1,)), Label(name="b", values=(5,))), ignore=9)


def volume(data: np.ndarray) -> Volume:
    return Volume(data, Geometry.upright((3.0, 1.0, 0.5)))


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.int16, np.uint16, np.uint8])
def test_a_case_agrees_with_numpy(kind: type) -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(50, 20, (2, 12, 30, 31)).clip(0 if np.dtype(kind).kind == "u" else None).astype(kind)
    label = rng.integers(0, 4, (12, 30, 31))
    figures = case_stats("x", volume(data), label, LABELS).figures
    inside = (label == 1) | (label == 2)
    for channel, found in zip(data, figures.intensities, strict=True):
        values = channel[inside].astype(np.float64)
        assert found.count == inside.sum()
        assert found.mean == pytest.approx(values.mean(), rel=1e-6)
        assert found.std == pytest.approx(values.std(), rel=1e-6)
        expected = np.percentile(values, (0.5, 50, 99.5))
        assert (found.percentile_00_5, found.median, found.percentile_99_5) == pytest.approx(expected, rel=1e-6)
        assert (found.minimum, found.maximum) == (values.min(), values.max())
    assert figures.shape == figures.cropped_shape == (12, 30, 31)
    assert figures.spacing == (3.0, 1.0, 0.5)


def test_voxels_and_components_are_counted_per_label() -> None:
    label = np.zeros((1, 10, 10), dtype=np.uint8)
    label[0, 1:3, 1:3] = 1
    label[0, 6:8, 6:9] = 1
    label[0, 4, 4] = 3  # ignored
    counts = case_stats("x", volume(np.ones((1, 1, 10, 10))), label, LABELS).figures.classes
    assert [(item.name, item.voxels, item.components) for item in counts] == [("a", 10, 2), ("b", 0, 0)]


def test_labels_that_are_made_of_several_integers_are_counted_as_one() -> None:
    labels = Labels(
        foreground=(Label(name="whole", values=(1, 2)), Label(name="core", values=(2,))), regions_class_order=(1, 2)
    )
    label = np.zeros((3, 10, 10), dtype=np.uint8)
    label[1, 2:5, 2:5] = 1
    label[1, 3, 3] = label[1, 4, 4] = label[1, 8, 8] = 2
    counts = case_stats("x", volume(np.ones((1, 3, 10, 10))), label, labels).figures.classes
    assert [(item.name, item.voxels, item.components) for item in counts] == [("whole", 10, 2), ("core", 3, 2)]


def test_the_crop_is_the_box_of_what_is_not_zero() -> None:
    data = np.zeros((2, 8, 9, 10), dtype=np.int16)
    data[0, 2:5, 3, 4] = 7
    data[1, 3, 3:6, 4:9] = -1
    figures = case_stats("x", volume(data), np.zeros((8, 9, 10), np.uint8), LABELS).figures
    assert figures.cropped_shape == (3, 3, 5)
    assert figures.intensities[0].count == 0
    assert math.isnan(figures.intensities[0].mean)


def test_the_pool_weighs_cases_alike_whatever_their_size() -> None:
    small = np.full((1, 1, 2, 2), 10, dtype=np.int16)
    large = np.full((1, 40, 50, 50), 30, dtype=np.int16)
    stats = [case_stats("x", volume(data), np.ones(data.shape[1:], np.uint8), LABELS) for data in (small, large)]
    pooled = merge(stats, dataset="D", content_hash="h").intensities[0]
    assert pooled.mean == 20
    assert pooled.std == 10
    assert (pooled.minimum, pooled.maximum, pooled.count) == (10, 30, 4 + 100_000)


def test_pooled_percentiles_are_those_of_all_voxels_when_cases_have_equally_many() -> None:
    rng = np.random.default_rng(1)
    cases = [rng.gamma(2.0, 100.0 + 10 * i, (1, 30, 40, 40)).astype(np.float32) for i in range(6)]
    stats = [case_stats("x", volume(data), np.ones(data.shape[1:], np.uint8), LABELS) for data in cases]
    assert all(len(item.sketches[0]) == SKETCH for item in stats)
    pooled = merge(stats, dataset="D", content_hash="h").intensities[0]
    everything = np.concatenate([data.ravel() for data in cases]).astype(np.float64)
    expected = np.percentile(everything, (0.5, 50, 99.5))
    found = (pooled.percentile_00_5, pooled.median, pooled.percentile_99_5)
    assert found == pytest.approx(expected, rel=0.02)
    assert pooled.mean == pytest.approx(everything.mean(), rel=1e-6)
    assert pooled.std == pytest.approx(everything.std(), rel=1e-6)


def test_many_unequal_cases_are_pooled_by_weight_in_the_memory_of_one_number_per_value() -> None:
    rng = np.random.default_rng(2)
    sizes = [20 if number % 3 else 20_000 for number in range(150)]
    cases = [rng.normal(float(rng.integers(-300, 300)), 50.0, (1, 1, 1, size)).astype(np.float32) for size in sizes]
    stats = [case_stats("x", volume(data), np.ones(data.shape[1:], np.uint8), LABELS) for data in cases]
    tracemalloc.start()
    pooled = merge(stats, dataset="D", content_hash="h").intensities[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    values = np.concatenate([data.ravel() for data in cases]).astype(np.float64)
    weights = np.concatenate([np.full(size, 1 / size) for size in sizes])
    order = np.argsort(values)
    below = np.cumsum(weights[order]) / len(cases)
    expected = values[order][np.searchsorted(below, (0.005, 0.5, 0.995))]
    assert (pooled.percentile_00_5, pooled.median, pooled.percentile_99_5) == pytest.approx(expected, abs=2.0)
    # All sketches together are four bytes per value: sorting copies with their weights took ten times that.
    assert peak < 24 * sum(len(item.sketches[0]) for item in stats)


def test_the_hash_follows_the_files(tmp_path: Path) -> None:
    image, label = tmp_path / "a_0000.nii.gz", tmp_path / "a.nii.gz"
    image.write_bytes(b"1")
    label.write_bytes(b"2")

    def spec(channel: str) -> DatasetSpec:
        case = CaseFiles(id="a", images=(str(image),), label=str(label))
        return DatasetSpec(name="D", channels=(channel,), labels=LABELS, file_ending=".nii.gz", cases=(case,))

    before = content_hash(spec("CT"))
    assert content_hash(spec("CT")) == before
    assert content_hash(spec("MRI")) != before
    label.write_bytes(b"22")
    assert content_hash(spec("CT")) != before


@pytest.mark.parametrize(
    ("ending", "header", "companion"),
    [
        (".mhd", "NDims = 3\nElementDataFile = x.raw\n", "x.raw"),
        (".mhd", "NDims = 3\nElementDataFile = LIST\ny0.raw\nx.raw\n", "x.raw"),
        (".nhdr", "NRRD0004\n# made by hand\ndata file: x.raw.gz\n", "x.raw.gz"),
        (".nhdr", "NRRD0004\ndata file: x%02d.raw 1 3 1\n", "x02.raw"),
        (".tif", "", "x.json"),
        (".tif", "", "x_0000.json"),
    ],
)
def test_the_hash_sees_a_companion_file_that_is_written_again(
    tmp_path: Path, ending: str, header: str, companion: str
) -> None:
    image = tmp_path / f"x_0000{ending}"
    image.write_text(header)
    cases = (CaseFiles(id="x", images=(str(image),), label=None),)
    dataset = DatasetSpec(name="D", channels=("CT",), labels=LABELS, file_ending=ending, cases=cases)
    found = [content_hash(dataset)]
    for size in (3, 4):
        (tmp_path / companion).write_bytes(b"x" * size)
        found.append(content_hash(dataset))
    assert len(set(found)) == 3
    (tmp_path / "other.raw").write_bytes(b"x")
    assert content_hash(dataset) == found[-1]
