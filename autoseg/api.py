"""The stages as plain functions: each takes a settings record, or the record's fields as keyword arguments.

>>> autoseg.train(dataset=3, fold=0, time_budget="30m")  # doctest: +SKIP
>>> autoseg.train(TrainSettings(dataset="3", fold=("0",), time_budget=1800.0))  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

from autoseg.cli.commands import COMMANDS
from autoseg.cli.options import build_settings
from autoseg.errors import SettingError
from autoseg.schema.settings import (
    ArchitecturesSettings,
    CommonSettings,
    EvaluateSettings,
    PredictSettings,
    PrepareSettings,
    RaceSettings,
    TrainSettings,
)


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


def architectures(settings: ArchitecturesSettings | None = None, **fields: Any) -> Any:
    """What every architecture would cost on a dataset; fields of ``ArchitecturesSettings``."""
    return _run("architectures", settings, fields)


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
