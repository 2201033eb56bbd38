"""Estimated over measured memory of a training step, for every architecture at three patches in 2D and in 3D.

    PYTHONPATH=. python benchmarks/memory_model.py

Measured is the peak that torch's CPU allocator hands out in a step of forward, autoseg's loss, backward and update,
with the networks of the CPU plan (the same that tests/nets/test_battery.py compares).
"""

from __future__ import annotations

import sys

from autoseg.log import table
from autoseg.nets import NETS, traits_of
from autoseg.nets.cost import training_cost
from autoseg.schema.plan import Architecture
from tests.nets.real_step import Step, allocated
from tests.nets.zoo import SETTINGS, planned


def main() -> None:
    rows = []
    for name in NETS.names():
        ratios = [f"{ratio(name, ndim, place):.3f}" for ndim in (2, 3) for place in range(3)]
        rows.append([name, *ratios])
        sys.stderr.write(f"{name}: {' '.join(ratios)}\n")
    header = ["architecture", *(f"{ndim}D {kind}" for ndim in (2, 3) for kind in ("plain", "odd", "anisotropic"))]
    sys.stdout.write(table(rows, header=header) + "\n")


def ratio(name: str, ndim: int, place: int) -> float:
    """Estimated bytes over measured bytes, or NaN where the network has no meaning with so many axes."""
    if ndim not in traits_of(name).ndims:
        return float("nan")
    spacing, patch = SETTINGS[ndim][place]
    topology, patch = planned(name, spacing, [3 * length // 2 for length in patch], divisor=1)
    architecture = Architecture(name=name)
    cost = training_cost(
        architecture,
        topology,
        ndim=ndim,
        patch_size=patch,
        batch_size=2,
        in_channels=1,
        num_heads=3,
        with_workspace=False,
    )
    return cost.memory_bytes / allocated(Step(topology, patch, 2, architecture=architecture))


if __name__ == "__main__":
    main()
