"""The rule of widths and the forecast hold for every training that the grid recorded."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest

from autoseg import records
from autoseg.planning.clock import WIDTHS, steps_needed
from benchmarks import grid_page

ROWS = records.read_lines(Path(__file__).parents[2] / "docs" / "grid.jsonl")
# Two seeds differ by half as much.
NEAR_THE_BEST = 0.01


def lines() -> dict[tuple, dict[int, dict[str, float]]]:
    """Mean steps and Dice of trainings with several seeds, by everything but seed and width, then by width."""
    found: dict[tuple, dict[int, list[dict]]] = {}
    for row in ROWS:
        whole = {"rounds": 1, "patch": "", **row}
        others = tuple(whole[name] for name in ("dataset", "minutes", "batch", "rounds", "optimizer", "patch"))
        found.setdefault((*others, row["device"], row["machine"]), {}).setdefault(row["width"], []).append(row)
    return {key: {width: _means(rows) for width, rows in of.items()} for key, of in found.items() if len(of) > 1}


def _means(rows: list[dict]) -> dict[str, float]:
    return {name: mean(row[name] for row in rows) for name in ("steps", "dice")}


@pytest.mark.parametrize("key", [pytest.param(key, id=f"{key[0]} {key[1]:g} min") for key in lines()])
def test_the_rule_chooses_nearly_the_best_width(key: tuple) -> None:
    rows = lines()[key]
    fitting = [width for width in WIDTHS if width in rows and rows[width]["steps"] >= steps_needed(width)]
    chosen = max(fitting, default=min(rows))
    assert rows[chosen]["dice"] >= max(row["dice"] for row in rows.values()) - NEAR_THE_BEST


def test_four_of_five_forecasts_hold_the_truth() -> None:
    found = grid_page.foretold(ROWS)
    assert len(found) >= 5
    assert sum(one.holds for one in found) >= 0.8 * len(found)


def row(minutes: float, dice: float, **changes: object) -> dict:
    facts = {"dataset": "Dataset001_A", "width": 8, "batch": 0, "optimizer": "muon", "seed": 0, "device": "cpu"}
    curve = [[index + 1.0, 0.5 + 0.01 * index] for index in range(20)]
    return {**facts, "minutes": minutes, "dice": dice, "steps": 100, "curve": curve, "machine": "one; here", **changes}


def test_only_trainings_that_differ_in_nothing_but_time_are_compared() -> None:
    rows = [row(3, 0.7), row(6, 0.72), row(30, 0.8), row(6, 0.9, width=16), row(6, 0.9, seed=1), row(6, 0.9, rounds=2)]
    rows.append(row(6, 0.9, machine="two; there"))
    pairs = [(one.short["minutes"], one.long["minutes"]) for one in grid_page.foretold(rows)]
    assert pairs == [(3, 6)]


def test_the_table_has_a_line_per_time_batch_and_patch_and_marks_the_best() -> None:
    rows = [row(3, 0.7), row(3, 0.8, width=16), row(6, 0.75, rounds=2), row(3, 0.6, batch=4), row(3, 0.5, patch="8x8")]
    text = grid_page.table(rows)
    assert "| A | 3 | muon | plan | plan | 0.7000 | **0.8000** | 100, 100 |" in text
    assert "| A | 3 | muon | plan | 8x8 | 0.5000 | - | 100, - |" in text
    assert "| A | 3 | muon | 4 | plan | 0.6000 | - | 100, - |" in text
    assert "| A | 3, then 3 more | muon | plan | plan | 0.7500 | - | 100, - |" in text
    assert len(text.splitlines()) == 6


def test_names_tell_trainings_apart() -> None:
    rows = [row(3, 0.7), row(6, 0.7), row(3, 0.7, width=16), row(3, 0.7, rounds=2), row(3, 0.7, seed=1)]
    rows.append(row(3, 0.7, patch="8x8"))
    assert len({grid_page.name_of(one) for one in rows}) == len(rows)
