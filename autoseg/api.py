"""The stages as plain functions: each takes a settings record, or the record's fields as keyword arguments.

>>> autoseg.train(dataset=3, fold=0, time_budget="30m")  # doctest: +SKIP
>>> autoseg.train(TrainSettings(dataset="3", fold=("0",), time_budget=1800.0))  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

from autoseg.cli.commands import COMMANDS
from autoseg.cli.options import build_settings
from autoseg.errors import SettingError
from autoseg.schema.afterwards import EnsembleSettings, PostprocessSettings, SelectSettings
from autoseg.schema.calibration import CalibrateSettings
from autoseg.schema.importing import ImportSettings
from autoseg.schema.settings import (
    ArchitecturesSettings,
    CommonSettings,
    EvaluateSettings,
    PredictSettings,
    PrepareSettings,
    RaceSettings,
    TrainSettings,
)
from autoseg.schema.tools import DoctorSettings, ExportSettings, InstallSettings, MovePlanSettings, PlotSettings


def plan_and_preprocess(settings: PrepareSettings | None = None, **fields: Any) -> Any:
    """Check, measure, plan and preprocess a dataset; fields of ``PrepareSettings``."""
    return _run("plan_and_preprocess", settings, fields)


def fingerprint(settings: PrepareSettings | None = None, **fields: Any) -> Any:
    """Check and measure a dataset; fields of ``PrepareSettings``."""
    return _run("fingerprint", settings, fields)


def plan(settings: PrepareSettings | None = None, **fields: Any) -> Any:
    """Plan from the fingerprint; fields of ``PrepareSettings``."""
    return _run("plan", settings, fields)


def preprocess(settings: PrepareSettings | None = None, **fields: Any) -> Any:
    """Preprocess as planned; fields of ``PrepareSettings``."""
    return _run("preprocess", settings, fields)


def train(settings: TrainSettings | None = None, **fields: Any) -> Any:
    """Train folds and validate them; fields of ``TrainSettings``."""
    return _run("train", settings, fields)


def race(settings: RaceSettings | None = None, **fields: Any) -> Any:
    """Train architectures for the same time and find the best; fields of ``RaceSettings``."""
    return _run("race", settings, fields)


def predict(settings: PredictSettings | None = None, **fields: Any) -> Any:
    """Segment a folder of images; fields of ``PredictSettings``. ``Predictor`` is for images in memory."""
    return _run("predict", settings, fields)


def evaluate(settings: EvaluateSettings | None = None, **fields: Any) -> Any:
    """Score segmentations against references; fields of ``EvaluateSettings``."""
    return _run("evaluate", settings, fields)


def calibrate(settings: CalibrateSettings | None = None, **fields: Any) -> Any:
    """Fit the temperature of a model on its cross-validation; fields of ``CalibrateSettings``."""
    return _run("calibrate", settings, fields)


def select(settings: SelectSettings | None = None, **fields: Any) -> Any:
    """Choose model, ensemble and post-processing on cross-validation; fields of ``SelectSettings``."""
    return _run("select", settings, fields)


def ensemble(settings: EnsembleSettings | None = None, **fields: Any) -> Any:
    """One segmentation of those of several folders; fields of ``EnsembleSettings``."""
    return _run("ensemble", settings, fields)


def postprocess(settings: PostprocessSettings | None = None, **fields: Any) -> Any:
    """Apply post-processing to a folder; fields of ``PostprocessSettings``."""
    return _run("postprocess", settings, fields)


def architectures(settings: ArchitecturesSettings | None = None, **fields: Any) -> Any:
    """What every architecture would cost on a dataset; fields of ``ArchitecturesSettings``."""
    return _run("architectures", settings, fields)


def import_dataset(settings: ImportSettings | None = None, **fields: Any) -> Any:
    """Bring a dataset of another tool or layout into ours; fields of ``ImportSettings``."""
    return _run("import", settings, fields)


def export(settings: ExportSettings | None = None, **fields: Any) -> Any:
    """A model as one file to share, or as ONNX; fields of ``ExportSettings``."""
    return _run("export", settings, fields)


def install(settings: InstallSettings | None = None, **fields: Any) -> Any:
    """Check and unpack a model that was shared; fields of ``InstallSettings``."""
    return _run("install", settings, fields)


def move_plan(settings: MovePlanSettings | None = None, **fields: Any) -> Any:
    """Give a dataset the plan of another one; fields of ``MovePlanSettings``."""
    return _run("move_plan", settings, fields)


def plot(settings: PlotSettings | None = None, **fields: Any) -> Any:
    """Draw segmentations over images; fields of ``PlotSettings``."""
    return _run("plot", settings, fields)


def doctor(settings: DoctorSettings | None = None, **fields: Any) -> Any:
    """What this machine has, how fast it is, and what to change; fields of ``DoctorSettings``."""
    return _run("doctor", settings, fields)


def _run(verb: str, settings: CommonSettings | None, fields: dict[str, Any]) -> Any:
    command = COMMANDS[verb]
    kind = command.settings
    if settings is None:
        settings = build_settings(kind, fields)
    elif fields:
        raise SettingError(
            f"both a {kind.__name__} and {', '.join(fields)} were given",
            hint="give one or the other; dataclasses.replace changes fields of a record",
        )
    if not isinstance(settings, kind):
        raise SettingError(f"{settings!r} is not a {kind.__name__}", hint="write fields by name, as in dataset=3")
    missing = [name for name in command.required if not getattr(settings, name)]
    if missing:
        raise SettingError(f"{' and '.join(missing)} must be given")
    return command.load()(settings)
