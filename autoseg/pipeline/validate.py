"""The score that counts: every validation case of a fold, predicted from its raw image at original geometry."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from autoseg import records
from autoseg.errors import DatasetError, StoppedError
from autoseg.inference.predictor import Predictor
from autoseg.inference.tiles import tile_starts
from autoseg.io.images import read_channels, split_ending, write_label
from autoseg.io.label_maps import open_label_map
from autoseg.io.store import CaseStore
from autoseg.log import get_logger, progress
from autoseg.pipeline.evaluate import Pair, evaluate_pairs, score_table, write_scores
from autoseg.schema.dataset import CaseFiles, DatasetSpec
from autoseg.schema.folders import ModelFolder
from autoseg.training.step import Kitchen, Network, window_seconds

_LOG = get_logger(__name__)

STEP_SIZE = 0.5
# What a case costs besides its windows (reading, restoring, writing, scoring), and what loading the model costs.
_SECONDS_PER_CASE = 0.25
_SECONDS_TO_LOAD = 2.0


def estimate_validation(
    store: CaseStore,
    ids: Sequence[str],
    network: Network,
    kitchen: Kitchen,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds that ``validate_fold`` will take: one window is timed, and windows are counted."""
    seconds = window_seconds(
        network, kitchen, channels=store.open(ids[0]).image.shape[0] + len(kitchen.previous), clock=clock
    )
    mirrored = 2 ** len(kitchen.patch_size) if kitchen.device.type == "cuda" else 1
    return validation_time(store, ids, kitchen.patch_size, window=seconds * mirrored)


def validation_time(store: CaseStore, ids: Sequence[str], patch: Sequence[int], *, window: float) -> float:
    """Seconds to validate on the stored cases ``ids`` where one window takes ``window``."""
    full_patch = (1, *patch) if len(patch) == 2 else patch
    windows = 0
    for case in ids:
        shape = store.open(case).image.shape[1:]
        places = (
            length if size == 1 else len(tile_starts(length, size, STEP_SIZE))
            for length, size in zip(shape, full_patch, strict=True)
        )
        windows += math.prod(places)
    return windows * window + len(ids) * _SECONDS_PER_CASE + _SECONDS_TO_LOAD


def validate_fold(
    model: ModelFolder,
    name: str,
    ids: Sequence[str],
    *,
    spec: DatasetSpec,
    device: str,
    memory: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    previous: Mapping[str, Path] | None = None,
) -> int:
    """Predict and score the cases of a fold, and return how many were predicted.

    Segmentations that are newer than the weights are kept.

    Args:
        memory: bytes that prediction may use, as for ``Predictor.load``.
        previous: of the second stage of a cascade, the stored segmentations of the first by case.

    Raises:
        DatasetError: a case's raw files are gone or changed.
        StoppedError: ``stop`` said so; what is predicted stays.
    """
    fold = model.fold(name)
    cases = {case.id: case for case in spec.cases}
    pairs = [held_out_pair(cases[case], fold.validation) for case in ids]
    records.remove_partial(fold.validation)
    newest = fold.weights.stat().st_mtime
    todo = [pair for pair in pairs if not (pair.prediction.exists() and pair.prediction.stat().st_mtime > newest)]
    predictor = Predictor.load(
        model.root, folds=(name,), device=device, step_size=STEP_SIZE, memory=memory, stages=previous is None
    )
    for pair in progress(todo, total=len(todo), label=f"fold {name}: validation"):
        if stop():
            raise StoppedError(f"validation of fold {name} was stopped", hint="run the same command again to go on")
        paths = [Path(path) for path in cases[pair.id].images]
        # Preparation judged the geometry, with the tolerance that the user chose.
        volume = read_channels(paths, tolerance_mm=math.inf)
        before = None if previous is None else open_label_map(previous[pair.id])[0]
        labels = predictor.infer(predictor.prepare(volume), previous=before).labels
        write_label(pair.prediction, labels, volume.geometry)
    report = evaluate_pairs(pairs, spec.labels, grid_tolerance_mm=math.inf)
    write_scores(fold.validation, report)
    _LOG.info("fold %s\n%s", name, score_table(report))
    if report.faults:
        raise DatasetError(
            f"{len(report.faults)} validation cases could not be scored: {'; '.join(report.faults)}",
            hint="look at these files; the scores of the others are written",
        )
    return len(todo)


def held_out_pair(case: CaseFiles, folder: Path) -> Pair:
    """A case with its segmentation in ``folder``.

    Raises:
        DatasetError: it has no label.
    """
    if case.label is None:
        raise DatasetError(f"{case.id} has no label", hint="run autoseg_plan_and_preprocess again")
    reference = Path(case.label)
    prediction = folder / f"{case.id}{split_ending(reference.name)[1]}"
    return Pair(id=case.id, reference=reference, prediction=prediction, annotated=case.annotated)
