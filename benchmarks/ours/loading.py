"""Read and augment batches as training does, in this process: CONFIGURATION of a prepared dataset, on the CPU."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from autoseg import records
from autoseg.augment import make_policy
from autoseg.io.store import CaseStore
from autoseg.schema.folders import PreparedFolder
from autoseg.schema.plan import Plan
from autoseg.training.data import PatchSource, batches, read_box
from autoseg.training.recipe import FOREGROUND_FRACTION
from autoseg.training.sampling import TRAIN, Stream
from autoseg.training.step import Kitchen, make_batch
from benchmarks.loading import Answer, Stopwatch, crop_boxes
from benchmarks.watch import report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("configuration")
    parser.add_argument("--batches", type=int, required=True)
    parser.add_argument("--warm", type=int, required=True, help="batches that are read ahead of the measured ones")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    source, kitchen = _recipe(PreparedFolder(asked.prepared), asked.configuration)
    answer = Answer(random_samples=round(source.batch_size * (1 - FOREGROUND_FRACTION)))
    clock = Stopwatch()
    batch = None
    with batches(source, workers=asked.workers) as stream, torch.no_grad():
        for step in range(asked.warm + asked.batches):
            with clock.running(step >= asked.warm):
                batch = image, label = make_batch(next(stream), kitchen, step=step, out=batch)
            answer.add(image.numpy(), label.numpy())
    answer.write(asked.out, _crops(source))
    samples = asked.batches * source.batch_size
    report(clock.seconds, processor_seconds=clock.processor_seconds, samples_per_second=samples / clock.seconds)


def _recipe(folder: PreparedFolder, name: str) -> tuple[PatchSource, Kitchen]:
    """What ``autoseg_train`` would take for a model of all cases."""
    plan = records.load(Plan, folder.plan)
    configuration = plan.configuration(name)
    kitchen = Kitchen(
        device=torch.device("cpu"),
        precision=None,
        patch_size=configuration.patch_size,
        masked_channels=tuple(
            index for index, scheme in enumerate(configuration.normalization) if scheme.scheme == "zscore_masked"
        ),
        policy=make_policy(configuration, mirror_axes=range(configuration.ndim)),
        stream=Stream(seed=0, fold="all", kind=TRAIN),
    )
    source = PatchSource(
        store=str(folder.store(name)),
        ids=CaseStore(folder.store(name)).ids(),
        num_labels=len(plan.labels.foreground),
        patch_size=configuration.patch_size,
        batch_size=configuration.batch_size,
        stream=kitchen.stream,
        policy=kitchen.policy,
    )
    return source, kitchen


def _crops(source: PatchSource) -> list[tuple[np.ndarray, np.ndarray]]:
    case = CaseStore(source.store).open(source.ids[0])
    plain = replace(source, policy=None)
    boxes = crop_boxes(tuple(case.image.shape[1:]), plain.patch_size)
    return [read_box(case, box) for box in boxes]


if __name__ == "__main__":
    main()
