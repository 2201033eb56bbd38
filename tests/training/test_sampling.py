"""Patches lie inside the image, a third of them shows foreground, and (seed, fold, step, sample) decides them."""

from __future__ import annotations

import numpy as np
import pytest

from autoseg.training.sampling import TRAIN, VALIDATION, Stream, is_foreground_sample, patch_start


def test_the_counts_of_the_peer_for_batches_of_two_and_more() -> None:
    counts = [sum(is_foreground_sample(0, index, size) for index in range(size)) for size in range(2, 13)]
    assert counts == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4]


def test_a_batch_of_one_shows_foreground_in_a_third_of_the_steps() -> None:
    assert sum(is_foreground_sample(step, 0, 1) for step in range(300)) == 99


def test_random_patches_cover_the_whole_image_evenly_and_never_leave_it() -> None:
    rng = np.random.default_rng(0)
    starts = np.array([patch_start((10, 7), (4, 7), rng) for _ in range(3000)])
    assert set(starts[:, 0]) == set(range(7))
    assert set(starts[:, 1]) == {0}
    counts = np.bincount(starts[:, 0])
    assert counts.min() > 0.75 * 3000 / 7


@pytest.mark.parametrize("voxel", [(0, 0), (5, 5), (9, 9)])
def test_a_foreground_patch_holds_its_voxel_and_stays_inside(voxel: tuple[int, int]) -> None:
    start = patch_start((10, 10), (4, 4), np.random.default_rng(0), around=np.array(voxel))
    for first, where in zip(start, voxel, strict=True):
        assert 0 <= first <= 6
        assert first <= where < first + 4


def test_a_small_image_sits_in_the_middle_of_its_patch() -> None:
    assert patch_start((4, 5), (8, 8), np.random.default_rng(0)) == (-2, -1)


def test_what_is_drawn_depends_on_seed_fold_kind_step_and_sample_alone() -> None:
    def draw(seed: int, fold: str, kind: int, step: int, sample: int) -> int:
        return int(Stream(seed=seed, fold=fold, kind=kind).generator(step, sample).integers(2**62))

    base = draw(0, "0", TRAIN, 5, 1)
    assert base == draw(0, "0", TRAIN, 5, 1)
    others = [draw(1, "0", TRAIN, 5, 1), draw(0, "1", TRAIN, 5, 1), draw(0, "0", VALIDATION, 5, 1)]
    others += [draw(0, "0", TRAIN, 6, 1), draw(0, "0", TRAIN, 5, 2)]
    assert len({base, *others}) == 6
