"""When the plan says that a target is tiny, and what it counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoseg.planning.tiny import tiny_targets
from autoseg.schema.dataset import CaseFiles, DatasetSpec, Label, Labels
from autoseg.schema.fingerprint import CaseFingerprint, ClassCount, Fingerprint

NAMES = ("organ", "speck")


def measured(*voxels: tuple[int, int]) -> tuple[DatasetSpec, Fingerprint]:
    """Cases of a million voxels, with so many of organ and speck."""
    cases = tuple(
        CaseFingerprint(
            id=f"case {index}",
            shape=(100, 100, 200),
            cropped_shape=(100, 100, 100),
            spacing=(1.0, 1.0, 1.0),
            classes=tuple(
                ClassCount(name=name, voxels=count, components=1) for name, count in zip(NAMES, counts, strict=True)
            ),
            intensities=(),
        )
        for index, counts in enumerate(voxels)
    )
    spec = DatasetSpec(
        name="Dataset001_Specks",
        channels=("CT",),
        labels=Labels(foreground=tuple(Label(name=name, values=(i,)) for i, name in enumerate(NAMES, start=1))),
        file_ending=".nii.gz",
        cases=tuple(CaseFiles(id=case.id, images=("x",)) for case in cases),
    )
    return spec, Fingerprint(dataset=spec.name, content_hash="", cases=cases, intensities=())


def test_a_tiny_target_is_named_with_its_figures() -> None:
    (sentence,) = tiny_targets(*measured((40_000, 100), (50_000, 0), (60_000, 300), (0, 0)))
    assert sentence.startswith("speck is tiny: 0.01% of the voxels, 200 of them in the median case, and 2 of 4 cases")
    assert "autoseg_train --loss small_objects" in sentence


@pytest.mark.parametrize("counts", [(600, 600), (40_000, 501), (40_000, 0)])
def test_others_are_not(counts: tuple[int, int]) -> None:
    assert tiny_targets(*measured(counts)) == ()


def test_cases_in_which_nobody_looked_do_not_make_it_rare() -> None:
    spec, fingerprint = measured((40_000, 900), (40_000, 0))
    assert tiny_targets(spec, fingerprint)
    first, second = spec.cases
    partial = replace(spec, cases=(first, replace(second, annotated=("organ",))))
    assert tiny_targets(partial, fingerprint) == ()
