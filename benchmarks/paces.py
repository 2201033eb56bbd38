"""python -m benchmarks.paces: how well the time of a step is predicted from the four that a time budget times.

A probe times a few steps of three widths and of a smaller patch. Here ``planning/step_time.py`` predicts from them
steps with other batches, patches, depths and widths, which are then timed too; and the widest network from the other
three. Everything is on the clock of the processor, so that a busy machine changes little. Datasets have to be
preprocessed in WORKDIR, as ``benchmarks.grid`` leaves them.
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
from autoseg.planning.clock import WIDTHS, with_width
from autoseg.planning.situation import cost_of
from autoseg.planning.step_time import step_time, with_half_patch
from autoseg.schema.plan import Configuration, Plan
from autoseg.schema.settings import TrainSettings
from autoseg.training.pace import step_seconds
from benchmarks.grid import DATASETS

_SECONDS = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paces", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--dataset", nargs="+", default=list(DATASETS))
    asked = parser.parse_args()
    _line("dataset", "step", "GFLOP", "predicted", "measured", "predicted / measured")
    _line(*["---"] * 6)
    for dataset in asked.dataset:
        _compare(
            set_up(
                TrainSettings(
                    workdir=str(asked.workdir),
                    dataset=(dataset,),
                    fold=("0",),
                    optimizer="muon",
                    device="cpu",
                    quiet=True,
                )
            )
        )


def _compare(training: Training) -> None:
    plan, cost = training.plan, cost_function("cpu")
    traits = traits_of(training.configuration.architecture.name)
    widths = [with_width(plan, training.configuration, width, traits, cost=cost) for width in WIDTHS]
    middle, widest = widths[1], widths[-1]
    half = with_half_patch(plan, middle, cost=cost)
    assert half is not None
    timed = []
    for one in (*widths[:-1], half, widest):
        seconds = _measure(training, one)
        _report(plan.dataset, one, None if one != widest else step_time(timed)(one), seconds)
        timed.append((one, seconds))
    predicted = step_time(timed)
    for one in _variants(plan, middle, widest):
        _report(plan.dataset, one, predicted(one), _measure(training, one))


def _variants(plan: Plan, middle: Configuration, widest: Configuration) -> Iterator[Configuration]:
    """Networks that are not in the probe, with their costs."""

    def changed(configuration: Configuration, **changes: Any) -> Configuration:
        other = replace(configuration, **changes)
        return replace(other, cost=cost_of(plan, other, cost_function("cpu")))

    topology = middle.topology
    for batch in (4, 8):
        yield changed(middle, batch_size=batch)
    pairs = zip(middle.patch_size, topology.divisor, strict=True)
    yield changed(middle, patch_size=tuple(math.ceil(1.5 * size / by) * by for size, by in pairs))
    stages = {name: getattr(topology, name)[:-1] for name in ("strides", "kernels", "features")}
    yield changed(middle, topology=replace(topology, **stages))
    yield changed(middle, topology=replace(topology, features=tuple(3 * width // 2 for width in topology.features)))
    half = with_half_patch(plan, widest, cost=cost_function("cpu"))
    assert half is not None
    yield half


def _report(dataset: str, configuration: Configuration, predicted: float | None, measured: float) -> None:
    topology = configuration.topology
    size = "x".join(map(str, configuration.patch_size))
    step = f"width {topology.features[0]}, {size}, batch {configuration.batch_size}, {topology.num_stages} stages"
    figures = ("", f"{measured:.3g} s", "")
    if predicted is not None:
        figures = (f"{predicted:.3g} s", f"{measured:.3g} s", f"{predicted / measured:.2f}")
    _line(dataset, step, f"{configuration.cost.flops / 1e9:.0f}", *figures)


def _measure(training: Training, configuration: Configuration) -> float:
    plan = training.plan.with_configuration(configuration)
    task = task_to_time(replace(training, plan=plan, configuration=configuration))
    return step_seconds(task, seconds=_SECONDS, clock=time.process_time)


def _line(*columns: str) -> None:
    sys.stdout.write("| " + " | ".join(columns) + " |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
