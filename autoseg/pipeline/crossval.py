"""The held-out segmentations of every trained model of a dataset, and of models together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from autoseg import records
from autoseg.errors import ModelFolderError, RecordError, joined
from autoseg.inference.joint import JointPredictor
from autoseg.inference.predictor import Predictor
from autoseg.io.images import read_channels, write_label
from autoseg.log import get_logger, progress
from autoseg.pipeline.evaluate import Pair
from autoseg.pipeline.held_out import first_stage, held_out_predictor
from autoseg.pipeline.validate import STEP_SIZE, held_out_pair, validate_fold
from autoseg.schema.dataset import CaseFiles, DatasetSpec
from autoseg.schema.folders import ModelFolder, SelectionFolder
from autoseg.schema.report import RunReport
from autoseg.schema.splits import Splits

_LOG = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A model with the fold that each held-out case belongs to; ``before`` is the first stage of a cascade."""

    model: ModelFolder
    spec: DatasetSpec
    folds: Mapping[str, str]
    before: ModelFolder | None = None

    @property
    def name(self) -> str:
        return self.model.root.name


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Models (names of folders) and the segmentations of the common cases that they made, none seen in training."""

    models: tuple[str, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, kw_only=True)
class Field:
    """Who takes part: models, the cases that all of them held out, and why others do not."""

    models: tuple[HeldOut, ...]
    cases: tuple[str, ...]
    left_out: dict[str, str]

    @property
    def spec(self) -> DatasetSpec:
        return self.models[0].spec


def trained_models(folder: SelectionFolder) -> Field:
    """Every model of the dataset that can be compared. Labels and channels are those of the one of them that was
    trained last.

    Raises:
        ModelFolderError: there is none, or no case was held out by all of them.
    """
    trained = [model for model in map(ModelFolder, sorted(folder.root.glob("*"))) if model.finished_folds()]
    if not trained:
        raise ModelFolderError(f"there is no trained model in {folder.root}", hint="run autoseg_train first")
    known = {model.root.name: _held_out(model) for model in trained}
    left_out = {name: one for name, one in known.items() if isinstance(one, str)}
    able = [one for one in known.values() if isinstance(one, HeldOut)]
    found: list[HeldOut] = []
    newest = max(able, key=lambda one: _age(one.model), default=None)
    for one in able:
        assert newest is not None
        others = [what for what in ("labels", "channels") if getattr(one.spec, what) != getattr(newest.spec, what)]
        if others:
            left_out[one.name] = f"other {' and '.join(others)} than {newest.name}, which was trained last"
        else:
            found.append(one)
    for name, reason in left_out.items():
        _LOG.warning("%s is left out: %s", name, reason)
    if not found:
        reasons = [f"{name}: {reason}" for name, reason in left_out.items()]
        raise ModelFolderError(
            f"no model in {folder.root} can be compared:\n{joined(reasons)}",
            hint="train folds, as in autoseg_train -f 0",
        )
    cases = set.intersection(*(set(one.folds) for one in found))
    if not cases:
        folds = [f"{one.name}: folds {', '.join(sorted(set(one.folds.values())))}" for one in found]
        raise ModelFolderError(
            f"no case was held out by every model in {folder.root}:\n{joined(folds)}",
            hint="train the same folds of each",
        )
    return Field(models=tuple(found), cases=tuple(sorted(cases)), left_out=left_out)


def _held_out(model: ModelFolder) -> HeldOut | str:
    """The model with its held-out cases, or why it has none."""
    names = [name for name in model.finished_folds() if name.isdigit()]
    if not names or not model.splits.exists():
        return "it held out no case"
    try:
        splits = records.load(Splits, model.splits).folds
        names = [name for name in names if int(name) < len(splits)]
        spec = records.load(DatasetSpec, model.dataset)
        befores = {name: first_stage(model, name) for name in names}
        start = records.load(RunReport, model.run).settings.get("init")
    except (ModelFolderError, RecordError) as error:
        return error.message
    untrained = [name for name, before in befores.items() if before and not before.fold(name).weights.exists()]
    if untrained:
        return f"its first stage has no fold {', '.join(untrained)}"
    labelled = {case.id for case in spec.cases if case.label is not None}
    folds = {case: name for name in names for case in splits[int(name)].val if case in labelled}
    if not folds:
        return "it held out no case whose files are known"
    if start is not None:
        _LOG.warning(
            "%s began with %s: its scores are honest only if that model saw none of these cases", model.root.name, start
        )
    return HeldOut(model=model, spec=spec, folds=folds, before=next(iter(befores.values())))


def _age(model: ModelFolder) -> float:
    return max(model.fold(name).weights.stat().st_mtime for name in model.finished_folds())


def single(
    one: HeldOut, cases: Sequence[str], folder: SelectionFolder, *, device: str, memory: int | None
) -> Contender:
    """A model's own validation; cases that it has not segmented yet with these weights, it segments now.

    Raises:
        DatasetError: a case's files are gone or changed.
        ResourceError: memory does not suffice.
    """
    files = _files(one.spec)
    pairs = tuple(held_out_pair(files[case], one.model.fold(one.folds[case]).validation) for case in cases)
    stale = [pair.id for pair in pairs if not _fresh(pair.prediction, _weights(one, pair.id))]
    if one.before is not None and stale:
        # Validation of a fold would take the first stage as a whole, which saw these cases.
        made = together((one,), stale, folder, device=device, memory=memory).pairs
        anew = {pair.id: pair for pair in made}
        return Contender(models=(one.name,), pairs=tuple(anew.get(pair.id, pair) for pair in pairs))
    for fold in sorted({one.folds[case] for case in stale}):
        ids = [case for case, name in one.folds.items() if name == fold]
        validate_fold(one.model, fold, ids, spec=one.spec, device=device, memory=memory)
    return Contender(models=(one.name,), pairs=pairs)


def pairs_of(models: Sequence[HeldOut]) -> Iterator[tuple[HeldOut, HeldOut]]:
    """Every two models."""
    return combinations(models, 2)


def together(
    members: Sequence[HeldOut], cases: Sequence[str], folder: SelectionFolder, *, device: str, memory: int | None
) -> Contender:
    """Models together (or one) on the cases, each with the fold that held the case out; what is there already is kept.

    Raises:
        DatasetError: a case's raw files are gone or changed.
        ResourceError: memory does not suffice.
    """
    names = tuple(one.name for one in members)
    place = folder.segmentations(names)
    files = _files(members[0].spec)
    pairs = tuple(held_out_pair(files[case], place) for case in cases)
    records.remove_partial(place)
    todo = [
        pair
        for pair in pairs
        if not _fresh(pair.prediction, [path for one in members for path in _weights(one, pair.id)])
    ]
    # Folds one after the other, so that each network is loaded once.
    todo.sort(key=lambda pair: ([one.folds[pair.id] for one in members], pair.id))
    loaded: tuple[tuple[str, ...], Predictor | JointPredictor] | None = None
    for pair in progress(todo, total=len(todo), label=" + ".join(names)):
        folds = tuple(one.folds[pair.id] for one in members)
        if loaded is None or loaded[0] != folds:
            # What was loaded before must be gone first, or four networks would be in memory.
            loaded = None
            loaded = (folds, _load(members, folds, device=device, memory=memory))
        volume = read_channels([Path(path) for path in files[pair.id].images], tolerance_mm=math.inf)
        write_label(pair.prediction, loaded[1].segment(volume).labels, volume.geometry)
    return Contender(models=names, pairs=pairs)


def _load(
    members: Sequence[HeldOut], folds: Sequence[str], *, device: str, memory: int | None
) -> Predictor | JointPredictor:
    predictors = [
        held_out_predictor(one.model, fold, device=device, step_size=STEP_SIZE, memory=memory)
        for one, fold in zip(members, folds, strict=True)
    ]
    return predictors[0] if len(predictors) == 1 else JointPredictor.together(predictors)


def _files(spec: DatasetSpec) -> dict[str, CaseFiles]:
    return {case.id: case for case in spec.cases}


def _weights(one: HeldOut, case: str) -> list[Path]:
    models = (one.model,) if one.before is None else (one.model, one.before)
    return [model.fold(one.folds[case]).weights for model in models]


def _fresh(prediction: Path, weights: Sequence[Path]) -> bool:
    """Whether a segmentation is there and was made after the weights."""
    newest = max(path.stat().st_mtime for path in weights)
    return prediction.exists() and prediction.stat().st_mtime > newest
