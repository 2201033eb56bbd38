"""The first stage of a cascade, before the second one trains: its folds, and what they say of cases they never saw."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from autoseg import records
from autoseg.errors import SettingError, StoppedError, joined
from autoseg.inference.cascade import numbered, segment_onto
from autoseg.inference.predictor import Predictor
from autoseg.io.label_maps import LabelMaps
from autoseg.io.store import CaseStore
from autoseg.log import get_logger, progress
from autoseg.pipeline.budget import is_complete
from autoseg.pipeline.pace import as_begun
from autoseg.pipeline.set_up import Training, fold_runs, fold_task, set_up
from autoseg.pipeline.splits import ALL
from autoseg.pipeline.train import begun_otherwise, refuse_other_plan, train
from autoseg.preprocessing.case import PreprocessedCase
from autoseg.preprocessing.trace import between_grids
from autoseg.schema.plan import Configuration
from autoseg.schema.report import FoldRun
from autoseg.schema.splits import Fold, Splits
from autoseg.training.checkpoint import weights_hash
from autoseg.training.distributed import read_world
from autoseg.training.previous import EarlierStage, PreviousStage
from autoseg.training.stop import stop_requests

_LOG = get_logger(__name__)

_SECONDS_BETWEEN_LOOKS = 2.0


def train_first_stage(training: Training) -> Training:
    """Train what is missing of the first stage, segment the cases of the second with it, and return the second.

    A case is segmented by a fold that did not train on it, a validation case of a fold by the same fold. A time
    budget is shared by the folds of both stages; what preprocessing and segmenting take is the second stage's.

    Raises:
        SettingError: the first stage was trained with another plan or other folds, or saw every case; or folds of the
            second were begun after another first stage.
        StoppedError: the user asked to stop; the same command goes on.
    """
    # Both would otherwise show after hours.
    refuse_other_plan(training)
    numbered(training.plan.labels)
    teachers = {name: _teachers(training, name) for name in training.folds}
    needed = tuple(sorted({fold for cases in teachers.values() for fold in cases.values()}, key=int))
    previous = training.configuration.previous_stage
    settings = replace(
        training.settings, dataset=(training.spec.name,), configuration=previous, fold=(), init=None, freeze=()
    )
    budget = training.settings.time_budget
    share = None if budget is None else budget * len(needed) / (len(needed) + len(training.folds))
    lower = as_begun(set_up(replace(settings, time_budget=share)))
    _refuse_strangers(training, lower)
    todo = _unfinished(lower, needed)
    seconds = 0.0
    if todo:
        _LOG.info(
            "%s refines %s, whose folds %s come first: they are not finished yet",
            training.configuration.name,
            lower.configuration.name,
            ", ".join(todo),
        )
        if read_world().size > 1:
            raise SettingError(
                f"fold {', '.join(todo)} of {lower.configuration.name} is not finished yet",
                hint=f"with torchrun, train the stages one after the other: first -c {lower.configuration.name}",
            )
        started = time.monotonic()
        train(replace(lower.settings, fold=todo), as_planned=True)
        # What goes beyond the share is the second stage's loss, or the command would take too long.
        seconds = min(time.monotonic() - started, math.inf if share is None else share)
    digests = {fold: weights_hash(lower.model.fold(fold).weights) for fold in needed}
    folds = {name: _previous_stage(training, cases, digests) for name, cases in teachers.items()}
    own = fold_runs(training)
    # The command that trained the first stage is over once the second one is finished: another has its whole time.
    validate = training.settings.validate
    over = len(own) == len(training.folds) and all(is_complete(run, validate) or run.round for run in own.values())
    spent = not over and share is not None and any(run.budget == share for run in fold_runs(lower, needed).values())
    left = budget - share if budget is not None and share is not None and spent else budget
    earlier = EarlierStage(model=lower.model, folds=folds, seconds=seconds)
    second = replace(training, earlier=earlier, settings=replace(training.settings, time_budget=left))
    _refuse_older(second)
    _segment_cases(training, lower, teachers, digests)
    return second


def _teachers(training: Training, name: str) -> dict[str, str]:
    """Which fold of the first stage segments each case of a fold of the second.

    Raises:
        SettingError: every fold trains on some case.
    """
    splits = training.splits
    everyone = tuple(dict.fromkeys(case for fold in splits.folds for case in (*fold.train, *fold.val)))
    cases = everyone if name == ALL else (*splits.folds[int(name)].train, *splits.folds[int(name)].val)
    own = () if name == ALL else splits.folds[int(name)].val
    chosen = {case: name if case in own else _outsider(splits.folds, case) for case in cases}
    seen = [case for case, fold in chosen.items() if fold is None or case in splits.folds[int(fold)].train]
    if seen:
        raise SettingError(
            f"every fold of {training.configuration.previous_stage} trains on these cases, and what it says of them "
            f"would be too good to learn from:\n{joined(seen)}",
            hint="give folds in which every case is held out once, or train 3d_fullres",
        )
    return {case: fold for case, fold in chosen.items() if fold is not None}


def _outsider(folds: Sequence[Fold], case: str) -> str | None:
    """The fold that holds a case out, else one that does not have it at all."""
    holding = [index for index, fold in enumerate(folds) if case in fold.val and case not in fold.train]
    without = [index for index, fold in enumerate(folds) if case not in fold.train]
    found = [*holding, *without]
    return str(found[0]) if found else None


def _refuse_strangers(training: Training, lower: Training) -> None:
    """The folds of both stages must hold out the same cases, and what is trained must be of today's plan."""
    refuse_other_plan(lower)
    model = lower.model
    if model.finished_folds() and model.splits.exists():
        theirs = records.load(Splits, model.splits).folds
        if theirs != training.splits.folds:
            raise SettingError(
                f"{model.root} was trained with other folds than {training.configuration.name} would be, so that it "
                "may have trained on cases that are to be held out",
                hint="repeat its --folds or --splits, or rename that folder to train it anew",
            )


def _refuse_older(second: Training) -> None:
    """Folds that cannot be gone on with; segmenting every case first would take long, to end in the same refusal."""
    older = begun_otherwise(second)
    if older:
        raise SettingError(
            f"fold {', '.join(older)} in {second.model.root} was trained after another first stage, or with another "
            "split, seed, batch size, learning rate or loss",
            hint="repeat the settings of that training, or rename or remove that folder to train it anew",
        )


def _unfinished(lower: Training, needed: Sequence[str]) -> tuple[str, ...]:
    """The folds to train: without final weights, or with those of this very command and not validated yet.

    Killed between weights and record, a fold still counts as training.
    """
    settings, runs = lower.settings, fold_runs(lower, needed)

    def is_ours(run: FoldRun) -> bool:
        if run.signature != fold_task(lower, run.fold).signature:
            return False
        if settings.time_budget is not None:
            return run.budget == settings.time_budget
        return run.target_epochs == settings.epochs

    todo = [name for name in needed if not lower.model.fold(name).weights.exists()]
    if settings.validate:
        todo += [name for name, run in runs.items() if run.status != "validated" and is_ours(run)]
    if todo and settings.time_budget is not None:
        # Folds that shared the time before count, or the others would get more of it.
        todo += [name for name, run in runs.items() if is_ours(run)]
    return tuple(name for name in needed if name in todo)


def _maps(training: Training, fold: str) -> LabelMaps:
    return LabelMaps(training.model.previous_stage / f"fold_{fold}")


def _previous_stage(training: Training, teachers: Mapping[str, str], digests: Mapping[str, str]) -> PreviousStage:
    """``digests`` are hashes of the weights of the first stage, by fold."""
    made_by = "\n".join(f"{case} {digests[fold]}" for case, fold in sorted(teachers.items()))
    return PreviousStage(
        files={case: _maps(training, fold).path(case) for case, fold in teachers.items()},
        identity=hashlib.sha256(made_by.encode()).hexdigest(),
    )


def _segment_cases(
    training: Training, lower: Training, teachers: Mapping[str, Mapping[str, str]], digests: Mapping[str, str]
) -> None:
    """Store what each fold of the first stage says of the cases that it is to segment; what is there is kept.

    Of several processes the first does it and the others wait.
    """
    wanted: dict[str, set[str]] = {}
    for cases in teachers.values():
        for case, fold in cases.items():
            wanted.setdefault(fold, set()).add(case)

    def made_by(fold: str) -> str:
        # Read each time: the first process may still be preprocessing while others wait.
        return f"{digests[fold]} {lower.store.content_hash()} {training.store.content_hash()}"

    def absent() -> dict[str, tuple[str, ...]]:
        found = {fold: _maps(training, fold).missing(wanted[fold], made_by(fold)) for fold in sorted(wanted, key=int)}
        return {fold: cases for fold, cases in found.items() if cases}

    if not read_world().is_first:
        while absent():
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return
    todo = absent()
    if not todo:
        _LOG.info("segmentations of %s: all are there", lower.configuration.name)
        return
    training.model.stop_file.unlink(missing_ok=True)
    with stop_requests(training.model.stop_file) as stop:
        for fold, missing in todo.items():
            _maps(training, fold).begin(made_by(fold))
            _segment_fold(training, lower, fold, missing, stop=stop)


def _segment_fold(
    training: Training, lower: Training, fold: str, cases: Sequence[str], *, stop: Callable[[], bool]
) -> None:
    predictor = Predictor.load(lower.model.root, folds=(fold,), device=training.settings.device)
    maps, fine = _maps(training, fold), training.configuration
    for case in progress(cases, total=len(cases), label=f"{lower.configuration.name} fold {fold}: segment"):
        if stop():
            raise StoppedError(
                f"segmenting with {lower.configuration.name} was stopped", hint="run the same command again to go on"
            )
        coarse = _stored_image(lower.store, case, lower.configuration)
        shape = training.store.open(case).image.shape[1:]
        maps.write(case, segment_onto(predictor, coarse, shape, fine.spacing), fine.patch_size)


def _stored_image(store: CaseStore, case: str, configuration: Configuration) -> PreprocessedCase:
    """A preprocessed image as prediction has it, without the way back to its file."""
    image = np.asarray(store.open(case).image[:])
    own = between_grids(image.shape[1:], configuration.spacing, image.shape[1:], configuration.spacing)
    return PreprocessedCase(id=case, image=image, label=None, trace=own, mask=None)
