"""Train and use networks that segment medical images.

Every name is resolved on first use, so that ``import autoseg`` and ``autoseg -h`` cost nothing.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoseg.api import (
        architectures,
        calibrate,
        doctor,
        ensemble,
        evaluate,
        export,
        import_dataset,
        install,
        move_plan,
        plan,
        plan_and_preprocess,
        plot,
        postprocess,
        predict,
        preprocess,
        race,
        select,
        train,
    )
    from autoseg.inference.predictor import Predictor
    from autoseg.schema.afterwards import EnsembleSettings, PostprocessSettings, SelectSettings
    from autoseg.schema.calibration import CalibrateSettings
    from autoseg.schema.importing import ImportSettings
    from autoseg.schema.settings import (
        ArchitecturesSettings,
        EvaluateSettings,
        PredictSettings,
        PrepareSettings,
        RaceSettings,
        TrainSettings,
    )
    from autoseg.schema.tools import DoctorSettings, ExportSettings, InstallSettings, MovePlanSettings, PlotSettings

    __version__: str

_API, _SETTINGS, _AFTERWARDS = "autoseg.api", "autoseg.schema.settings", "autoseg.schema.afterwards"
_HOMES = {
    "plan_and_preprocess": _API,
    "plan": _API,
    "preprocess": _API,
    "train": _API,
    "race": _API,
    "predict": _API,
    "evaluate": _API,
    "architectures": _API,
    "select": _API,
    "calibrate": _API,
    "ensemble": _API,
    "postprocess": _API,
    "import_dataset": _API,
    "export": _API,
    "install": _API,
    "move_plan": _API,
    "plot": _API,
    "doctor": _API,
    "Predictor": "autoseg.inference.predictor",
    "PrepareSettings": _SETTINGS,
    "TrainSettings": _SETTINGS,
    "RaceSettings": _SETTINGS,
    "PredictSettings": _SETTINGS,
    "EvaluateSettings": _SETTINGS,
    "ArchitecturesSettings": _SETTINGS,
    "SelectSettings": _AFTERWARDS,
    "CalibrateSettings": "autoseg.schema.calibration",
    "EnsembleSettings": _AFTERWARDS,
    "PostprocessSettings": _AFTERWARDS,
    "ImportSettings": "autoseg.schema.importing",
    "ExportSettings": "autoseg.schema.tools",
    "InstallSettings": "autoseg.schema.tools",
    "MovePlanSettings": "autoseg.schema.tools",
    "PlotSettings": "autoseg.schema.tools",
    "DoctorSettings": "autoseg.schema.tools",
}

__all__ = [
    "ArchitecturesSettings",
    "CalibrateSettings",
    "DoctorSettings",
    "EnsembleSettings",
    "EvaluateSettings",
    "ExportSettings",
    "ImportSettings",
    "InstallSettings",
    "MovePlanSettings",
    "PlotSettings",
    "PostprocessSettings",
    "PredictSettings",
    "Predictor",
    "PrepareSettings",
    "RaceSettings",
    "SelectSettings",
    "TrainSettings",
    "__version__",
    "architectures",
    "calibrate",
    "doctor",
    "ensemble",
    "evaluate",
    "export",
    "fingerprint",
    "import_dataset",
    "install",
    "move_plan",
    "plan",
    "plan_and_preprocess",
    "plot",
    "postprocess",
    "predict",
    "preprocess",
    "race",
    "select",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("autoseg.version").version()
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'autoseg' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """``autoseg.fingerprint`` is the stage, also after something has imported the subpackage of that name.

    Importing a subpackage sets it as an attribute of its parent, which would hide the function.
    """

    @property
    def fingerprint(self) -> Any:
        return importlib.import_module(_API).fingerprint

    @fingerprint.setter
    def fingerprint(self, value: Any) -> None:
        """The import system's assignment is let pass; ``from autoseg.fingerprint import ...`` works without it."""


sys.modules[__name__].__class__ = _Package
