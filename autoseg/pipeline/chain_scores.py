"""Dice of held-out cases after chains of post-processing; what was computed once is kept, case by case."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from autoseg import records
from autoseg.errors import DatasetError, RecordError
from autoseg.evaluation.adoption import Chain, Scores, label_dice
from autoseg.io.images import read_label
from autoseg.ops.postprocess import postprocess
from autoseg.parallel import SECONDS_TO_START_WORKERS, Outcome, map_cases
from autoseg.pipeline.crossval import Contender
from autoseg.pipeline.evaluate import Pair
from autoseg.schema.dataset import Labels
from autoseg.schema.folders import SelectionFolder
from autoseg.schema.postprocessing import PostProcessing
from autoseg.schema.selection import CaseTable

# Two label maps, masks of a label, and its components.
_BYTES_PER_VOXEL = 24.0


@dataclass(frozen=True, kw_only=True)
class _Job:
    pair: Pair
    labels: Labels
    chains: tuple[Chain, ...]

    @property
    def id(self) -> str:
        return self.pair.id


@dataclass(frozen=True)
class _Scored:
    """Dice of every label by chain, volumes of the reference labels, and what a case takes."""

    dice: dict[Chain, tuple[float, ...]]
    volumes: tuple[float, ...]
    voxels: int


@dataclass(kw_only=True)
class ChainScores:
    """Scores of one contender. ``tables`` grows with what is asked; every case has a file with the same content."""

    contender: Contender
    labels: Labels
    folder: SelectionFolder
    workers: int | None = None
    tables: dict[str, CaseTable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for pair in self.contender.pairs:
            stamp = _stamp(pair, self.labels)
            self.tables[pair.id] = _known(self._path(pair.id), stamp)

    def score(self, chains: Sequence[Chain]) -> Mapping[Chain, Scores]:
        """Dice of every label of every case for each chain.

        Raises:
            DatasetError: a file cannot be read, or two files have different shapes.
        """
        jobs = []
        for pair in self.contender.pairs:
            missing = tuple(chain for chain in chains if _key(chain) not in self.tables[pair.id].dice)
            if missing:
                jobs.append(_Job(pair=pair, labels=self.labels, chains=missing))
        for outcome in _outcomes(jobs, self.workers):
            scored = outcome.unwrap()
            before = self.tables[outcome.item.id]
            dice = {**before.dice, **{_key(chain): values for chain, values in scored.dice.items()}}
            table = CaseTable(stamp=before.stamp, dice=dice, volumes=scored.volumes)
            self.tables[outcome.item.id] = table
            records.save(self._path(outcome.item.id), table)
        return {chain: {id_: table.dice[_key(chain)] for id_, table in self.tables.items()} for chain in chains}

    def volumes(self) -> dict[str, float]:
        """Label -> median volume in mm^3 over the references that have it, once ``score`` was asked for something."""
        result = {}
        for index, name in enumerate(self.labels.names):
            known = [table.volumes[index] for table in self.tables.values()]
            present = [volume for volume in known if volume > 0]
            if present:
                result[name] = float(np.median(present))
        return result

    def _path(self, case: str) -> Path:
        return self.folder.scores(self.contender.models, case)


def _known(path: Path, stamp: str) -> CaseTable:
    if path.exists():
        try:
            table = records.load(CaseTable, path)
        except RecordError:
            # Of an older autoseg, or damaged: it is made again.
            return CaseTable(stamp=stamp)
        if table.stamp == stamp:
            return table
    return CaseTable(stamp=stamp)


@cache
def _key(chain: Chain) -> str:
    text = records.to_json(PostProcessing(steps=chain))
    return hashlib.sha256(text.encode()).hexdigest()[:16] if chain else ""


def _stamp(pair: Pair, labels: Labels) -> str:
    """Changes with the files, the labels, and what was annotated."""
    states = [path.stat() for path in (pair.reference, pair.prediction)]
    facts = [f"{state.st_mtime_ns} {state.st_size}" for state in states]
    text = "\n".join([*facts, records.to_json(labels), repr(pair.annotated)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _outcomes(jobs: Sequence[_Job], workers: int | None) -> Iterator[Outcome[_Job, _Scored]]:
    started = time.monotonic()
    voxels = 0
    for outcome in map_cases(_score, jobs[:1], workers=0):
        voxels = outcome.unwrap().voxels
        yield outcome
    left = (time.monotonic() - started) * (len(jobs) - 1)
    if workers is None and left < SECONDS_TO_START_WORKERS:
        workers = 0
    # Cases of one dataset differ in size; the first one stands for all, with room for one twice as large.
    yield from map_cases(_score, jobs[1:], workers=workers, bytes_per_item=2 * _BYTES_PER_VOXEL * voxels)


def _score(job: _Job) -> _Scored:
    reference, prediction = read_label(job.pair.reference), read_label(job.pair.prediction)
    if reference.shape != prediction.shape:
        raise DatasetError(
            f"{job.pair.prediction} has {prediction.shape} voxels (z, y, x), {job.pair.reference} {reference.shape}",
            hint="the label was changed after training; train again, or restore it",
        )
    truth, guess = reference.data[0], prediction.data[0]
    size = prediction.geometry.voxel_size
    dice = {}
    for chain in job.chains:
        result = postprocess(guess, chain, voxel_size=size)
        dice[chain] = label_dice(truth, result, job.labels, job.pair.annotated)
    volumes = tuple(size * int(np.isin(truth, label.values).sum()) for label in job.labels.foreground)
    return _Scored(dice, volumes, truth.size)
