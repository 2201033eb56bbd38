"""``autoseg_export --onnx``: graphs, everything around them as JSON, and a program that runs both."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from autoseg import records
from autoseg.errors import SettingError
from autoseg.inference.onnx_graphs import INPUT, OUTPUT, require_onnx, write_graph
from autoseg.inference.predictor import for_inference
from autoseg.inference.tiles import WEIGHT_FLOOR
from autoseg.io.bundle import file_sha256
from autoseg.log import get_logger
from autoseg.pipeline.choose import own_steps
from autoseg.pipeline.weights import configuration_of
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Plan
from autoseg.schema.report import RunReport
from autoseg.schema.sharing import LICENCE, OnnxModel, Terms
from autoseg.version import version

_LOG = get_logger(__name__)

DESCRIPTION = "model.json"
RUNNER = "onnx_runner.py"
_STEP_SIZE = 0.5
_WINDOW_SIGMA = 1 / 8


def export_onnx(model: ModelFolder, folds: tuple[str, ...], target: Path, terms: Terms, *, force: bool) -> Path:
    """Write a folder with ``fold_K.onnx``, ``model.json``, ``onnx_runner.py`` and ``LICENCE.txt``; it is there whole or
    not at all.

    Raises:
        SettingError: a package is missing, the folder exists, the network has no ONNX graph, or it is a cascade.
        ModelFolderError: a graph gives other logits than the network.
        ResourceError: the disk is full.
    """
    _refuse_second_stage(model)
    require_onnx()
    target = target.absolute()
    ours = (target / DESCRIPTION).is_file()
    if target.exists() and not (force and ours):
        hint = "replace it with --force" if ours else "give a folder that does not exist yet with -o"
        raise SettingError(f"{target} exists already", hint=hint)
    records.make_folder(target.parent)
    with records.writing(target):
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            description = _write(staging, model, folds, terms)
            staging.chmod(0o755)
            if ours:
                shutil.rmtree(target)
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    _LOG.info(
        "ONNX: %s, logits differ from autoseg's by at most %.2g\nto run it: python %s %s image.npy labels.npy "
        "--spacing Z Y X (of a picture Y X)",
        target,
        description.largest_difference,
        target / RUNNER,
        target,
    )
    return target


def _refuse_second_stage(model: ModelFolder) -> None:
    configuration = records.load(Plan, model.plan).configuration(configuration_of(model))
    if configuration.previous_stage is not None:
        raise SettingError(
            f"{configuration.name} refines predictions of {configuration.previous_stage}: two models, not one graph",
            hint="export a model of another configuration, or leave out --onnx: then both go into one file",
        )


def _write(folder: Path, model: ModelFolder, folds: tuple[str, ...], terms: Terms) -> OnnxModel:
    plan, run = records.load(Plan, model.plan), records.load(RunReport, model.run)
    configuration = for_inference(plan.configuration(configuration_of(model)), None)
    labels = plan.labels
    differences, sums = [], {}
    for fold in folds:
        path = folder / f"fold_{fold}.onnx"
        differences.append(write_graph(path, model, fold, plan, configuration))
        sums[path.name] = file_sha256(path)
        _LOG.info("fold %s: %s", fold, path.name)
    values = (0, *(labels.regions_class_order or ())) if labels.has_regions else labels.leaves
    description = OnnxModel(
        dataset=plan.dataset,
        configuration=configuration.name,
        architecture=configuration.architecture.label,
        channels=plan.channels,
        labels={label.name: label.values for label in labels.foreground},
        graphs=tuple(sums),
        sha256=sums,
        largest_difference=max(differences),
        input=INPUT,
        output=OUTPUT,
        heads=labels.num_heads,
        ndim=configuration.ndim,
        transpose=plan.transpose,
        spacing=configuration.spacing,
        patch_size=configuration.patch_size,
        normalization=tuple(asdict(scheme) for scheme in configuration.normalization),
        resampling=asdict(configuration.resampling),
        step_size=_STEP_SIZE,
        window_sigma=_WINDOW_SIGMA,
        window_floor=WEIGHT_FLOOR,
        mirror_axes=tuple(run.settings.get("mirror_axes", [])),
        regions=labels.has_regions,
        output_values=tuple(values),
        postprocessing=own_steps(model, folds),
        licence=terms.licence,
        intended_use=terms.intended_use,
        autoseg=version(),
    )
    for step in description.postprocessing:
        _LOG.info("afterwards: %s", step.words)
    records.save(folder / DESCRIPTION, description)
    records.write_text(folder / LICENCE, terms.licence_text)
    # Beside the package's own modules, and readable by anybody without them.
    runner = Path(__file__).parents[1] / "inference" / RUNNER
    records.write_text(folder / RUNNER, runner.read_text(encoding="utf-8"))
    return description
