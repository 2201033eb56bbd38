"""``autoseg_export``: make one file of a trained model, or ONNX graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autoseg import records
from autoseg.errors import SettingError
from autoseg.inference.cascade import check_before
from autoseg.inference.predictor import chosen_folds
from autoseg.io.bundle import Content, describe, file_sha256, write_bundle
from autoseg.log import get_logger, size
from autoseg.pipeline.calibrate import FILE as CALIBRATION
from autoseg.pipeline.card import card_text, make_card, public_run
from autoseg.pipeline.choose import choose_model
from autoseg.pipeline.weights import configuration_of, stage_before
from autoseg.schema.calibration import Calibration
from autoseg.schema.dataset import DatasetSpec
from autoseg.schema.folders import FIRST_STAGE, PREVIOUS_MODEL, ModelFolder, Workspace
from autoseg.schema.plan import Plan
from autoseg.schema.postprocessing import PostProcessing
from autoseg.schema.report import EvaluationReport, RunReport
from autoseg.schema.sharing import CARD, LICENCE, READABLE_CARD, Manifest, Terms
from autoseg.schema.tools import ExportSettings
from autoseg.version import version

_LOG = get_logger(__name__)

_NO_LICENCE = "not stated; ask whoever made the model before you use it"
_NO_USE = "Not stated. This is research software, not a medical device: have every segmentation checked."
_LARGEST_TEXT = 1 << 20


def export(settings: ExportSettings) -> Path:
    """Write the model that ``settings`` choose into one file (or, with ``onnx``, a folder) and return its path.

    The same model gives the same bytes. Case names, paths and fingerprints stay behind. Of a cascade both stages are
    written, of the first one all folds, as prediction uses them.

    Raises:
        ModelFolderError: there is no trained model, or not these folds, or the first stage of a cascade is not there.
        SettingError: the file exists already, or cannot be written.
        ResourceError: the disk is full.
    """
    model = choose_model(settings)
    chosen = chosen_folds(model, settings.fold)
    folds = tuple(name for name in model.finished_folds() if name in chosen)
    plan = records.load(Plan, model.plan)
    name = model_name(model, plan)
    terms = _terms(settings)
    if settings.onnx:
        from autoseg.pipeline.export_onnx import export_onnx

        place = Path(settings.output or f"{plan.dataset}_{name}_onnx").expanduser()
        target = export_onnx(model, folds, place, terms, force=settings.force)
        _ask_for_licence(settings)
        return target
    before = _first_stage(plan, model)
    target = Path(settings.output or f"{plan.dataset}_{name}.autoseg.zip").expanduser().absolute()
    if target.is_dir():
        raise SettingError(f"{target} is a folder", hint="give the name of a file with -o")
    if target.exists() and not settings.force:
        raise SettingError(f"{target} exists already", hint="give another name with -o, or replace it with --force")
    members = _members(model, folds, before, terms)
    manifest = Manifest(
        dataset=plan.dataset, model=name, licence=terms.licence, autoseg=version(), members=describe(members)
    )
    write_bundle(target, manifest, members)
    _ask_for_licence(settings)
    _LOG.info("model: %s, folds %s", model.root, ", ".join(folds))
    if before is not None:
        _LOG.info("first stage: %s, folds %s", before.root, ", ".join(before.finished_folds()))
    _LOG.info("file: %s, %s\nsha256: %s", target, size(target.stat().st_size), file_sha256(target))
    return target


def _ask_for_licence(settings: ExportSettings) -> None:
    if settings.licence is None:
        _LOG.warning("no licence is stated, so nobody may use these weights without asking: give one with --licence")


def model_name(model: ModelFolder, plan: Plan) -> str:
    """The folder that training gives such a model, wherever this one lies."""
    configuration = plan.configuration(configuration_of(model))
    return Workspace(Path()).model(plan.dataset, configuration.name, configuration.architecture.label).root.name


def _first_stage(plan: Plan, model: ModelFolder) -> ModelFolder | None:
    before = stage_before(model)
    if before is not None:
        theirs = records.load(Plan, before.plan)
        check_before(theirs, configuration_of(before), plan, plan.configuration(configuration_of(model)))
    return before


def _terms(settings: ExportSettings) -> Terms:
    text = _words(settings.licence, "--licence") if settings.licence is not None else _NO_LICENCE
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise SettingError("--licence is empty", hint="give a name such as CC-BY-4.0, or a text file")
    use = _words(settings.intended_use, "--intended-use").strip() if settings.intended_use is not None else _NO_USE
    return Terms(licence=lines[0][:100], licence_text=text.rstrip() + "\n", intended_use=use)


def _words(given: str, flag: str) -> str:
    """The text itself, or that of the file it names.

    Raises:
        SettingError: the file is not text.
    """
    path = Path(given).expanduser()
    try:
        if len(given) > 1000 or not path.is_file():
            return given
        if path.stat().st_size > _LARGEST_TEXT:
            raise SettingError(f"{flag}: {path} is larger than a text of words", hint="give a text file")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingError(f"{flag}: {path} is not text in UTF-8", hint="give a text file") from error


def _members(
    model: ModelFolder, folds: tuple[str, ...], before: ModelFolder | None, terms: Terms
) -> dict[str, Content]:
    card = make_card(model, folds, before, licence=terms.licence, intended_use=terms.intended_use)
    members: dict[str, Content] = {
        CARD: records.to_json(card).encode(),
        READABLE_CARD: card_text(card).encode(),
        LICENCE: terms.licence_text.encode(),
    }
    for path, kind in ((model.postprocessing, PostProcessing), (model.root / CALIBRATION, Calibration)):
        if path.exists():
            # Whoever gets the file could not use one that cannot be read.
            records.load(kind, path)
            members[path.name] = path.read_bytes()
    if before is None:
        return members | _stage(model, folds)
    first = _stage(before, before.finished_folds())
    members |= {f"{FIRST_STAGE}/{name}": content for name, content in first.items()}
    # Inside the model of the second stage, wherever it lay before.
    return members | _stage(model, folds, **{PREVIOUS_MODEL: FIRST_STAGE})


def _stage(model: ModelFolder, folds: tuple[str, ...], **places: str) -> dict[str, Content]:
    """What prediction needs of a model, by its name inside the model's folder; ``places`` as for ``public_run``."""
    spec = replace(records.load(DatasetSpec, model.dataset), cases=())
    run = public_run(records.load(RunReport, model.run), **places)
    members: dict[str, Content] = {
        model.plan.name: records.to_json(records.load(Plan, model.plan)).encode(),
        model.dataset.name: records.to_json(spec).encode(),
        model.run.name: records.to_json(run).encode(),
    }
    for name in folds:
        folder, inside = model.fold(name), f"fold_{name}"
        members[f"{inside}/{folder.weights.name}"] = folder.weights
        if folder.run.exists():
            members[f"{inside}/{folder.run.name}"] = folder.run.read_bytes()
        if folder.summary.exists():
            # Prediction ranks models by the means; cases have names and paths.
            means = replace(records.load(EvaluationReport, folder.summary), cases=(), missing=(), faults=())
            members[f"{inside}/validation/{folder.summary.name}"] = records.to_json(means).encode()
    return members
