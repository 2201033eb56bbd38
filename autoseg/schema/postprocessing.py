"""What is done to segmentations after the network, as data: a chain of rules on connected components."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from autoseg.errors import RecordError

KEEP_LARGEST = "keep_largest"
REMOVE_SMALL = "remove_small"
FILL_HOLES = "fill_holes"
_RULES = (KEEP_LARGEST, REMOVE_SMALL, FILL_HOLES)

FOREGROUND = "foreground"


@dataclass(frozen=True, kw_only=True)
class PostStep:
    """One step of post-processing, complete without the dataset that it was chosen on.

    ``values`` are integers of label files; voxels with any of them form the mask that the rule looks at.

    * ``keep_largest``: voxels outside the largest component become 0. Of several equally large ones all stay.
    * ``remove_small``: components of less than ``minimum_mm3`` become 0; in pictures the number is an area, in the
      square of the unit of their spacing (pixels, where they have none).
    * ``fill_holes``: background that the mask encloses becomes ``fill``; other labels in a hole stay.
    """

    rule: str
    label: str
    values: tuple[int, ...]
    minimum_mm3: float = 0.0
    fill: int = 0

    def __post_init__(self) -> None:
        if self.rule not in _RULES:
            raise RecordError(f"post-processing has no rule {self.rule!r}", hint=f"the rules are: {', '.join(_RULES)}")
        if not 0 <= self.minimum_mm3 < math.inf:
            raise RecordError(f"{self.minimum_mm3} is no size of a component", hint="use mm3, 0 or more")

    @property
    def words(self) -> str:
        """The step as a person says it."""
        if self.rule == KEEP_LARGEST:
            return f"keep the largest component of {self.label}"
        if self.rule == REMOVE_SMALL:
            return f"remove components of {self.label} below {self.minimum_mm3:g} mm3"
        return f"fill holes of {self.label}"


@dataclass(frozen=True, kw_only=True)
class PostProcessing:
    """A chain of steps, applied in order; ``postprocessing.json`` of a model folder.

    ``weights`` are SHA-256 sums of those that the steps were chosen for, by fold.
    """

    VERSION: ClassVar[int] = 1

    version: int = 1
    steps: tuple[PostStep, ...] = ()
    weights: dict[str, str] = field(default_factory=dict, metadata={"omit_default": True})
