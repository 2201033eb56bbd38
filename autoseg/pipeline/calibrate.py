"""``autoseg_calibrate``: the temperature of a model, from the cases that each fold did not see."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_dilation

from autoseg import records
from autoseg.errors import DatasetError, SettingError, joined
from autoseg.evaluation.calibration import (
    confidences,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)
from autoseg.inference.predictor import Predictor, chosen_folds
from autoseg.inference.uncertainty import logit_planes
from autoseg.io.verify import fault_table, load_case
from autoseg.log import get_logger, progress
from autoseg.ops.crop import crop
from autoseg.pipeline.choose import choose_model
from autoseg.pipeline.held_out import held_out_cases, held_out_predictor
from autoseg.pipeline.weights import changed_folds, digests
from autoseg.schema.calibration import CalibrateSettings, Calibration
from autoseg.schema.dataset import CaseFiles, DatasetSpec, Labels
from autoseg.schema.folders import ModelFolder

_LOG = get_logger(__name__)

FILE = "calibration.json"
# Voxels of easy background say little and would hide what matters: those near the foreground count.
_NEAR = 3
# Neighbours are alike: more voxels of a case would tell little more.
_VOXELS_PER_CASE = 20_000
# Logits of all cases together, 100 MB in float64; fitting has about five such arrays at once.
_VALUES = 12_500_000


def calibrate(settings: CalibrateSettings) -> Calibration:
    """Fit the temperature on held-out cases, say what it changes, and write it into the model's folder.

    Raises:
        SettingError: none of the folds has held-out cases.
        DatasetError: cases of the dataset are gone or damaged, or all of them are only partly annotated.
        ModelFolderError: there is no trained model, or not these folds, or it does not say which cases were held out.
    """
    model = choose_model(settings)
    folds = _folds(model, settings.fold)
    spec = records.load(DatasetSpec, model.dataset)
    labels = spec.labels
    held_out = _wholly_annotated(_held_out(model, folds, spec), labels)
    most = max(1, min(_VOXELS_PER_CASE, _VALUES // (labels.num_heads * sum(map(len, held_out.values())))))
    logits, truth, cases = [], [], 0
    for fold in held_out:
        predictor = held_out_predictor(model, fold, device=settings.device, tta=settings.tta)
        for case in progress(held_out[fold], total=len(held_out[fold]), label=f"fold {fold}: calibration"):
            values, right = _sample(predictor, case, spec, most=most)
            cases += len(right) > 0
            logits.append(values)
            truth.append(right)
    result = _fitted(np.concatenate(logits), np.concatenate(truth), labels, cases=cases, weights=digests(model, folds))
    records.save(model.root / FILE, result)
    _LOG.info(
        "temperature %.3f from %d held-out cases\n"
        "calibration error near the foreground %.4f -> %.4f, negative log-likelihood %.4f -> %.4f\n"
        "written: %s",
        result.temperature,
        result.cases,
        result.ece_before,
        result.ece_after,
        result.nll_before,
        result.nll_after,
        model.root / FILE,
    )
    return result


def _folds(model: ModelFolder, asked: tuple[str, ...]) -> tuple[str, ...]:
    folds = tuple(name for name in chosen_folds(model, asked) if name.isdigit())
    if not folds:
        raise SettingError(
            f"{model.root} was trained on every case, so that none is left to calibrate with",
            hint="train a fold too: autoseg_train -f 0",
        )
    return folds


def _held_out(model: ModelFolder, folds: tuple[str, ...], spec: DatasetSpec) -> dict[str, tuple[CaseFiles, ...]]:
    known = {case.id: case for case in spec.cases if case.label is not None}
    wanted = {fold: held_out_cases(model, fold) for fold in folds}
    gone = [case for ids in wanted.values() for case in ids if case not in known]
    if gone:
        raise DatasetError(
            f"{len(gone)} held-out cases are not in {model.dataset}:\n{joined(gone)}",
            hint="calibrate where it was trained",
        )
    return {fold: tuple(known[case] for case in ids) for fold, ids in wanted.items()}


def _wholly_annotated(held_out: dict[str, tuple[CaseFiles, ...]], labels: Labels) -> dict[str, tuple[CaseFiles, ...]]:
    """The cases in which every label was annotated, of the folds that have some.

    In the others the background may be a label that nobody looked for, so that only voxels of the annotated labels are
    certain: what is wrongly found outside of them would never enter the fit, and the temperature come out too low.
    """
    found = {fold: tuple(case for case in cases if not _is_partial(case, labels)) for fold, cases in held_out.items()}
    kept, total = (sum(map(len, folds.values())) for folds in (found, held_out))
    if kept == 0:
        raise DatasetError(
            f"none of the {total} held-out cases has every label annotated, so that none can be calibrated with",
            hint="train a fold that holds out a wholly annotated case",
        )
    if kept < total:
        _LOG.info("left out: %d of %d held-out cases, in which not every label was annotated", total - kept, total)
    return {fold: cases for fold, cases in found.items() if cases}


def _is_partial(case: CaseFiles, labels: Labels) -> bool:
    return case.annotated is not None and any(len(possible) > 1 for possible in labels.candidates(case.annotated))


def _sample(predictor: Predictor, case: CaseFiles, spec: DatasetSpec, *, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, heads) and the truth of up to ``most`` voxels near the foreground, drawn by the name of the case."""
    loaded, faults = load_case(case, spec, tolerance_mm=math.inf)
    if loaded is None or loaded.label is None:
        raise DatasetError(f"{case.id}: {fault_table(faults)}", hint="mend the file and run the same command again")
    labels = spec.labels
    prepared = predictor.prepare(loaded.image)
    planes = crop(loaded.label.transpose(prepared.trace.transpose), prepared.trace.box)
    rng = np.random.default_rng(list(case.id.encode()))
    per_plane = max(1, 4 * most // len(planes))
    logits, truth = [], []
    for plane, right in zip(logit_planes(predictor, prepared), planes, strict=True):
        places = _near(plane, right, labels)
        if len(places) > per_plane:
            places = rng.choice(places, per_plane, replace=False)
        logits.append(plane.reshape(len(plane), -1)[:, places].T)
        truth.append(right.reshape(-1)[places])
    values, indices = np.concatenate(logits), np.concatenate(truth)
    if len(indices) > most:
        chosen = rng.choice(len(indices), most, replace=False)
        values, indices = values[chosen], indices[chosen]
    return values, _right(indices, labels)


def _near(logits: np.ndarray, truth: np.ndarray, labels: Labels) -> np.ndarray:
    """Flat indices of the voxels of a plane that lie near what is or was found, and whose truth is known."""
    found = (logits > 0).any(axis=0) if labels.has_regions else logits.argmax(axis=0) > 0
    known = truth < len(labels.leaves)
    near = binary_dilation(found | (known & (truth > 0)), np.ones((3, 3), bool), iterations=_NEAR)
    return np.flatnonzero(near & known)


def _right(indices: np.ndarray, labels: Labels) -> np.ndarray:
    """The right head of every voxel (n,), or, of regions, which heads are right (n, heads)."""
    if not labels.has_regions:
        return indices.astype(np.int64)
    return np.stack([np.isin(indices, labels.internal(label)) for label in labels.foreground], axis=1)


def _fitted(
    logits: np.ndarray, truth: np.ndarray, labels: Labels, *, cases: int, weights: dict[str, str]
) -> Calibration:
    if not len(logits):
        raise DatasetError("the held-out cases hold no foreground, found or true", hint="train longer, or more folds")
    regions = labels.has_regions
    wide = np.asarray(logits, dtype=np.float64)
    temperature = fit_temperature(wide, truth, regions=regions)
    nll = [negative_log_likelihood(wide, truth, temperature=value, regions=regions) for value in (1.0, temperature)]
    ece = [
        expected_calibration_error(*confidences(wide, truth, temperature=value, regions=regions))
        for value in (1.0, temperature)
    ]
    return Calibration(
        temperature=temperature,
        nll_before=nll[0],
        nll_after=nll[1],
        ece_before=ece[0],
        ece_after=ece[1],
        cases=cases,
        voxels=len(logits),
        weights=weights,
    )


def read_temperature(model: ModelFolder, folds: Sequence[str]) -> float:
    """The temperature of a model, 1 where none was fitted or where weights of these folds changed since (and say so).

    Raises:
        RecordError: it cannot be read.
        ModelFolderError: the first stage of a cascade is not there.
    """
    path = model.root / FILE
    if not path.exists():
        _LOG.info("uncertainty: not calibrated, temperature 1; autoseg_calibrate -m %s fits it", model.root)
        return 1.0
    known = records.load(Calibration, path)
    changed = changed_folds(known.weights, digests(model, folds))
    if changed:
        _LOG.warning("%s is of other weights of fold %s: calibrate again", path, ", ".join(changed))
        return 1.0
    _LOG.info("uncertainty: temperature %.3f", known.temperature)
    return known.temperature


__all__ = ["FILE", "calibrate", "read_temperature"]
