from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import find_objects

from autoseg.evaluation import boxes as module
from autoseg.evaluation.boxes import value_boxes


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "i4", "i8", "u8", ">i2"])
@pytest.mark.parametrize("shape", [(40,), (9, 20), (5, 7, 11), (1, 6, 6)])
def test_boxes_are_those_of_find_objects(kind: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 127, shape).astype(kind)
    if array.dtype.kind == "i":
        array.flat[::7] = np.iinfo(array.dtype).min
        array.flat[1] = -1
    if array.dtype.itemsize > 1:
        array.flat[2], array.flat[3], array.flat[5] = 300, 301, 9000
    array.flat[6] = min(255, np.iinfo(array.dtype).max)
    found = find_objects(np.maximum(array, 0).astype(np.int64), max_label=9000)
    boxes = value_boxes(array)
    assert list(boxes) == np.unique(array).tolist()
    assert {value: box for value, box in boxes.items() if 0 < value <= 9000} == {
        value: box for value, box in enumerate(found, start=1) if box
    }


@pytest.mark.parametrize("block", [1, 50, 10_000])
def test_runs_across_rows_and_planes_and_blocks_have_the_box_of_all_their_voxels(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    rng = np.random.default_rng(1)
    array = np.zeros((6, 5, 7), np.uint8)
    flat = array.reshape(-1)
    for value in range(1, 40):
        start = int(rng.integers(flat.size))
        flat[start : start + int(rng.integers(1, 60))] = value
    expected = {}
    for value in np.unique(array).tolist():
        where = np.argwhere(array == value)
        expected[value] = tuple(
            slice(*ends) for ends in zip(where.min(0).tolist(), (where.max(0) + 1).tolist(), strict=True)
        )
    assert value_boxes(array) == expected


def test_a_mask_holds_the_integers_zero_and_one() -> None:
    mask = np.zeros((3, 4), bool)
    mask[1, 2] = True
    assert value_boxes(mask) == {0: (slice(0, 3), slice(0, 4)), 1: (slice(1, 2), slice(2, 3))}
    assert value_boxes(np.zeros((0, 4), np.uint8)) == {}
