"""Patch sizes from the largest that makes sense down to the smallest, and the first of them that fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autoseg.planning.topology import plan_topology
from autoseg.schema.architecture import Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

# Edge of the cube or square (in voxels of the mean spacing) from which the search starts, by number of axes.
START_EDGE = {2: 2048, 3: 256}


@dataclass(frozen=True)
class Candidate:
    patch: Shape
    topology: Topology

    @property
    def voxels(self) -> int:
        return math.prod(self.patch)


def initial_patch(spacing: Sequence[float], median: Sequence[float]) -> Shape:
    """A patch of equal edges in mm, no longer than the median image."""
    ndim = len(spacing)
    density = [1 / step for step in spacing]
    scale = (START_EDGE[ndim] ** ndim / math.prod(density)) ** (1 / ndim)
    return tuple(max(1, min(round(scale * d), math.ceil(m))) for d, m in zip(density, median, strict=True))


def candidates(
    spacing: Sequence[float], median: Sequence[float], traits: Traits, *, base_width: int
) -> list[Candidate]:
    """Patches in descending order, each with its topology of at least ``traits.min_stages`` stages.

    Each is one step smaller on the axis that covers most of the median image, so that patches approach the
    proportions of the images. The step is the divisor of the smaller patch: 256 can become 224, whose divisor is 32.
    """
    topology, patch = plan_topology(spacing, initial_patch(spacing, median), traits, base_width=base_width)
    if topology.num_stages < traits.min_stages:
        topology, patch = plan_topology(spacing, _smallest(spacing, patch, traits), traits, base_width=base_width)
    found = [Candidate(patch, topology)]
    while True:
        axis = max(range(len(patch)), key=lambda i: (patch[i] / median[i], i))
        reduced = _less(patch, axis, topology.divisor[axis])
        if reduced is None:
            return found
        trial, _ = plan_topology(spacing, reduced, traits, base_width=base_width)
        reduced = _less(patch, axis, trial.divisor[axis])
        if reduced is None:
            return found
        topology, smaller = plan_topology(spacing, reduced, traits, base_width=base_width)
        if topology.num_stages < traits.min_stages or smaller == patch:
            return found
        patch = smaller
        found.append(Candidate(patch, topology))


def _less(patch: Shape, axis: int, step: int) -> Shape | None:
    length = patch[axis] - step
    return (*patch[:axis], length, *patch[axis + 1 :]) if length >= 1 else None


def _smallest(spacing: Sequence[float], patch: Shape, traits: Traits) -> Shape:
    """The patch, grown where axes are fine until they can be halved often enough; smaller images are padded."""
    halvings = traits.min_stages - 1
    finest = min(spacing)
    fine = [step / finest < 2 for step in spacing]
    wanted = traits.minimum_edge * 2**halvings if sum(fine) > 1 else 3 * traits.minimum_edge * 2 ** (halvings - 1)
    return tuple(max(length, wanted) if grow else length for length, grow in zip(patch, fine, strict=True))


def first_fitting(options: Sequence[Candidate], memory: Callable[[Candidate], int], budget: int) -> Candidate | None:
    """The first (largest) option whose memory is within the budget; None if not even the last one's is.

    Memory falls along the list, nearly linearly in voxels: the line through the nearest two known options says where
    to look next, and every fifth step bisects in case it is no line.
    """
    known: dict[int, int] = {}
    too_large, fitting = -1, len(options)
    probe = 0
    while fitting - too_large > 1:
        known[probe] = memory(options[probe])
        if known[probe] <= budget:
            fitting = probe
        else:
            too_large = probe
        guess = (too_large + fitting) // 2 if len(known) % 5 == 0 else _on_the_line(options, known, budget)
        probe = min(max(guess, too_large + 1), fitting - 1)
    return options[fitting] if fitting < len(options) else None


def _on_the_line(options: Sequence[Candidate], known: Mapping[int, int], budget: int) -> int:
    """The first option whose memory would be within the budget; through the origin while one value is known."""
    near = sorted(known, key=lambda index: abs(known[index] - budget))[:2]
    first = near[0]
    other_voxels, other_need = (options[near[1]].voxels, known[near[1]]) if len(near) > 1 else (0, 0)
    rise = (known[first] - other_need) / ((options[first].voxels - other_voxels) or 1)
    voxels = options[first].voxels + (budget - known[first]) / (rise or 1.0)
    return next((index for index, option in enumerate(options) if option.voxels <= voxels), len(options) - 1)
