"""Which loss, class weights and sampling a training has: the flags, what the model had before, or the defaults."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from autoseg import records
from autoseg.errors import SettingError
from autoseg.log import get_logger
from autoseg.losses import LOSSES
from autoseg.losses.mixed import weights_hint
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.fingerprint import Fingerprint
from autoseg.schema.folders import ModelFolder
from autoseg.schema.parsing import AUTO_WEIGHTS
from autoseg.schema.plan import Plan
from autoseg.schema.report import RunReport
from autoseg.schema.settings import TrainSettings
from autoseg.training.objective import Objective
from autoseg.training.sampling import SAMPLINGS

_LOG = get_logger(__name__)

# More would let one voxel of a tiny class outweigh the whole rest of a patch.
LARGEST_WEIGHT = 10.0


def choose_objective(
    settings: TrainSettings, plan: Plan, spec: DatasetSpec, fingerprint: Path, model: ModelFolder
) -> Objective:
    """The flags; what they leave open is as the folds that ``model`` has already, else as the loss wants it.

    Args:
        fingerprint: the file, read for ``--class-weights auto`` only.

    Raises:
        SettingError: no such loss, or another number of class weights, given or of folds that were begun.
    """
    known = before = _trained_with(model)
    loss = settings.loss or before.get("loss") or Objective().loss
    LOSSES.get(loss)
    if loss != before.get("loss"):
        before = {}
    usual = loss if loss in SAMPLINGS else Objective().sampling
    weights = before.get("class_weights")
    if settings.class_weights == AUTO_WEIGHTS:
        weights = automatic_weights(plan, spec, records.load(Fingerprint, fingerprint))
    elif settings.class_weights is not None:
        weights = [float(text) for text in settings.class_weights.split(",")]
    if weights is not None and len(weights) != plan.labels.num_heads:
        if settings.class_weights is None:
            raise SettingError(
                f"folds in {model.root} were begun with {len(weights)} class weights, and the network of today's plan "
                f"has {plan.labels.num_heads} outputs",
                hint="rename or remove that folder to train with today's plan",
            )
        raise SettingError(f"--class-weights has {len(weights)} numbers", hint=weights_hint(plan.labels))
    chosen = Objective(
        loss=loss,
        sampling=settings.sampling or before.get("sampling") or usual,
        class_weights=None if weights is None else tuple(weights),
    )
    if chosen != Objective():
        shown = "" if weights is None else ", class weights " + ", ".join(f"{weight:g}" for weight in weights)
        _LOG.info("loss %s, sampling %s%s", chosen.loss, chosen.sampling, shown)
    if known and chosen != _objective_in(known):
        _LOG.warning(
            "folds in %s were trained with another loss, sampling or class weights (%s, %s): a model is best compared "
            "and used with the same for all of its folds",
            model.root,
            _objective_in(known).loss,
            _objective_in(known).sampling,
        )
    return chosen


def _objective_in(recorded: dict[str, Any]) -> Objective:
    usual, weights = Objective(), recorded.get("class_weights")
    return Objective(
        loss=recorded.get("loss") or usual.loss,
        sampling=recorded.get("sampling") or usual.sampling,
        class_weights=None if weights is None else tuple(weights),
    )


def _trained_with(model: ModelFolder) -> dict[str, Any]:
    """Loss, sampling and class weights of the folds that were begun in this folder, empty if there is none."""
    if not model.run.exists() or not any(model.root.glob("fold_*/*")):
        return {}
    return records.load(RunReport, model.run).settings


def automatic_weights(plan: Plan, spec: DatasetSpec, measured: Fingerprint) -> list[float]:
    """The square root of how much rarer a class is than the background (a region: than the largest), at most 10.

    Cases in which a label was not annotated do not count for it.
    """
    labels = plan.labels
    annotated = {case.id: case.annotated for case in spec.cases}
    shares = {}
    for label in labels.foreground:
        voxels = total = 0
        for case in measured.cases:
            looked_for = annotated.get(case.id)
            if looked_for is None or label.name in looked_for:
                total += math.prod(case.shape)
                voxels += sum(item.voxels for item in case.classes if item.name == label.name)
        shares[label.name] = voxels / max(total, 1)
    if labels.has_regions:
        ordered, reference = [shares[name] for name in labels.names], max(shares.values())
    else:
        by_value = {label.values[0]: shares[label.name] for label in labels.foreground}
        reference = max(1.0 - sum(by_value.values()), 0.0)
        ordered = [reference, *(by_value[value] for value in labels.leaves if value != 0)]
    # A class that never occurs has no voxels to weigh.
    return [round(min(LARGEST_WEIGHT, math.sqrt(reference / share)), 3) if share else 1.0 for share in ordered]
