"""What the planner knows about each architecture: one line each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ArchitectureRule:
    """Widths double per stage from ``base_width`` up to ``max_width`` (by number of axes).

    No axis is halved below ``minimum_edge`` voxels: instance normalisation needs values to normalise over.
    """

    base_width: int = 32
    # On a CPU the samples seen within the time matter more than width (see README.md, rule 9).
    base_width_cpu: int = 16
    max_width: Mapping[int, int]
    minimum_edge: int = 4


# Widths and edge of nnU-Net (Isensee et al. 2021), which other convolutional encoders take over.
CONVOLUTIONAL = ArchitectureRule(max_width={2: 512, 3: 320})

RULES: Mapping[str, ArchitectureRule] = {
    "unet": CONVOLUTIONAL,
}


def rule_for(architecture: str) -> ArchitectureRule:
    """The rule of an architecture; one that comes from another package is planned like the plain U-Net."""
    return RULES.get(architecture, CONVOLUTIONAL)
