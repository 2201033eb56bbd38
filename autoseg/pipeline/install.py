"""``autoseg_install``: put the model of a file where prediction finds it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from autoseg import records
from autoseg.errors import ModelFolderError, RecordError, SettingError
from autoseg.inference.cascade import check_before
from autoseg.inference.ensemble import weights_configuration
from autoseg.inference.predictor import mirror_axes
from autoseg.io.bundle import Bundle, describe, file_sha256, open_bundle
from autoseg.io.discover import resolve_workspace
from autoseg.io.staging import staging, sweep
from autoseg.log import get_logger
from autoseg.pipeline.context import remember_dataset
from autoseg.pipeline.weights import configuration_of
from autoseg.schema.calibration import Calibration
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.folders import FIRST_STAGE, PREVIOUS_MODEL, ModelFolder, Workspace
from autoseg.schema.plan import Configuration, Plan
from autoseg.schema.postprocessing import PostProcessing
from autoseg.schema.report import EvaluationReport, FoldRun, RunReport
from autoseg.schema.sharing import CARD, LICENCE, READABLE_CARD, Card, Manifest, is_model_name
from autoseg.schema.tools import InstallSettings

_LOG = get_logger(__name__)

_SHOWN_LICENCE_LINES = 20
_STAGING = "installing"
# Inside of such a folder; what is replaced lies there as DATASET/MODEL until the new one has its place.
_NEW, _FORMER = "new", "former"
# Prediction reads these when it comes to them.
_KINDS: dict[str, type] = {
    "fold.json": FoldRun,
    "summary.json": EvaluationReport,
    "postprocessing.json": PostProcessing,
    "calibration.json": Calibration,
}
_AUTHOR = "ask for a file that autoseg_export made"


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What is there now; ``was_there`` if the same model had been installed before."""

    model: ModelFolder
    manifest: Manifest
    was_there: bool
    card: str
    licence: str


def install(settings: InstallSettings) -> Installed:
    """Check a file of ``autoseg_export`` and move its model, whole, into the results of the work directory.

    Raises:
        ModelFolderError: the file is damaged, tampered with or no model, or does not fit together.
        SettingError: there is another model of that name, or the checksum is another one.
        ResourceError: the disk is full.
    """
    path = Path(settings.file).expanduser().absolute()
    workspace = resolve_workspace(settings.workdir)
    if settings.name is not None and not is_model_name(settings.name):
        raise SettingError(f"{settings.name!r} cannot be the name of a model", hint="give a plain --name")
    sweep(workspace.results, _STAGING, lambda left: _settle(left, workspace))
    with open_bundle(path) as bundle:
        _compare(path, settings.sha256)
        model = ModelFolder(workspace.results / bundle.manifest.dataset / (settings.name or bundle.manifest.model))
        card, licence = bundle.text(READABLE_CARD), bundle.text(LICENCE)
        was_there = _is_installed(model, bundle.manifest)
        if not was_there:
            _refuse_other(model, settings)
            _place(bundle, model, workspace)
    if not workspace.current.exists():
        remember_dataset(bundle.manifest.dataset, workspace)
    _LOG.info("model: %s%s", model.root, " (it was there already)" if was_there else "")
    return Installed(model=model, manifest=bundle.manifest, was_there=was_there, card=card, licence=licence)


def installed_text(installed: Installed, settings: InstallSettings) -> str:
    """Card, licence, and how to go on. Characters that would steer a terminal are left out."""
    lines = installed.licence.splitlines()
    shown = lines[:_SHOWN_LICENCE_LINES]
    if len(lines) > len(shown):
        shown.append(f"... ({len(lines) - len(shown)} more lines in {installed.model.root / LICENCE})")
    command = shlex.join(["autoseg_predict", "-m", str(installed.model.root), "-i", "IN", "-o", "OUT"])
    text = "\n".join([installed.card, "## Licence", "", *shown, "", f"To use it: {command}"])
    return "".join(letter for letter in text if letter.isprintable() or letter == "\n") + "\n"


def _compare(path: Path, expected: str | None) -> None:
    if expected is None:
        return
    if not re.fullmatch(r"[0-9a-fA-F]{64}", expected.strip()):
        raise SettingError("--sha256 is not 64 hexadecimal digits", hint="copy it from where the file was announced")
    found = file_sha256(path)
    if found != expected.strip().lower():
        raise SettingError(f"{path} has the checksum {found}, not the expected one", hint="fetch it again")


def _is_installed(model: ModelFolder, manifest: Manifest) -> bool:
    """Whether every member lies there unchanged, and no further fold."""
    paths = {member.name: model.root / member.name for member in manifest.members}
    there = (set(model.finished_folds()), set(model.first_stage.finished_folds()))
    if not all(path.is_file() for path in paths.values()) or there != (set(manifest.folds), set(manifest.first_folds)):
        return False
    return describe(paths) == tuple(sorted(manifest.members, key=lambda member: member.name))


def _refuse_other(model: ModelFolder, settings: InstallSettings) -> None:
    if model.root.is_symlink() or (model.root.exists() and not model.root.is_dir()):
        raise SettingError(f"{model.root} is a link or a file", hint="give another --name")
    if model.root.exists() and not settings.force:
        raise SettingError(
            f"{model.root} holds another model", hint="give this one another --name, or replace that with --force"
        )


def _place(bundle: Bundle, model: ModelFolder, workspace: Workspace) -> None:
    """Unpack beside the results, look it over, and rename: the model is there whole or not at all."""
    # Not among the models of the dataset, where prediction would find half of it.
    with staging(workspace.results, _STAGING, lambda left: _settle(left, workspace)) as folder:
        fresh, former = ModelFolder(folder / _NEW), folder / _FORMER / model.root.parent.name / model.root.name
        bundle.extract(fresh.root)
        _check(fresh, bundle)
        with records.writing(model.root):
            former.parent.mkdir(parents=True)
            # Not before: a file that turns out to be none, or a full disk, leaves no empty dataset.
            model.root.parent.mkdir(exist_ok=True)
            if model.root.exists():
                model.root.rename(former)
            try:
                fresh.root.rename(model.root)
            except OSError:
                if former.exists():
                    former.rename(model.root)
                raise


def _settle(left: Path, workspace: Workspace) -> bool:
    """Put back what a killed installation had moved away; whether nothing else is worth keeping."""
    if not (left / _NEW).exists():
        # It was over, or nothing was moved.
        return True
    for former in left.glob(f"{_FORMER}/*/*"):
        place = workspace.results / former.parent.name / former.name
        if place.exists():
            _LOG.warning("%s holds another model now; the one that an installation had moved is in %s", place, former)
            return False
        records.make_folder(place.parent)
        with records.writing(place):
            former.rename(place)
        _LOG.info("model: %s is back, an installation was stopped before it replaced it", place)
    return True


def _check(model: ModelFolder, bundle: Bundle) -> None:
    """Records can be read and belong together, and every fold says that it is of this configuration.

    Raises:
        ModelFolderError: they do not, or a cascade does not bring the first stage that fits it.
    """
    try:
        plan, configuration = _trained(model)
        records.load(Card, model.root / CARD)
        for member in bundle.manifest.members:
            if kind := _KINDS.get(Path(member.name).name):
                records.load(kind, model.root / member.name)
        problems = _strange_folds(model)
        if bundle.manifest.first_folds:
            before, first = _trained(model.first_stage)
            check_before(before, first.name, plan, configuration)
            problems += [f"{FIRST_STAGE} {fold}" for fold in _strange_folds(model.first_stage)]
        elif configuration.previous_stage is not None:
            raise ModelFolderError(
                f"{configuration.name} comes without its model of {configuration.previous_stage}", hint=_AUTHOR
            )
        named = records.load(RunReport, model.run).settings.get(PREVIOUS_MODEL)
    except (RecordError, SettingError, ModelFolderError) as error:
        raise ModelFolderError(
            f"{bundle.path} does not hold a model that this autoseg can use: {error.message}", hint=error.hint
        ) from error
    # Any other path would lead to a model that did not come with this one.
    if configuration.previous_stage is not None and named != FIRST_STAGE:
        problems.append(f"{PREVIOUS_MODEL} {named}")
    if plan.dataset != bundle.manifest.dataset:
        problems.append(plan.dataset)
    if problems:
        raise ModelFolderError(f"{bundle.path} holds parts of different models: {', '.join(problems)}", hint=_AUTHOR)


def _trained(model: ModelFolder) -> tuple[Plan, Configuration]:
    plan = records.load(Plan, model.plan)
    records.load(DatasetSpec, model.dataset)
    configuration = plan.configuration(configuration_of(model))
    mirror_axes(model, configuration)
    return plan, configuration


def _strange_folds(model: ModelFolder) -> list[str]:
    """Those whose weights are of another configuration."""
    name, folds = configuration_of(model), model.finished_folds()
    return [f"fold {fold}" for fold in folds if weights_configuration(model.fold(fold).weights) != name]
