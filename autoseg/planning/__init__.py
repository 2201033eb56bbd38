"""From what was measured to what is trained. README.md beside this file lists every rule and its source."""

from __future__ import annotations

from autoseg.planning.check import check_plan, refuse_other_dataset
from autoseg.planning.mirroring import mirror_axes
from autoseg.planning.planner import CONFIGURATIONS, make_plan, plan_only
from autoseg.planning.situation import CostFunction, cost_of
from autoseg.planning.splits import make_splits, read_splits
from autoseg.planning.table import plan_table

__all__ = [
    "CONFIGURATIONS",
    "CostFunction",
    "check_plan",
    "cost_of",
    "make_plan",
    "make_splits",
    "mirror_axes",
    "plan_only",
    "plan_table",
    "read_splits",
    "refuse_other_dataset",
]
