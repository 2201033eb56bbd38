"""Foreground patches by name: which label, which case, and where in the patch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from autoseg.cli.options import options
from autoseg.io.store import CaseStore
from autoseg.schema.settings import TrainSettings
from autoseg.training.data import PatchSource, batches
from autoseg.training.sampling import (
    SAMPLINGS,
    TRAIN,
    Sampling,
    Stream,
    is_foreground_sample,
    patch_start,
    shifted,
)

SHAPE = (20, 20, 20)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CaseStore:
    """Nine cases with the common label alone, one with the rare one as well."""
    made = CaseStore(tmp_path_factory.mktemp("store"))
    made.begin("rare")
    for index in range(10):
        label = np.zeros((1, *SHAPE), np.uint8)
        label[0, 5:8, 5:8, 5:8] = 1
        if index == 0:
            label[0, 15, 15, 15] = 2
        image = np.full((1, *SHAPE), float(index), np.float32)
        locations = {head: np.argwhere(label[0] == head + 1) for head in (0, 1)}
        made.write_case(f"case {index}", image, label, {}, locations, (6, 6, 6))
    return made


def source(store: CaseStore, sampling: Sampling) -> PatchSource:
    return PatchSource(
        store=str(store.root),
        ids=store.ids(),
        num_labels=2,
        patch_size=(7, 7, 7),
        batch_size=4,
        stream=Stream(seed=0, fold="0", kind=TRAIN),
        policy=None,
        sampling=sampling,
    )


def shown(store: CaseStore, sampling: Sampling, *, steps: int = 60) -> Counter[int]:
    """How many patches hold which label (the highest in each)."""
    with batches(source(store, sampling)) as stream:
        return Counter(int(sample.label.max()) for _ in range(steps) for sample in next(stream))


def test_labels_are_balanced_over_cases(store: CaseStore) -> None:
    every = Sampling(share=1.0)
    usual, balanced = shown(store, every), shown(store, Sampling(share=1.0, balanced=True))
    # One case of ten has it, and shows it in half of its patches.
    assert usual[2] / usual.total() == pytest.approx(0.05, abs=0.04)
    assert balanced[2] / balanced.total() == pytest.approx(0.5, abs=0.08)
    assert usual[0] == balanced[0] == 0


def test_shares_of_a_batch() -> None:
    for share, counts in ((0.33, [1, 1, 1, 2]), (0.66, [1, 2, 3, 3]), (1.0, [2, 3, 4, 5])):
        found = [sum(is_foreground_sample(0, i, size, share=share) for i in range(size)) for size in (2, 3, 4, 5)]
        assert found == counts
    assert sum(is_foreground_sample(step, 0, 1, share=0.66) for step in range(300)) == 198


def test_a_shifted_patch_still_holds_its_voxel_wherever_that_is() -> None:
    rng = np.random.default_rng(0)
    places = []
    for index in range(500):
        voxel = rng.integers(*((0, 20) if index % 2 else (8, 12)), 3)
        start = patch_start(SHAPE, (8, 7, 1), rng, around=shifted(voxel, (8, 7, 1), 0.75, rng))
        inside = voxel - start
        assert ((inside >= 0) & (inside < (8, 7, 1))).all()
        if index % 2 == 0:
            places.append(tuple(inside))
    # Two voxels to either side of the middle, and the axis of one voxel stays.
    assert {place[0] for place in places} == {2, 3, 4, 5, 6}
    assert {place[1] for place in places} == {1, 2, 3, 4, 5}
    assert {place[2] for place in places} == {0}


def test_what_is_drawn_does_not_depend_on_the_number_of_workers(store: CaseStore) -> None:
    made = []
    for workers in (0, 2):
        with batches(source(store, SAMPLINGS["small_objects"]), workers=workers) as stream:
            made.append([sample.label for _ in range(4) for sample in next(stream)])
    assert all(np.array_equal(one, other) for one, other in zip(*made, strict=True))


def test_the_flag_offers_what_there_is() -> None:
    (flag,) = (option for option in options(TrainSettings) if option.name == "sampling")
    assert flag.choices == tuple(SAMPLINGS)
    assert SAMPLINGS["default"] == Sampling()
