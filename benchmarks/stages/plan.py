"""From a fingerprint to a plan, without any search that either side could skip."""

from __future__ import annotations

import json
from functools import partial

import numpy as np

from benchmarks import prepared
from benchmarks.bench import Differs, Row, Setting, Side
from benchmarks.prepared import Task
from benchmarks.watch import Usage


def rows(setting: Setting) -> list[Row]:
    """The two kinds of plans that there are: volumes and pictures."""
    chosen = [task for task in prepared.tasks(setting) if task.name in {"Dataset901_ThickCT", "Dataset904_RGB"}]
    return [_row(setting, task) for task in chosen]


def _row(setting: Setting, task: Task) -> Row:
    env = prepared.environment(setting)

    def unplanned() -> None:
        prepared.measured(setting, task)
        (prepared.ours(setting, task) / "plan.json").unlink(missing_ok=True)
        (prepared.peers(setting, task) / "nnUNetPlans.json").unlink(missing_ok=True)

    mine = setting.tool("autoseg_plan", "-d", task.number, *prepared.plan_flags(task))
    return Row(
        stage="plan",
        task=task.words,
        ours=Side(command=mine, env=env, before=unplanned),
        peer=Side(command=setting.tool("nnUNetv2_plan_experiment", "-d", task.number), env=env),
        compare=partial(_compare, setting, task),
        limit="search with a traced network",
        repeats=2,
    )


def _compare(setting: Setting, task: Task, _ours: Usage, _theirs: Usage) -> str:
    mine = prepared.configuration(json.loads((prepared.ours(setting, task) / "plan.json").read_text()), task)
    peer = json.loads((prepared.peers(setting, task) / "nnUNetPlans.json").read_text())
    theirs = peer["configurations"][task.configuration]
    if not np.allclose(mine["spacing"], theirs["spacing"], rtol=0.01):
        raise Differs(f"spacing {mine['spacing']} and {theirs['spacing']}")
    patches = ["x".join(map(str, item["patch_size"])) for item in (mine, theirs)]
    same = patches[0] == patches[1]
    return f"same spacing, patch {patches[0]}" + ("" if same else f" (peer {patches[1]})")
