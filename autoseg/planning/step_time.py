"""How long a training step takes, predicted from a few steps that were timed on this machine.

A step goes over parameters (the optimizer), operations (convolutions) and voxels (samples, norms and losses, which a
narrow network waits for), so its seconds are taken to be::

    a * operations + b * parameters + c * voxels of the batch        a, b, c >= 0

Widths alone tell operations from voxels, but not from parameters, because both grow with the width's square; one
smaller patch does. docs/benchmarks.md has what the sum predicts of other widths, batches, patches and depths on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from autoseg.planning.situation import CostFunction, cost_of
from autoseg.schema.plan import Configuration, Plan

# A configuration with a cost, and the seconds of its step.
Timed = tuple[Configuration, float]
# Networks whose operations per voxel differ by less are of one width, but for borders.
_DIFFERENT = 1.1


def step_time(timed: Sequence[Timed]) -> Callable[[Configuration], float]:
    """Seconds per step of any configuration of the same architecture, device, precision and optimizer.

    Rates are fitted by least squares of relative errors, none below zero (Lawson and Hanson, 1974). What the timed
    steps do not tell apart counts as operations: from one alone, time is proportional to them.

    Args:
        timed: at least one.
    """
    # Slow to import, and needed for time budgets alone.
    from scipy.optimize import nnls

    work = np.array([_work(one) for one, _ in timed])
    per_voxel = work[:, 0] / work[:, 1]
    rated = [0, 1] if per_voxel.max() > _DIFFERENT * per_voxel.min() else [0]
    if len(timed) > len(rated):
        rated.append(2)
    relative = work[:, rated] / np.array([[seconds] for _, seconds in timed])
    # Of the order of 1, so that no rate is lost in rounding.
    size = relative.max(axis=0)
    rates = nnls(relative / size, np.ones(len(timed)))[0] / size
    return lambda one: float(_work(one)[rated] @ rates)


def _work(configuration: Configuration) -> np.ndarray:
    """Operations, voxels and parameters of a step."""
    voxels = configuration.batch_size * math.prod(configuration.patch_size)
    return np.array([configuration.cost.flops, voxels, configuration.cost.parameters], float)


def with_half_patch(plan: Plan, configuration: Configuration, *, cost: CostFunction) -> Configuration | None:
    """The configuration with edges about half as long, of two voxels or more in the last stage; None if none are."""
    pairs = zip(configuration.patch_size, configuration.topology.divisor, strict=True)
    patch = tuple(min(size, max(2, math.ceil(size / 2 / by)) * by) for size, by in pairs)
    if patch == configuration.patch_size:
        return None
    smaller = replace(configuration, patch_size=patch)
    return replace(smaller, cost=cost_of(plan, smaller, cost))
