"""What is read is what the store holds, and padding where it ends."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from autoseg.augment import make_policy
from autoseg.io.store import CaseStore
from autoseg.training.data import PatchSource, batches, read_box
from autoseg.training.sampling import TRAIN, Stream
from tests.training.conftest import IDS, ball_case, ball_plan


@pytest.mark.parametrize(
    "box",
    [
        [[2, 9], [0, 20], [5, 6]],
        [[-3, 5], [4, 30], [-2, 24]],
        [[0, 18], [0, 20], [0, 22]],
        [[10, 20], [3, 5], [0, 9]],
    ],
)
def test_a_box_equals_numpys_padding(ball_store: CaseStore, box: list[list[int]]) -> None:
    image, label = read_box(ball_store.open("b"), box)
    whole_image, whole_label = ball_case(1)
    margin = 20
    inside = tuple(slice(start + margin, stop + margin) for start, stop in box)
    pad = [(0, 0), *[(margin, margin)] * 3]
    assert np.array_equal(image, np.pad(whole_image, pad)[(slice(None), *inside)])
    assert np.array_equal(label, np.pad(whole_label, pad, constant_values=-1)[(slice(None), *inside)])
    # Bytes suffice for a label where nothing is outside.
    fits = all(start >= 0 and stop <= length for (start, stop), length in zip(box, whole_image.shape[1:], strict=True))
    assert (image.dtype, label.dtype) == (np.float32, np.uint8 if fits else np.int8)


def source(store: CaseStore, *, augmented: bool) -> PatchSource:
    configuration = ball_plan().configurations[0]
    return PatchSource(
        store=str(store.root),
        ids=IDS,
        num_labels=2,
        patch_size=(12, 12, 12),
        batch_size=3,
        stream=Stream(seed=0, fold="0", kind=TRAIN),
        policy=make_policy(configuration, mirror_axes=(0,)) if augmented else None,
    )


def test_patches_are_somewhere_in_their_case(ball_store: CaseStore) -> None:
    windows = [
        np.lib.stride_tricks.sliding_window_view(ball_case(seed)[0][0], (12, 12, 12)) for seed in range(len(IDS))
    ]
    with batches(source(ball_store, augmented=False)) as stream:
        for _ in range(4):
            for sample in next(stream):
                corner = sample.image[0, 0, 0, 0]
                found = [one[tuple(place)] for one in windows for place in np.argwhere(one[..., 0, 0, 0] == corner)]
                assert any(np.array_equal(patch, sample.image[0]) for patch in found)
                assert sample.label.shape == (1, 12, 12, 12)


def test_samples_are_read_when_they_are_asked_for_and_not_kept(ball_store: CaseStore) -> None:
    with batches(source(ball_store, augmented=True)) as stream:
        samples = next(stream)
        assert len(samples) == 3
        first = samples[0]
        seen = weakref.ref(first)
        image = first.image
        del first
        assert seen() is None
        np.testing.assert_array_equal(samples[0].image, image)
        assert len(list(samples[1:])) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_same_batches_also_from_a_later_step(ball_store: CaseStore, workers: int) -> None:
    here = source(ball_store, augmented=True)
    with batches(here) as stream:
        alone = [next(stream) for _ in range(5)]
    with batches(here, first_step=2, workers=workers) as stream:
        helped = [next(stream) for _ in range(3)]
    for first, second in zip(alone[2:], helped, strict=True):
        for one, other in zip(first, second, strict=True):
            assert np.array_equal(one.image, other.image)
            assert np.array_equal(one.label, other.label)
            assert one.spatial is not None
            assert other.spatial is not None
            assert np.array_equal(one.spatial.matrix, other.spatial.matrix)
