"""How sure a model is of its segmentations, and the temperature that makes its probabilities honest."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from autoseg.errors import RecordError
from autoseg.schema.settings import DEVICE_HELP, ModelSettings, option


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings(ModelSettings):
    """Fit the temperature of a trained model on its cross-validation."""

    fold: tuple[str, ...] = option(
        (), "folds to use; default: all that are trained", flags=("-f", "--fold"), metavar="FOLD", many=True
    )
    tta: bool | None = option(None, "mirroring test-time augmentation; default: on a GPU yes, on a CPU no")
    device: str = option("auto", DEVICE_HELP, metavar="DEVICE")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """``calibration.json`` of a model folder: logits over ``temperature`` give probabilities.

    The figures are of held-out cases, near the foreground, before and after: ``nll`` in nats per voxel, ``ece`` of 15
    bins. ``weights`` are SHA-256 sums of the files that it is for, by fold.
    """

    VERSION: ClassVar[int] = 1

    version: int = 1
    temperature: float
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    cases: int
    voxels: int
    weights: dict[str, str]

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise RecordError(f"{self.temperature} is no temperature", hint="calibrate again")


@dataclass(frozen=True, kw_only=True)
class LabelDoubt:
    """The Dice of a label that the probabilities let expect, NaN where it is absent without a doubt.

    ``voxels`` were found, ``expected_voxels`` is the sum of probabilities of 5% and more.
    """

    label: str
    expected_dice: float
    voxels: int
    expected_voxels: float


@dataclass(frozen=True, kw_only=True)
class CaseDoubt:
    """``score`` is 1 less the mean expected Dice: 0 is sure, 1 not at all; NaN where nothing is found or expected.

    Of several models together ``temperatures`` are those of each, by name, and ``temperature`` is NaN.
    """

    VERSION: ClassVar[int] = 1

    version: int = 1
    temperature: float
    score: float
    labels: tuple[LabelDoubt, ...]
    temperatures: dict[str, float] = field(default_factory=dict, metadata={"omit_default": True})


@dataclass(frozen=True, kw_only=True)
class ListedCase:
    id: str
    doubt: CaseDoubt


@dataclass(frozen=True, kw_only=True)
class UncertaintyReport:
    """``uncertainty.json`` of a prediction: the cases, least certain first; temperatures as of ``CaseDoubt``."""

    VERSION: ClassVar[int] = 1

    version: int = 1
    temperature: float
    cases: tuple[ListedCase, ...]
    temperatures: dict[str, float] = field(default_factory=dict, metadata={"omit_default": True})


__all__ = ["CalibrateSettings", "Calibration", "CaseDoubt", "LabelDoubt", "ListedCase", "UncertaintyReport"]
