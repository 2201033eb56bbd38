"""Which cases the folds of a training have; folds that a model has already keep theirs."""

from __future__ import annotations

from autoseg import records
from autoseg.errors import SettingError
from autoseg.log import get_logger
from autoseg.planning import make_splits, read_splits
from autoseg.schema.fingerprint import Fingerprint
from autoseg.schema.folders import ModelFolder, PreparedFolder
from autoseg.schema.settings import TrainSettings
from autoseg.schema.splits import Fold, Splits

_LOG = get_logger(__name__)

ALL = "all"


def choose_splits(settings: TrainSettings, folder: PreparedFolder, model: ModelFolder) -> Splits:
    """The user's splits, else those on disk if they are of the same cases and number of folds, else new ones.

    New ones are written, unless ``model`` has folds that they would change: such a training is refused.
    """
    ids = tuple(case.id for case in records.load(Fingerprint, folder.fingerprint).cases)
    if settings.splits is not None:
        splits = read_splits(settings.splits, ids, folds=settings.folds)
        _LOG.info("splits: %d folds from %s", len(splits.folds), settings.splits)
        return splits
    if settings.fold == (ALL,) and len(ids) == 1:
        return Splits(seed=0, folds=(Fold(train=ids, val=ids),))
    wanted = make_splits(ids, folds=settings.folds)
    known = records.load(Splits, folder.splits) if folder.splits.exists() else None
    if known is not None:
        same_cases = {case for fold in known.folds for case in fold.val} == set(ids)
        if same_cases and len(known.folds) == len(wanted.folds):
            return known
    if _changed_folds(model, wanted):
        return wanted
    if known is not None:
        _LOG.warning("%s had other cases or another number of folds: it is replaced", folder.splits)
    if len(wanted.folds) < settings.folds:
        _LOG.warning("only %d cases: %d folds instead of %d", len(ids), len(wanted.folds), settings.folds)
    records.save(folder.splits, wanted)
    return wanted


def fold_cases(splits: Splits, name: str) -> Fold:
    """The cases of a fold by its name; "all" trains on every case and has no others to watch itself on."""
    if name != ALL:
        return splits.folds[int(name)]
    everyone = tuple(sorted({case for fold in splits.folds for case in (*fold.train, *fold.val)}))
    return Fold(train=everyone, val=everyone)


def refuse_other_splits(model: ModelFolder, splits: Splits) -> None:
    """What a finished fold trained on must never count as held out.

    Raises:
        SettingError: with ``splits``, finished folds would have other cases than they were trained with.
    """
    changed = _changed_folds(model, splits)
    if changed:
        raise SettingError(
            f"{model.root} was trained with other folds: what fold {', '.join(changed)} would hold out now, it may "
            "have been trained on",
            hint="repeat the --folds or --splits of that training (new cases change folds too), or rename or remove "
            "that folder to train it anew",
        )


def _changed_folds(model: ModelFolder, splits: Splits) -> tuple[str, ...]:
    """The finished folds whose cases are not, or may not be, those of ``splits``."""
    finished = model.finished_folds()
    if not finished:
        return ()
    known = records.load(Splits, model.splits) if model.splits.exists() else Splits(seed=0, folds=())
    return tuple(name for name in finished if not _has(known, name) or _sets(known, name) != _sets(splits, name))


def _has(splits: Splits, name: str) -> bool:
    return bool(splits.folds) and (name == ALL or (name.isdigit() and int(name) < len(splits.folds)))


def _sets(splits: Splits, name: str) -> tuple[set[str], set[str]] | None:
    if not _has(splits, name):
        return None
    cases = fold_cases(splits, name)
    return set(cases.train), set(cases.val)


__all__ = ["ALL", "choose_splits", "fold_cases", "refuse_other_splits"]
