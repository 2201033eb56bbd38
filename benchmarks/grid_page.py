"""The lines of the grid, and its tables in docs/benchmarks.md: scores, and what short trainings foretold."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from autoseg import records
from autoseg.planning.forecast import Forecast, forecast

BEGIN, END = "<!-- grid: begin, written by python -m benchmarks.grid -->", "<!-- grid: end -->"
# More times as long is another question than twice the time.
_FARTHEST = 4.0


def name_of(row: dict) -> str:
    patch = f"_p{row['patch']}" if row.get("patch") else ""
    size = f"w{row['width']}_b{row['batch']}{patch}"
    rounds = f"_x{row['rounds']}" if row.get("rounds", 1) > 1 else ""
    return f"{row['dataset']}_{size}_{row['optimizer']}_{row['minutes']:g}m_s{row['seed']}_{row['device']}{rounds}"


def write(rows: Sequence[dict], *, folder: Path) -> None:
    """Put the table between its marks; what several seeds reached is averaged."""
    page = folder / "benchmarks.md"
    head, rest = page.read_text(encoding="utf-8").split(BEGIN)
    tail = rest.split(END)[1]
    records.write_text(page, f"{head}{BEGIN}\n{table(rows)}\n\n{forecast_table(rows)}\n{END}{tail}")


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """What ``short`` foretold of ``long``, the same network trained for longer, and what became of it."""

    short: dict
    long: dict
    forecast: Forecast

    @property
    def gain(self) -> float:
        return float(self.long["dice"] - self.short["dice"])

    @property
    def holds(self) -> bool:
        return self.forecast.low <= self.gain <= self.forecast.high


def foretold(rows: Sequence[dict]) -> list[Foretold]:
    """Every pair of trainings that differ only in their time, up to four times as long."""
    found = []
    for short, long in itertools.permutations((row for row in rows if row.get("rounds", 1) == 1), 2):
        factor = long["minutes"] / short["minutes"]
        longer = {**short, "minutes": long["minutes"]}
        alike = (name_of(longer), _line_of(longer)) == (name_of(long), _line_of(long))
        if not 1 < factor <= _FARTHEST or not alike:
            continue
        says = forecast([(at, dice) for at, dice in short["curve"]], short["dice"], factor=factor)
        if says is not None:
            found.append(Foretold(short=short, long=long, forecast=says))
    return sorted(found, key=lambda one: (one.short["dataset"], one.short["width"], one.short["minutes"]))


def forecast_table(rows: Sequence[dict]) -> str:
    found = foretold(rows)
    lines = ["| dataset | width | minutes | foretold | measured | within |", "|---" * 6 + "|"]
    for one in found:
        short, says, holds = one.short, one.forecast, "yes" if one.holds else "no"
        name = short["dataset"].split("_", 1)[1]
        lines.append(
            f"| {name} | {short['width']} | {short['minutes']:g} to {one.long['minutes']:g} "
            f"| {says.gain:+.3f} ({says.low:+.3f} to {says.high:+.3f}) | {one.gain:+.3f} | {holds} |"
        )
    return "\n".join([*lines, "", f"{sum(one.holds for one in found)} of {len(found)} lie within."])


def table(rows: Sequence[dict]) -> str:
    """One line per dataset, time, batch and patch, one column per width; the best of a line is bold."""
    widths = sorted({row["width"] for row in rows})
    headings = ["dataset", "minutes", "optimizer", "batch", "patch", *(f"width {one}" for one in widths), "steps"]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for key in sorted({_line_of(row) for row in rows}):
        same = [row for row in rows if _line_of(row) == key]
        _, dataset, minutes, rounds, optimizer, batch, patch = key
        found = {width: [row for row in same if row["width"] == width] for width in widths}
        scores = {width: mean(row["dice"] for row in some) for width, some in found.items() if some}
        best = max(scores.values()) if len(scores) > 1 else None
        cells = [_cell(scores.get(width), best) for width in widths]
        steps = [f"{mean(row['steps'] for row in found[width]):.0f}" if found[width] else "-" for width in widths]
        name = dataset.split("_", 1)[1]
        time = f"{minutes / rounds:g}" + f", then {minutes / rounds:g} more" * (rounds - 1)
        lines.append(
            f"| {name} | {time} | {optimizer} | {batch or 'plan'} | {patch or 'plan'} | {' | '.join(cells)} "
            f"| {', '.join(steps)} |"
        )
    return "\n".join(lines)


def _line_of(row: dict) -> tuple[str, str, float, int, str, int, str]:
    # Figures of different machines are no average.
    machine, patch = row["machine"].split(";")[0], row.get("patch", "")
    return machine, row["dataset"], row["minutes"], row.get("rounds", 1), row["optimizer"], row["batch"], patch


def _cell(score: float | None, best: float | None) -> str:
    if score is None:
        return "-"
    return f"**{score:.4f}**" if score == best else f"{score:.4f}"
