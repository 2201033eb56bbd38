"""Train and use networks that segment medical images.

Every name is resolved on first use, so that ``import autoseg`` and ``autoseg -h`` cost nothing.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoseg.api import architectures, evaluate, plan, plan_and_preprocess, predict, preprocess, race, train
    from autoseg.inference.predictor import Predictor
    from autoseg.schema.settings import (
        ArchitecturesSettings,
        EvaluateSettings,
        PredictSettings,
        PrepareSettings,
        RaceSettings,
        TrainSettings,
    )

    __version__: str

_API, _SETTINGS = "autoseg.api", "autoseg.schema.settings"
_HOMES = {
    "plan_and_preprocess": _API,
    "plan": _API,
    "preprocess": _API,
    "train": _API,
    "race": _API,
    "predict": _API,
    "evaluate": _API,
    "architectures": _API,
    "Predictor": "autoseg.inference.predictor",
    "PrepareSettings": _SETTINGS,
    "TrainSettings": _SETTINGS,
    "RaceSettings": _SETTINGS,
    "PredictSettings": _SETTINGS,
    "EvaluateSettings": _SETTINGS,
    "ArchitecturesSettings": _SETTINGS,
}

__all__ = [
    "ArchitecturesSettings",
    "EvaluateSettings",
    "PredictSettings",
    "Predictor",
    "PrepareSettings",
    "RaceSettings",
    "TrainSettings",
    "__version__",
    "architectures",
    "evaluate",
    "fingerprint",
    "plan",
    "plan_and_preprocess",
    "predict",
    "preprocess",
    "race",
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
