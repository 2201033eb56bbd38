"""``autoseg_train --init``: find the trained model, hold it against the plan, and remember what was made of it."""

from __future__ import annotations

import hashlib
import math
from functools import partial
from pathlib import Path
from typing import Any

from autoseg import records
from autoseg.errors import ModelFolderError, SettingError
from autoseg.inference.ensemble import weights_configuration
from autoseg.interop.nnunet_model import as_model_folder, convert
from autoseg.io.discover import resolve_workspace
from autoseg.log import get_logger
from autoseg.schema.folders import FoldFolder, ModelFolder
from autoseg.schema.plan import Configuration, Plan
from autoseg.schema.report import EvaluationReport, RunReport
from autoseg.schema.settings import TrainSettings
from autoseg.training.checkpoint import load_weights
from autoseg.training.transfer import (
    Source,
    Start,
    Transfer,
    channel_names,
    check_freeze,
    compare,
    describe,
    label_names,
    transfer_text,
)

_LOG = get_logger(__name__)

# Where run.json keeps the table, among the settings.
INITIALIZED = "initialized"


def choose_start(
    settings: TrainSettings, plan: Plan, configuration: Configuration, model: ModelFolder, folds: tuple[str, ...]
) -> Start | None:
    """How folds begin, None for fresh weights; the model is opened only if one of the folds has no checkpoint yet.

    Raises:
        ModelFolderError: there is no trained model.
        SettingError: it does not fit the plan, or ``--freeze`` without ``--init``, or of a name that is not there; or
            folds to train would begin otherwise than those that ``model`` has.
    """
    begins = any(not model.fold(name).weights.exists() for name in folds)
    if settings.init is None:
        if settings.freeze:
            raise SettingError("--freeze keeps trained weights, and there are none", hint="name a model with --init")
        if begins:
            refuse_other_start(settings, model)
        return None
    path = Path(settings.init).expanduser().absolute()
    read = partial(read_source, path, workdir=settings.workdir)
    frozen = check_freeze(plan, configuration, settings.freeze)
    record = None
    if any(not model.fold(name).checkpoint.exists() for name in folds):
        source = read()
        transfer = compare(source, plan=plan, configuration=configuration)
        _announce(source, transfer, plan)
        record = {"source": source.place, "share": transfer.share, **describe(transfer)}
    if begins:
        refuse_other_start(settings, model)
    if frozen:
        _LOG.info("frozen: %s, %s parameters", " ".join(settings.freeze), f"{frozen:,}")
    return Start(origin=str(path), freeze=settings.freeze, read=read, record=record)


def refuse_other_start(settings: TrainSettings, model: ModelFolder) -> None:
    """Folds of one model begin alike.

    Raises:
        SettingError: folds were begun with another ``--init`` or ``--freeze``.
    """
    begun = (fold for fold in map(FoldFolder, model.root.glob("fold_*")) if _is_begun(fold))
    if not model.run.exists() or next(begun, None) is None:
        return
    known = records.load(RunReport, model.run).settings
    before = (known.get("init"), tuple(known.get("freeze") or ()))
    if (_place(before[0]), before[1]) != (_place(settings.init), settings.freeze):
        words = [f"--init {before[0]}" if before[0] else "fresh weights"]
        words += [f"--freeze {' '.join(before[1])}"] if before[1] else []
        raise SettingError(
            f"the folds in {model.root} began with {' and '.join(words)}, and folds of one model begin alike",
            hint="repeat that start, or rename or remove that folder to train it anew",
        )


def _is_begun(fold: FoldFolder) -> bool:
    return fold.checkpoint.exists() or fold.weights.exists()


def _place(init: str | None) -> Path | None:
    return None if init is None else Path(init).expanduser().absolute()


def _announce(source: Source, transfer: Transfer, plan: Plan) -> None:
    _LOG.info("weights: %s\n%s", source.place, transfer_text(transfer))
    if transfer.share < 1:
        _LOG.warning(
            "%.0f%% of the weights fit; for all of them plan alike: autoseg_move_plan -s %s -t %s --force",
            100 * transfer.share,
            source.plan,
            plan.dataset,
        )


def initial_record(start: Start | None, model: ModelFolder) -> dict[str, Any]:
    """What ``run.json`` says about the start: the source, from the root, and what became of every tensor.

    Where all folds go on, what is written there stays, because the source may be gone or changed by now.
    """
    if start is None:
        return {}
    record = start.record
    if record is None and model.run.exists():
        record = records.load(RunReport, model.run).settings.get(INITIALIZED)
    facts = {"init": start.origin}
    return facts if record is None else {**facts, INITIALIZED: record}


def read_source(path: Path, *, workdir: str | None) -> Source:
    """The weights of a model folder, of one of its folds, or of a model of nnU-Net v2 (folder, zip or checkpoint).

    Of several folds the one with the best validation is taken, else the first.

    Raises:
        ModelFolderError: there is no trained model, or it cannot be read.
    """
    folder, fold = _locate(path, resolve_workspace(workdir).translated)
    plan = records.load(Plan, folder.plan)
    weights = folder.fold(fold).weights
    configuration = plan.configuration(weights_configuration(weights))
    return Source(
        place=f"{folder.root}, fold {fold}",
        plan=str(folder.plan),
        weights=load_weights(weights),
        channels=channel_names(plan, configuration),
        labels=label_names(plan.labels),
        regions=plan.labels.has_regions,
    )


def _locate(path: Path, cache: Path) -> tuple[ModelFolder, str]:
    if path.suffix == ".pth":
        return _checkpoint(path, cache)
    fold = path.name.removeprefix("fold_") if path.name.startswith("fold_") else None
    root = path if fold is None else path.parent
    folder = ModelFolder(as_model_folder(root, cache, stages=False))
    finished = folder.finished_folds()
    if not finished:
        hint = "give the folder that holds plan.json and fold_0"
        if path.is_file():
            hint = "put it into the work directory with autoseg_install, and give the folder that it names"
        raise ModelFolderError(f"--init {path} is not a trained model", hint=hint)
    if fold is not None and fold not in finished:
        raise ModelFolderError(f"{root} has no trained fold {fold}", hint=f"trained are: {', '.join(finished)}")
    return folder, fold or max(finished, key=lambda name: _score(folder, name))


def _score(folder: ModelFolder, fold: str) -> float:
    summary = folder.fold(fold).summary
    score = records.load(EvaluationReport, summary).foreground_dice if summary.exists() else math.nan
    return -1.0 if math.isnan(score) else score


def _checkpoint(path: Path, cache: Path) -> tuple[ModelFolder, str]:
    """One checkpoint of nnU-Net, translated and kept under a name that its size and time decide."""
    if not path.is_file():
        raise ModelFolderError(f"--init {path} does not exist", hint="give a model folder or a checkpoint")
    state = path.stat()
    stamp = hashlib.sha256(f"{path} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:12]
    root = cache / f"{path.parent.parent.name}-{path.parent.name}-{stamp}"
    fold = path.parent.name.removeprefix("fold_")
    folder = ModelFolder(root)
    if not folder.finished_folds():
        folder = convert(path.parent.parent, root, checkpoints={fold: f"{path.parent.name}/{path.name}"})
    return folder, fold


def refuse_start(settings: TrainSettings) -> None:
    """One network of several datasets has no start that fits all of them.

    Raises:
        SettingError: ``--init`` or ``--freeze`` was given.
    """
    if settings.init is not None or settings.freeze:
        raise SettingError(
            "--init and --freeze are for the training of one dataset",
            hint="leave them out, or name one dataset with -d",
        )


__all__ = ["INITIALIZED", "choose_start", "initial_record", "read_source", "refuse_other_start", "refuse_start"]
