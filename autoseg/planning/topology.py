"""Stages of a network from spacing and patch: where to halve, and how large kernels are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autoseg.schema.architecture import Traits
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Topology

# Axes whose spacing is less than this factor apart are treated alike.
SIMILAR = 2.0


def plan_topology(
    spacing: Sequence[float], patch: Sequence[int], traits: Traits, *, base_width: int
) -> tuple[Topology, Shape]:
    """The stages for a patch, and the patch padded up to a multiple of their strides.

    Fine axes are halved until they are as coarse as the others, then all together; an axis has kernels of 1 until
    its spacing is within a factor of two of the finest, and of 3 from then on.
    """
    axes = range(len(patch))
    current, size = list(spacing), list(patch)
    kernel = [1] * len(patch)
    strides: list[Shape] = [(1,) * len(patch)]
    kernels: list[Shape] = []
    while len(strides) != traits.max_stages and (halved := _axes_to_halve(current, size, traits.minimum_edge)):
        finest = min(current)
        kernel = [3 if current[axis] / finest < SIMILAR else kernel[axis] for axis in axes]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        for axis in halved:
            current[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    kernels.append((3,) * len(patch))
    maximum = traits.max_width[len(patch)]
    features = tuple(min(base_width * 2**stage, maximum) for stage in range(len(strides)))
    topology = Topology(strides=tuple(strides), kernels=tuple(kernels), features=features)
    padded = tuple(math.ceil(length / step) * step for length, step in zip(patch, topology.divisor, strict=True))
    return topology, padded


def _axes_to_halve(spacing: Sequence[float], size: Sequence[int], minimum_edge: int) -> list[int]:
    possible = [axis for axis in range(len(size)) if size[axis] >= 2 * minimum_edge]
    if not possible:
        return []
    finest = min(spacing[axis] for axis in possible)
    similar = [axis for axis in possible if spacing[axis] / finest < SIMILAR]
    # A single axis has to be longer: halving it alone would soon leave a needle.
    if len(similar) == 1 and size[similar[0]] < 3 * minimum_edge:
        return []
    return similar
