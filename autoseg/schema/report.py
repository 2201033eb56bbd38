"""Scores of predictions, per case and class, and what is left of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """One label in one case; distances in mm, volumes in ml; NaN where a figure has no meaning (see ``empty``).

    ``empty`` is "" (both have voxels), "both", "reference" or "prediction": who has none. Overlaps of "both" are
    NaN and stay out of means; "reference" and "prediction" score 0. Surface distances need both.
    """

    label: str
    empty: str
    dice: float
    iou: float
    precision: float
    recall: float
    reference_ml: float
    prediction_ml: float
    hd95: float
    assd: float
    surface_dice: float
    lesion_f1: float


@dataclass(frozen=True, kw_only=True)
class CaseScores:
    id: str
    reference: str
    prediction: str
    classes: tuple[ClassScores, ...]


@dataclass(frozen=True, kw_only=True)
class MeanScores:
    """Means over the cases in which a figure is defined, and how many cases were empty in which way."""

    label: str
    cases: int
    empty_both: int
    empty_reference: int
    empty_prediction: int
    dice: float
    iou: float
    precision: float
    recall: float
    hd95: float
    assd: float
    surface_dice: float
    lesion_f1: float


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """``foreground_dice`` is the mean over labels of the mean over cases (labels that never occur left out).

    ``missing`` are references without a prediction; ``faults`` say of pairs that could not be scored, why.
    """

    VERSION: ClassVar[int] = 1

    version: int = 1
    foreground_dice: float
    surface_tolerance_mm: float
    mean: tuple[MeanScores, ...]
    cases: tuple[CaseScores, ...]
    missing: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """How a model came to be: enough to repeat it."""

    VERSION: ClassVar[int] = 1

    version: int = 1
    command: str
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: str = ""


@dataclass(frozen=True, kw_only=True)
class FoldRun:
    """Where one fold stands. ``status`` is "training", "trained" (weights are final) or "validated".

    One of the two targets is set: epochs, or seconds of training. ``budget`` is the time budget of the command for
    all of its folds; ``seconds`` is what training took so far.
    """

    VERSION: ClassVar[int] = 1

    version: int = 1
    fold: str
    status: str
    signature: str
    target_epochs: int | None
    target_seconds: float | None
    budget: float | None
    epochs: int
    steps: int
    seconds: float
    validation_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PredictionRun:
    """What made the segmentations in a folder. ``weights`` are SHA-256 sums of the files, by fold."""

    VERSION: ClassVar[int] = 1

    version: int = 1
    command: str
    model: str
    configuration: str
    weights: dict[str, str]
    mirror_axes: tuple[int, ...]
    step_size: float
    versions: dict[str, str] = field(default_factory=dict)
    prune: int | None = None

    @property
    def making(self) -> tuple[object, ...]:
        """Equal for two runs that give the same segmentation of an image, up to rounding."""
        weights = tuple(sorted(self.weights.items()))
        return self.configuration, weights, self.mirror_axes, self.step_size, self.prune
