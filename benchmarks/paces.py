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
from typing import Any

from autoseg.nets import traits_of
from autoseg.pipeline.pace import task_to_time
from autoseg.pipeline.prepare import cost_function
from autoseg.pipeline.set_up import Training, set_up
from autoseg.planning.clock import WIDTHS, interpolate, with_width
from autoseg.planning.situation import cost_of
from autoseg.schema.plan import Configuration, Plan
from autoseg.schema.settings import TrainSettings
from autoseg.training.pace import step_seconds
from benchmarks.grid import DATASETS

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
        training = set_up(
            TrainSettings(
                workdir=str(asked.workdir),
                dataset=(dataset,),
                fold=("0",),
                optimizer="muon",
                device="cpu",
                quiet=True,
            )
        )
        traits = traits_of(training.configuration.architecture.name)
        widths = {
            width: with_width(training.plan, training.configuration, width, traits, cost=cost_function("cpu"))
            for width in WIDTHS
        }
        measured: dict[int, float] = {}
        for width, configuration in widths.items():
            measured[_flops(configuration)] = seconds = _measure(training, configuration)
            label = f"width {width}, {_size(configuration)}, batch {configuration.batch_size}"
            _line(dataset, label, f"{_flops(configuration) / 1e9:.0f}", "", f"{seconds:.3g} s", "")
        for label, configuration in _variants(training.plan, widths[_MIDDLE]):
            expected = interpolate(measured, _flops(configuration))
            seconds = _measure(training, configuration)
            figures = (f"{expected:.3g} s", f"{seconds:.3g} s", f"{expected / seconds:.2f}")
            _line(dataset, f"width {_MIDDLE}, {label}", f"{_flops(configuration) / 1e9:.0f}", *figures)


def _variants(plan: Plan, planned: Configuration) -> Iterator[tuple[str, Configuration]]:
    """Networks of the same first width that are not in the probe, with their costs."""

    def changed(**changes: Any) -> Configuration:
        configuration = replace(planned, **changes)
        return replace(configuration, cost=cost_of(plan, configuration, cost_function("cpu")))

    topology = planned.topology
    for batch in (4, 8):
        yield f"batch {batch}", changed(batch_size=batch)
    for factor in (0.5, 1.5):
        pairs = zip(planned.patch_size, topology.divisor, strict=True)
        other = changed(patch_size=tuple(max(2, math.ceil(factor * size / by)) * by for size, by in pairs))
        yield f"patch {_size(other)}", other
    stages = {name: getattr(topology, name)[:-1] for name in ("strides", "kernels", "features")}
    yield f"{topology.num_stages - 1} stages", changed(topology=replace(topology, **stages))


def _size(configuration: Configuration) -> str:
    return "x".join(map(str, configuration.patch_size))


def _flops(configuration: Configuration) -> int:
    assert configuration.cost is not None
    return configuration.cost.flops


def _measure(training: Training, configuration: Configuration) -> float:
    plan = training.plan.with_configuration(configuration)
    task = task_to_time(replace(training, plan=plan, configuration=configuration))
    return step_seconds(task, seconds=_SECONDS, clock=time.process_time)


def _line(*columns: str) -> None:
    sys.stdout.write("| " + " | ".join(columns) + " |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
