"""What cross-validation chose: one model or two together, and what is done to their segmentations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from autoseg.schema.postprocessing import PostStep
from autoseg.schema.report import Interval


@dataclass(frozen=True, kw_only=True)
class StepTrial:
    """A step that was tried: what it changed in the mean Dice over all labels, case by case."""

    step: PostStep
    gain: Interval
    adopted: bool


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model, or several together: names of folders in the results of the dataset.

    ``dice`` is before and ``dice_after`` after post-processing; ``difference`` is ``dice_after`` less that of the
    candidate that was chosen.
    """

    models: tuple[str, ...]
    dice: Interval
    dice_after: Interval
    difference: Interval
    postprocessing: tuple[PostStep, ...] = ()
    trials: tuple[StepTrial, ...] = ()

    @property
    def name(self) -> str:
        return " + ".join(self.models)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """``selection.json``: what ``autoseg_predict`` follows. Candidates come best first; the first is the choice.

    ``weights`` are SHA-256 sums of what was compared, by model and fold.
    """

    VERSION: ClassVar[int] = 1

    version: int = 1
    dataset: str
    models: tuple[str, ...]
    postprocessing: tuple[PostStep, ...]
    cases: int
    candidates: tuple[Candidate, ...]
    left_out: dict[str, str]
    verdict: str
    weights: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CaseTable:
    """Dice of every label of one case by chain of steps, as long as ``stamp`` is that of the files.

    ``volumes`` are those of the reference labels, in mm^3 (in pictures: areas).
    """

    VERSION: ClassVar[int] = 1

    version: int = 1
    stamp: str
    dice: dict[str, tuple[float, ...]] = field(default_factory=dict)
    volumes: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EnsembleRun:
    """What made the segmentations in a folder of ``autoseg_ensemble``: ``method`` is "probabilities" or "vote"."""

    VERSION: ClassVar[int] = 1

    version: int = 1
    inputs: tuple[str, ...]
    method: str


@dataclass(frozen=True, kw_only=True)
class PostProcessRun:
    """What was done to the segmentations of ``source``."""

    VERSION: ClassVar[int] = 1

    version: int = 1
    source: str
    steps: tuple[PostStep, ...]
