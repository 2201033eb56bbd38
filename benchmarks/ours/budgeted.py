"""One training in a given time: python -m benchmarks.ours.budgeted CELL, a JSON object of ``benchmarks.grid``.

With a ``scale`` the time is that of the processor, scaled: what else the machine has to do then changes nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from autoseg import records
from autoseg.io.discover import resolve_workspace
from autoseg.nets import traits_of
from autoseg.pipeline.pace import task_to_time
from autoseg.pipeline.prepare import cost_function
from autoseg.pipeline.set_up import set_up
from autoseg.pipeline.train import train
from autoseg.planning.clock import with_width
from autoseg.schema.folders import ModelFolder
from autoseg.schema.plan import Plan
from autoseg.schema.report import EvaluationReport, FoldRun
from autoseg.schema.settings import TrainSettings
from autoseg.training.pace import step_seconds
from benchmarks.watch import report

_FOLD = "0"
_CURVE_POINTS = 20


def planned(cell: dict) -> Plan:
    """The dataset's plan with the width, batch and patch of the cell."""
    plan = records.load(Plan, resolve_workspace(cell["workdir"]).prepared(cell["dataset"]).plan)
    configuration = plan.configuration(plan.default_configuration)
    patch = tuple(map(int, cell["patch"].split("x"))) if cell["patch"] else configuration.patch_size
    configuration = replace(configuration, batch_size=cell["batch"] or configuration.batch_size, patch_size=patch)
    traits = traits_of(configuration.architecture.name)
    return plan.with_configuration(with_width(plan, configuration, cell["width"], traits, cost=cost_function("cpu")))


def settings_of(cell: dict) -> TrainSettings:
    return TrainSettings(
        workdir=cell["workdir"],
        dataset=(cell["dataset"],),
        fold=(_FOLD,),
        time_budget=60.0 * cell["minutes"] / cell["rounds"],
        optimizer=cell["optimizer"],
        seed=cell["seed"],
        device=cell["device"],
        quiet=True,
    )


def pace(cell: dict) -> None:
    """Seconds per step by the wall and by the processor."""
    training = set_up(settings_of(cell), plan=planned(cell))
    measure = partial(step_seconds, task_to_time(training), seconds=20.0)
    report(measure(), processor=measure(clock=time.process_time))


def run(cell: dict) -> None:
    model = ModelFolder(Path(cell["folder"]))
    clock: Callable[[], float] = time.monotonic
    if cell["scale"]:
        clock = lambda: cell["scale"] * time.process_time()  # noqa: E731
    plan = planned(cell)
    record = model.fold(_FOLD).run
    begun = records.load(FoldRun, record).round if record.exists() else 0
    for number in range(begun, cell["rounds"]):
        # Only the first is told its network; the others go on with the finished model, as a person's command does.
        train(settings_of(cell), model=model, plan=plan, as_planned=number == 0, clock=clock)
    fold = model.fold(_FOLD)
    done, scores = records.load(FoldRun, fold.run), records.load(EvaluationReport, fold.summary)
    lines = records.read_lines(fold.log)
    every = max(1, len(lines) // _CURVE_POINTS)
    report(
        done.seconds,
        dice=round(scores.foreground_dice, 5),
        cases=[round(sum(one.dice for one in case.classes) / len(case.classes), 4) for case in scores.cases],
        steps=done.steps,
        validation=round(done.validation_seconds, 1),
        parameters=plan.configuration(plan.default_configuration).cost.parameters,
        curve=[[round(line["elapsed"], 1), round(line["mean_dice"] or 0.0, 4)] for line in lines[every - 1 :: every]],
    )


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    pace(asked) if asked.get("pace") else run(asked)
