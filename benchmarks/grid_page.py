"""The lines of the grid, and its table in docs/benchmarks.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from autoseg import records

BEGIN, END = "<!-- grid: begin, written by python -m benchmarks.grid -->", "<!-- grid: end -->"


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def name_of(row: dict) -> str:
    size = f"w{row['width']}_b{row['batch']}"
    return f"{row['dataset']}_{size}_{row['optimizer']}_{row['minutes']:g}m_s{row['seed']}_{row['device']}"


def write(rows: Sequence[dict], *, folder: Path) -> None:
    """Put the table between its marks; what several seeds reached is averaged."""
    page = folder / "benchmarks.md"
    head, rest = page.read_text(encoding="utf-8").split(BEGIN)
    tail = rest.split(END)[1]
    records.write_text(page, f"{head}{BEGIN}\n{table(rows)}\n{END}{tail}")


def table(rows: Sequence[dict]) -> str:
    """One line per dataset, time and batch, one column per width; the best of a line is bold."""
    widths = sorted({row["width"] for row in rows})
    lines = [
        "| dataset | minutes | optimizer | batch | " + " | ".join(f"width {one}" for one in widths) + " | steps |",
        "|---" * (5 + len(widths)) + "|",
    ]
    for key in sorted({_line_of(row) for row in rows}):
        same = [row for row in rows if _line_of(row) == key]
        _, dataset, minutes, optimizer, batch = key
        found = {width: [row for row in same if row["width"] == width] for width in widths}
        scores = {width: mean(row["dice"] for row in some) for width, some in found.items() if some}
        best = max(scores.values())
        cells = [_cell(scores.get(width), best) for width in widths]
        steps = [f"{mean(row['steps'] for row in found[width]):.0f}" if found[width] else "-" for width in widths]
        name = dataset.split("_", 1)[1]
        lines.append(
            f"| {name} | {minutes:g} | {optimizer} | {batch or 'plan'} | {' | '.join(cells)} | {', '.join(steps)} |"
        )
    return "\n".join(lines)


def _line_of(row: dict) -> tuple[str, str, float, str, int]:
    # Figures of different machines are no average.
    return row["machine"].split(";")[0], row["dataset"], row["minutes"], row["optimizer"], row["batch"]


def _cell(score: float | None, best: float) -> str:
    if score is None:
        return "-"
    return f"**{score:.4f}**" if score == best else f"{score:.4f}"
