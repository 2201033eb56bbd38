from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import find_objects

from autoseg.evaluation.boxes import bounding_boxes


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
    values = [*range(1, 320), 9000]
    found = find_objects(np.maximum(array, 0).astype(np.int64), max_label=9000)
    assert bounding_boxes(array, values) == {value: found[value - 1] for value in values if found[value - 1]}


def test_a_mask_holds_the_integer_one() -> None:
    mask = np.zeros((3, 4), bool)
    mask[1, 2] = True
    assert bounding_boxes(mask, [1, 2]) == {1: (slice(1, 2), slice(2, 3))}
    assert bounding_boxes(np.zeros((0, 4), np.uint8), [1]) == {}
