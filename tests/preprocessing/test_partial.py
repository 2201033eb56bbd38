"""What is known of the voxels of a partial case survives being written into them."""

from __future__ import annotations

import numpy as np
import pytest

from autoseg import records
from autoseg.preprocessing.partial import mark_ambiguous
from autoseg.schema.dataset import CaseFiles, Label, Labels

ORGANS = tuple(Label(name=name, values=(value,)) for name, value in (("liver", 3), ("kidney", 17), ("spleen", 255)))
PLAIN = Labels(foreground=ORGANS, ignore=9, partial=(("kidney",), ("liver", "spleen")))
REGIONS = Labels(
    foreground=(Label(name="whole", values=(1, 2)), Label(name="core", values=(2,))),
    regions_class_order=(1, 2),
    partial=(("core",), ("whole",)),
)


@pytest.mark.parametrize("labels", [PLAIN, REGIONS])
def test_each_voxel_keeps_what_it_may_be(labels: Labels) -> None:
    count = len(labels.leaves)
    for annotated in labels.partial:
        members = [set(labels.internal(label)) for label in labels.foreground if label.name in annotated]
        marked = mark_ambiguous(np.arange(count), labels, annotated)
        for index, code in enumerate(marked.tolist()):
            possible = {code} if code < count else set(labels.ambiguous[code - count - 1])
            # As brute force: those that agree with every annotated label.
            assert possible == {
                other for other in range(count) if all((other in part) == (index in part) for part in members)
            }


def test_what_is_outside_a_mask_or_ignored_stays() -> None:
    label = np.array([[-1, 0, 2, 4]], dtype=np.int16)
    marked = mark_ambiguous(label, PLAIN, ("kidney",))
    assert marked.dtype == np.int16
    assert marked[0, [0, 2, 3]].tolist() == [-1, 2, 4]
    assert mark_ambiguous(label[:, 1:].astype(np.uint8), PLAIN, ("kidney",)).dtype == np.uint8


def test_records_of_whole_cases_are_as_they_were_before_there_were_partial_ones() -> None:
    whole = Labels(foreground=ORGANS)
    assert "partial" not in records.to_json(whole)
    assert "partial" not in repr(whole)
    assert "annotated" not in records.to_json(CaseFiles(id="a", images=("b",)))
    for record in (whole, PLAIN, CaseFiles(id="a", images=("b",), annotated=("liver",))):
        assert records.from_json(type(record), records.to_json(record)) == record
