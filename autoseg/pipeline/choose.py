"""Which trained model a command is about: the one that is named, else the one that did best in validation."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from autoseg import records
from autoseg.errors import ModelFolderError, SettingError
from autoseg.interop.nnunet_model import as_model_folder
from autoseg.io.bundle import is_bundle
from autoseg.io.discover import resolve_workspace
from autoseg.log import get_logger
from autoseg.pipeline.context import choose_dataset
from autoseg.pipeline.weights import changed_folds, configuration_of, digests
from autoseg.schema.folders import ModelFolder, SelectionFolder
from autoseg.schema.plan import Plan
from autoseg.schema.postprocessing import PostProcessing, PostStep
from autoseg.schema.report import EvaluationReport
from autoseg.schema.selection import Selection
from autoseg.schema.settings import ModelSettings, PredictSettings

_LOG = get_logger(__name__)

_WORDS = {"configuration": "configuration", "arch": "architecture"}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What segments: one model or several together, and what is done to their segmentations."""

    models: tuple[ModelFolder, ...]
    steps: tuple[PostStep, ...] = ()

    @property
    def first(self) -> ModelFolder:
        """The model whose plan and labels stand for all."""
        return self.models[0]


def choose(settings: PredictSettings) -> Choice:
    """What ``autoseg_select`` chose for the dataset, unless a model, configuration or architecture is named.

    A model that is named, or found to be the best where nothing was selected, brings its own post-processing. Says
    what it is. Post-processing that was chosen for other weights is left out, with a warning.

    Raises:
        ModelFolderError, RecordError, SettingError: as ``choose_model``, and a file that cannot be read.
    """
    choice = None
    if settings.model is not None:
        model = choose_model(settings)
    else:
        results = _results(settings)
        choice = None if settings.configuration or settings.arch else _selected(results, settings.fold)
        model = _best(settings, results.root) if choice is None else choice.first
    if choice is None:
        choice = Choice(models=(model,), steps=own_steps(model, settings.fold))
    if not settings.postprocess:
        return Choice(models=choice.models)
    for step in choice.steps:
        _LOG.info("afterwards: %s", step.words)
    return choice


def _results(settings: ModelSettings) -> SelectionFolder:
    workspace = resolve_workspace(settings.workdir)
    return workspace.selection(choose_dataset(settings.dataset, workspace))


def own_steps(model: ModelFolder, folds: tuple[str, ...]) -> tuple[PostStep, ...]:
    """The post-processing in the model's folder, none where it was chosen for other weights of ``folds`` (and say so).

    Raises:
        RecordError: it cannot be read.
    """
    if not model.postprocessing.exists():
        return ()
    known = records.load(PostProcessing, model.postprocessing)
    return known.steps if not _trained_again(model, known.weights, folds) else ()


def _trained_again(model: ModelFolder, known: Mapping[str, str], folds: tuple[str, ...]) -> bool:
    """Whether weights that are used are not those that ``autoseg_select`` compared; says so.

    Args:
        known: SHA-256 sums by fold; empty where they were not kept.
        folds: those that are used, all if empty.
    """
    used = tuple(name for name in model.finished_folds() if not folds or name in folds)
    if not known or not used:
        return False
    today = digests(model, used)
    changed = changed_folds(known, today)
    new = [name for name in today if name not in known]
    if changed:
        _LOG.warning(
            "%s was trained again since autoseg_select (fold %s): post-processing that was chosen for the old weights "
            "is left out; run autoseg_select again",
            model.root.name,
            ", ".join(changed),
        )
    elif new:
        _LOG.warning("%s has new folds since autoseg_select: %s; run it again", model.root.name, ", ".join(new))
    return bool(changed)


def _selected(folder: SelectionFolder, folds: tuple[str, ...]) -> Choice | None:
    """The selection of the dataset, None where there is none that can be followed."""
    if not folder.file.exists():
        return None
    selection = records.load(Selection, folder.file)
    models = tuple(folder.model(name) for name in selection.models)
    gone = [model.root.name for model in models if not model.finished_folds()]
    if gone:
        _LOG.warning("%s names models that are gone: %s; run autoseg_select again", folder.file, ", ".join(gone))
        return None
    judged = {name for candidate in selection.candidates for name in candidate.models} | set(selection.left_out)
    fresh = sorted({path.parent.parent.name for path in folder.root.glob("*/fold_*/weights.safetensors")} - judged)
    if fresh:
        _LOG.warning("not compared yet, autoseg_select does that: %s", ", ".join(fresh))
    _LOG.info("model: %s (selection.json: %s)", " + ".join(selection.models), selection.verdict)
    again = [_trained_again(model, selection.weights.get(model.root.name, {}), folds) for model in models]
    return Choice(models=models, steps=() if any(again) else selection.postprocessing)


def choose_model(settings: ModelSettings) -> ModelFolder:
    """The model asked for, else the best single one of the selection, else the trained one of the dataset that did best
    in validation (and say which).

    Raises:
        ModelFolderError: there is no trained model, or none of the configuration.
        SettingError: the model that is named is of another configuration or architecture.
    """
    if settings.model is not None:
        cache = resolve_workspace(settings.workdir).translated
        folder = as_model_folder(settings.model, cache, configuration=settings.configuration)
        return _named_model(folder, Path(settings.model).expanduser().absolute(), settings)
    results = _results(settings)
    if settings.configuration is None and settings.arch is None and results.file.exists():
        for candidate in records.load(Selection, results.file).candidates:
            model = results.model(candidate.models[0])
            if len(candidate.models) == 1 and model.finished_folds():
                _LOG.info("model: %s (the best single one of selection.json)", model.root)
                return model
    return _best(settings, results.root)


def _best(settings: ModelSettings, root: Path) -> ModelFolder:
    trained = [folder for folder in map(ModelFolder, sorted(root.glob("*"))) if folder.finished_folds()]
    fitting = [folder for folder in trained if settings.configuration in {None, configuration_of(folder)}]
    if settings.arch is not None:
        fitting = [folder for folder in fitting if settings.arch == architecture_of(folder)]
    if not fitting:
        asked = {"configuration": settings.configuration, "architecture": settings.arch}
        wanted = " and ".join(f"{what} {name}" for what, name in asked.items() if name)
        wanted = f" of {wanted}" if wanted else ""
        names = ", ".join(f"{configuration_of(folder)} with {architecture_of(folder)}" for folder in trained)
        raise ModelFolderError(
            f"there is no trained model{wanted} in {root}",
            hint=f"trained are: {names}" if names else "run autoseg_train first, or name a model folder with --model",
        )
    scores = {folder: _validation_dice(folder) for folder in fitting}
    best = max(fitting, key=lambda folder: _rank(folder, scores[folder]))
    score = "not validated" if math.isnan(scores[best]) else f"validation Dice {scores[best]:.4f}"
    _LOG.info("model: %s (%s, the best of %d)", best.root, score, len(fitting))
    return best


def _named_model(root: Path, named: Path, settings: ModelSettings) -> ModelFolder:
    """The model in ``root``, which is ``named`` itself or its translation from nnU-Net."""
    folder = ModelFolder(root)
    if not folder.finished_folds():
        _refuse_named(named)
    for flag, asked, found in (
        ("configuration", settings.configuration, configuration_of),
        ("arch", settings.arch, architecture_of),
    ):
        if asked is not None and asked != found(folder):
            raise SettingError(
                f"{named} is a model of {_WORDS[flag]} {found(folder)}, not {asked}",
                hint=f"leave out --{flag}, or give another --model",
            )
    return folder


def _refuse_named(path: Path) -> NoReturn:
    if not path.exists():
        raise ModelFolderError(f"{path} does not exist", hint="give the folder of a trained model with --model")
    if is_bundle(path):
        raise ModelFolderError(
            f"{path} is a model that is not installed yet",
            hint=f"run {shlex.join(['autoseg_install', '-i', str(path)])}, then name the folder that it prints",
        )
    raise ModelFolderError(
        f"{path} is not a folder of a trained model", hint="give the folder that holds plan.json and fold_0"
    )


def architecture_of(folder: ModelFolder) -> str:
    return records.load(Plan, folder.plan).configuration(configuration_of(folder)).architecture.label


def _validation_dice(folder: ModelFolder) -> float:
    """Mean over the validated folds, NaN if there are none."""
    paths = [folder.fold(name).summary for name in folder.finished_folds()]
    scores = [records.load(EvaluationReport, path).foreground_dice for path in paths if path.exists()]
    known = [score for score in scores if not math.isnan(score)]
    return sum(known) / len(known) if known else math.nan


def _rank(folder: ModelFolder, score: float) -> tuple[float, bool, int]:
    """Validated before not validated, then the planned default, then the larger ensemble."""
    default = records.load(Plan, folder.plan).default_configuration == configuration_of(folder)
    return (-1.0 if math.isnan(score) else score, default, len(folder.finished_folds()))
