"""Patches from the preprocessed store, in batches: read in this process or by worker processes.

The reading itself is batchgenerators' ``SlimDataLoaderBase`` behind its single- or multi-threaded augmenter. Workers
take every n-th step and are asked in turn, and what is drawn depends on the step alone, so their number changes
nothing. Only samples that are rotated or zoomed read more than their patch. In this process each sample is read when
its turn in the batch has come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, overload

import numpy as np
from batchgenerators.dataloading.data_loader import SlimDataLoaderBase
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

from autoseg.augment import Policy, Spatial, draw_spatial, source_extent
from autoseg.errors import DatasetError, WorkerError
from autoseg.io.store import CaseStore, StoredCase
from autoseg.parallel import become_worker
from autoseg.training.previous import with_previous
from autoseg.training.sampling import Sampling, Stream, is_foreground_sample, patch_start, shifted

ANY_ANNOTATED = -1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One patch as read: image (c, *extent) float32, label (1, *extent), and how to turn and cut it.

    The label is uint8; or int8 or int16, with -1 outside the mask and outside the image. ``extent`` is the patch size;
    or what ``spatial`` needs of the case, where it rotates or zooms. ``centre`` is then the centre of the patch in it,
    in voxels along the axes that turn; and ``padded`` if, along those, both end in a voxel of the outside wherever the
    patch may reach further. In the second stage of a cascade the label has a second channel, the segmentation of the
    first.
    """

    image: np.ndarray
    label: np.ndarray
    spatial: Spatial | None
    centre: tuple[float, ...] | None = None
    padded: bool = False


@dataclass(frozen=True, kw_only=True)
class PatchSource:
    """Where samples come from and how large they are. ``policy`` None means no augmentation (validation).

    ``first_sample`` and ``local_batch`` say which part of the batch this process reads (several GPUs). ``previous``
    are the segmentations of the stage before, of a cascade, by case.
    """

    store: str
    ids: tuple[str, ...]
    num_labels: int
    patch_size: tuple[int, ...]
    batch_size: int
    stream: Stream
    policy: Policy | None
    first_sample: int = 0
    local_batch: int | None = None
    previous: Mapping[str, Path] | None = None
    sampling: Sampling = field(default_factory=Sampling)


class Unread(Sequence[Sample]):
    """The samples of one step, each read when it is asked for: whoever takes one at a time never holds two."""

    def __init__(self, read: Callable[[int], Sample], samples: range) -> None:
        self._read, self._samples = read, samples

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Unread: ...

    def __getitem__(self, index: int | slice) -> Sample | Unread:
        chosen = self._samples[index]
        return Unread(self._read, chosen) if isinstance(chosen, range) else self._read(chosen)


class PatchLoader(SlimDataLoaderBase):
    """Yields ``{"samples": samples}`` for step ``first_step``, ``first_step + 1``, ...

    The samples are a list, or ``Unread`` if there are no worker processes that would have to send them.
    """

    def __init__(self, source: PatchSource, *, first_step: int = 0, workers: int = 0) -> None:
        if not source.ids:
            raise DatasetError("there are no cases to take patches from", hint="check the splits of this fold")
        super().__init__(source, source.batch_size, number_of_threads_in_multithreaded=max(workers, 1))
        self._source = source
        self._first_step = first_step
        self._workers = workers
        self._calls = 0
        self._store: CaseStore | None = None
        self._holders: dict[int, list[str]] | None = None

    def set_thread_id(self, thread_id: int) -> None:
        """Called in each worker process as it starts."""
        become_worker()
        super().set_thread_id(thread_id)

    def generate_train_batch(self) -> dict[str, Any]:
        step = self._first_step + self.thread_id + self._calls * max(self._workers, 1)
        self._calls += 1
        source = self._source
        last = source.first_sample + (source.local_batch or source.batch_size)
        samples = Unread(partial(self._sample, step), range(source.first_sample, last))
        return {"samples": list(samples) if self._workers else samples}

    def _sample(self, step: int, index: int) -> Sample:
        source = self._source
        if self._store is None:
            # Opened here and not in __init__: handles of the parent are of no use in a forked worker.
            self._store = CaseStore(source.store)
        rng = source.stream.generator(step, index)
        wanted = is_foreground_sample(step, index, source.batch_size, share=source.sampling.share)
        ids: Sequence[str] = source.ids
        head = None
        if wanted and source.sampling.balanced:
            head, ids = self._label_to_show(self._store, rng)
        case = self._store.open(ids[int(rng.integers(len(ids)))])
        if source.previous is not None:
            case = with_previous(case, source.previous)
        sample = draw_sample(case, source, rng, foreground=wanted, head=head)
        self._store.was_read(case)
        return sample

    def _label_to_show(self, store: CaseStore, rng: np.random.Generator) -> tuple[int | None, Sequence[str]]:
        """A label that is drawn uniformly among those of the fold, and the cases that have it."""
        if self._holders is None:
            heads = {name: store.open(name).heads for name in self._source.ids}
            present = sorted({head for found in heads.values() for head in found if head >= 0})
            self._holders = {head: [name for name, found in heads.items() if head in found] for head in present}
        if not self._holders:
            return None, self._source.ids
        head = list(self._holders)[int(rng.integers(len(self._holders)))]
        return head, self._holders[head]


def draw_sample(
    case: StoredCase, source: PatchSource, rng: np.random.Generator, *, foreground: bool, head: int | None = None
) -> Sample:
    """Draw position and spatial transform, and read just the voxels that these need; ``head`` is what to show."""
    patch = source.patch_size
    around = _voxel_to_show(case, source.num_labels, rng, foreground=foreground, head=head)
    spatial = draw_spatial(source.policy, rng) if source.policy is not None else None
    extent = source_extent(spatial, patch) if spatial is not None else patch
    flat = len(patch) == 2
    shape = tuple(case.image.shape[1:])
    full_patch = (1, *patch) if flat else patch
    full_extent = (1, *extent) if flat else extent
    if foreground and around is not None and source.sampling.offset:
        around = shifted(around, full_patch, source.sampling.offset, rng)
    start = patch_start(shape, full_patch, rng, around=around)
    box = []
    for first, size, read in zip(start, full_patch, full_extent, strict=True):
        low = first - (read - size) // 2
        box.append([low, low + read])
    centre = None
    if spatial is not None and not spatial.identity:
        box, centre = _within(box, shape, turning=len(spatial.matrix))
    image, label = read_box(case, box)
    if flat:
        image, label = image[:, 0], label[:, 0]
    return Sample(image=image, label=label, spatial=spatial, centre=centre, padded=centre is not None)


def _within(box: list[list[int]], shape: tuple[int, ...], *, turning: int) -> tuple[list[list[int]], tuple[float, ...]]:
    """The part of a box in the image and one voxel around it, along the last axes, and where its centre is in that."""
    still, turned = box[:-turning], box[-turning:]
    part = [[max(start, -1), min(stop, size + 1)] for size, (start, stop) in zip(shape[-turning:], turned, strict=True)]
    centre = [(start + stop - 1) / 2 - first for (start, stop), (first, _) in zip(turned, part, strict=True)]
    return still + part, tuple(centre)


def read_box(case: StoredCase, box: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Image (c, *extent) float32 and label (1, *extent), as stored, in a box of [start, stop) per axis.

    The box meets the case; outside of it the image is 0 and the label, which is int8 or int16 then, -1.
    """
    shape = case.image.shape[1:]
    inside = [slice(max(start, 0), min(stop, length)) for length, (start, stop) in zip(shape, box, strict=True)]
    part = (slice(None), *inside)
    extent = tuple(stop - start for start, stop in box)
    if all(within.stop - within.start == length for within, length in zip(inside, extent, strict=True)):
        return case.image[part], case.label[part]
    place = tuple(slice(one.start - low, one.stop - low) for one, (low, _) in zip(inside, box, strict=True))
    # As outside the mask of a masked normalisation; make_batch turns it into background.
    label = case.label[part]
    # Augmentation takes half the time for bytes.
    kind = np.int8 if label.dtype.itemsize == 1 and label.max() <= np.iinfo(np.int8).max else np.int16
    framed = np.full((len(label), *extent), -1, dtype=kind)
    framed[(slice(None), *place)] = label
    image = np.zeros((case.image.shape[0], *extent), dtype=np.float32)
    # One after the other: not all are in memory twice.
    for channel, out in enumerate(image):
        out[place] = case.image[(slice(channel, channel + 1), *inside)][0]
    return image, framed


def _voxel_to_show(
    case: StoredCase, num_labels: int, rng: np.random.Generator, *, foreground: bool, head: int | None = None
) -> np.ndarray | None:
    """A voxel (z, y, x) that must be in the patch: of ``head``, else of a label chosen among those present, or None.

    With an ignore label every other sample is centred on an annotated voxel, so that no step sees nothing to learn.
    """
    if foreground:
        heads = range(num_labels) if head is None else (head,)
        present = [index for index in heads if len(case.locations(index))]
        if present:
            voxels = case.locations(present[int(rng.integers(len(present)))])
            return np.asarray(voxels[int(rng.integers(len(voxels)))])
    annotated = case.locations(ANY_ANNOTATED)
    if len(annotated):
        return np.asarray(annotated[int(rng.integers(len(annotated)))])
    return None


@contextmanager
def batches(source: PatchSource, *, first_step: int = 0, workers: int = 0) -> Iterator[Iterator[Sequence[Sample]]]:
    """An endless iterator over batches; its worker processes end with the context.

    Raises:
        WorkerError: a worker died (from the iterator).
    """
    loader = PatchLoader(source, first_step=first_step, workers=workers)
    if workers == 0:
        yield map(itemgetter("samples"), SingleThreadedAugmenter(loader, None))
        return
    augmenter = MultiThreadedAugmenter(loader, None, workers, num_cached_per_queue=2)
    try:
        yield _watched(augmenter)
    finally:
        augmenter._finish()


def _watched(augmenter: MultiThreadedAugmenter) -> Iterator[Sequence[Sample]]:
    while True:
        try:
            batch: dict[str, list[Sample]] = next(augmenter)
        except RuntimeError as error:
            raise WorkerError(
                "a worker that loads patches died, most likely for want of memory",
                hint="start again with fewer --workers (0 loads in the main process); training goes on where it was",
            ) from error
        # Not kept here: while the next batch is read, nobody needs this one.
        yield batch.pop("samples")
