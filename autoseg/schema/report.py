"""Scores of predictions, per case and class, and what is left of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from autoseg.schema.postprocessing import PostStep


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """One label in one case; distances in mm, volumes in ml; NaN where a figure has no meaning (see ``empty``).

    ``empty`` is "" (both have voxels), "both", "reference" or "prediction": who has none. Overlaps of "both" are
    NaN and stay out of means; "reference" and "prediction" score 0. Surface distances need both. "unannotated" is a
    label that nobody looked for in this reference: every figure is NaN.
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
class Share:
    """A fold's part in the time budget of a command: ``budget`` seconds for the folds in ``together``.

    ``before`` are the seconds that the fold had trained when the command began; ``round`` counts the commands that
    went on with folds that were finished. ``used`` seconds of the budget were over when the fold began or went on, and
    had then trained for ``resumed_at``.
    """

    budget: float
    round: int
    before: float
    together: tuple[str, ...]
    used: float
    resumed_at: float


@dataclass(frozen=True, kw_only=True)
class FoldRun:
    """Where one fold stands. ``status`` is "training", "trained" (weights are final) or "validated".

    One of the two targets is set: epochs, or seconds of training. ``seconds`` is what training took so far. With a
    time budget, ``budget``, ``round``, ``before`` and ``together`` are those of its ``Share``, and ``used`` is how much
    of the budget was over when the record was written.
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
    round: int = 0
    before: float = 0.0
    together: tuple[str, ...] = ()
    used: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PredictionRun:
    """What made the segmentations in a folder. ``weights`` are SHA-256 sums of the files, by fold.

    Several models together are named one after the other, their folds with the model's name, and ``mirror_axes`` are
    those of all of them in a row.
    """

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
    postprocessing: tuple[PostStep, ...] = ()

    @property
    def making(self) -> tuple[object, ...]:
        """Equal for two runs that give the same segmentation of an image, up to rounding."""
        weights = tuple(sorted(self.weights.items()))
        return self.configuration, weights, self.mirror_axes, self.step_size, self.prune, self.postprocessing


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and the ends of its confidence interval, which are NaN where there is only one value."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class RaceQuestion:
    """What a race is to find out; a stopped race goes on only for the same question.

    ``plan``, ``files`` and ``splits`` are hashes: of the plan when the race began, of the data, and of the folds.
    """

    arch: tuple[str, ...]
    configuration: str | None
    fold: tuple[str, ...]
    time_budget: float
    device: str
    seed: int
    plan: str
    files: str
    splits: str


@dataclass(frozen=True, kw_only=True)
class RaceTraining:
    """One architecture in one round: the mean Dice over labels of each case, or why it is out.

    ``steps`` and ``seconds`` of training are of all folds together.
    """

    arch: str
    configuration: str
    parameters: int
    steps: int = 0
    seconds: float = 0.0
    dice: dict[str, float] = field(default_factory=dict)
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class RaceRound:
    """``seconds`` are for one fold of each entrant, validation included."""

    entrants: tuple[str, ...]
    seconds: float
    trainings: tuple[RaceTraining, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RacePlace:
    """How an architecture ended, from its last round (``rounds``, counted from 1).

    ``difference`` is its Dice less that of the winner in that round, case by case. ``model`` is relative to the race.
    """

    arch: str
    configuration: str
    rounds: int
    cases: int
    dice: Interval
    difference: Interval
    parameters: int
    steps: int
    seconds: float
    model: str


@dataclass(frozen=True, kw_only=True)
class RaceReport:
    """A race so far; ``ranking``, best first, and ``verdict`` are there when it is over.

    ``refused`` could not be planned, with the reason; ``adopted`` is the hash of the winner's plan if it became the
    dataset's.
    """

    VERSION: ClassVar[int] = 1

    version: int = 1
    dataset: str
    question: RaceQuestion
    preparation_seconds: float
    refused: dict[str, str]
    rounds: tuple[RaceRound, ...] = ()
    ranking: tuple[RacePlace, ...] = ()
    verdict: str = ""
    adopted: str = ""

    @property
    def failures(self) -> dict[str, str]:
        """Why architectures are out, by name: not planned, diverged, or out of memory."""
        failed = {item.arch: item.failure for heat in self.rounds for item in heat.trainings if item.failure}
        return {**self.refused, **failed}
