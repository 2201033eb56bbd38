"""python -m benchmarks.paces: how well the time of a step is predicted from that of three widths.

A time budget times a few steps of three widths and takes a power law of floating-point operations between them. Here
the same law predicts steps with other batches, patches and depths, which are then timed too. Everything is on the clock
of the processor, so that a busy machine changes little. Datasets have to be preprocessed in WORKDIR, as
``benchmarks.grid`` leaves them.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from autoseg.pipeline.pace import task_to_time
from autoseg.pipeline.prepare import cost_function
from autoseg.pipeline.set_up import set_up
from autoseg.planning.clock import WIDTHS, interpolate
from autoseg.planning.situation import cost_of
from autoseg.schema.plan import Configuration, Plan
from autoseg.training.pace import step_seconds
from benchmarks.grid import DATASETS
from benchmarks.ours.budgeted import planned, settings_of

# The width whose variants are predicted.
_MIDDLE = 16
_SECONDS = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paces", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--dataset", nargs="+", default=list(DATASETS))
    asked = parser.parse_args()
    _line("dataset", "step", "GFLOP", "predicted", "measured", "predicted / measured")
    _line(*["---"] * 6)
    for dataset in asked.dataset:
        cell = {"workdir": str(asked.workdir), "dataset": dataset, "batch": 0, "minutes": 10.0, "rounds": 1}
        cell |= {"optimizer": "muon", "seed": 0, "device": "cpu"}
        measured: dict[int, float] = {}
        for width in WIDTHS:
            plan = planned({**cell, "width": width})
            configuration = plan.configuration(plan.default_configuration)
            measured[_flops(configuration)] = seconds = _measure(cell, plan, configuration)
            patch = "x".join(map(str, configuration.patch_size))
            label = f"width {width}, {patch}, batch {configuration.batch_size}"
            _line(dataset, label, f"{_flops(configuration) / 1e9:.0f}", "", f"{seconds:.3g} s", "")
        plan = planned({**cell, "width": _MIDDLE})
        for label, configuration in _variants(plan, plan.configuration(plan.default_configuration)):
            expected = interpolate(measured, _flops(configuration))
            seconds = _measure(cell, plan.with_configuration(configuration), configuration)
            figures = (f"{expected:.3g} s", f"{seconds:.3g} s", f"{expected / seconds:.2f}")
            _line(dataset, f"width {_MIDDLE}, {label}", f"{_flops(configuration) / 1e9:.0f}", *figures)


def _variants(plan: Plan, planned_one: Configuration) -> Iterator[tuple[str, Configuration]]:
    """Networks of the same first width that are not in the probe, with their costs."""
    topology, patch = planned_one.topology, planned_one.patch_size

    def costed(configuration: Configuration) -> Configuration:
        return replace(configuration, cost=cost_of(plan, configuration, cost_function("cpu")))

    for batch in (4, 8):
        yield f"batch {batch}", costed(replace(planned_one, batch_size=batch))
    smaller = tuple(max(2, math.ceil(size / 2 / by)) * by for size, by in zip(patch, topology.divisor, strict=True))
    yield f"patch {'x'.join(map(str, smaller))}", costed(replace(planned_one, patch_size=smaller))
    larger = tuple(math.ceil(size * 1.5 / by) * by for size, by in zip(patch, topology.divisor, strict=True))
    yield f"patch {'x'.join(map(str, larger))}", costed(replace(planned_one, patch_size=larger))
    stages = topology.num_stages - 1
    shallow = replace(
        topology,
        strides=topology.strides[:stages],
        kernels=topology.kernels[:stages],
        features=topology.features[:stages],
    )
    yield f"{stages} stages", costed(replace(planned_one, topology=shallow))


def _flops(configuration: Configuration) -> int:
    assert configuration.cost is not None
    return configuration.cost.flops


def _measure(cell: dict, plan: Plan, configuration: Configuration) -> float:
    training = replace(set_up(settings_of(cell), plan=plan), plan=plan, configuration=configuration)
    return step_seconds(task_to_time(training), seconds=_SECONDS, clock=time.process_time)


def _line(*columns: str) -> None:
    sys.stdout.write("| " + " | ".join(columns) + " |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
