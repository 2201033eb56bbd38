"""The curves as JSON, as a section of docs/benchmarks.md, and as one figure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from autoseg import records

matplotlib.use("svg")
from matplotlib import pyplot as plt

BEGIN, END = "<!-- curves: begin, written by python -m benchmarks.curves -->", "<!-- curves: end -->"

# What the exponent of each fitted power law is to be compared with.
_MEANING = {
    "export_classes": "Held are two planes of logits and the piece of planes at work, never the volume of logits.",
    "export_volume": "Flat would be 0, a plane grows with 0.67, all logits with 1; the label map is not counted.",
    "fingerprint": (
        "Flat would be 0: cases are measured one by one, and what stays of each is a sketch of 16 KB per channel; all "
        "are sorted together at the end."
    ),
    "preprocess": (
        "Linear in the cores would be 1. The start of command and workers falls among the first cases. The last column "
        "is what the machine gives to commands that share nothing; more than twice of one core is noise."
    ),
    "loading": "Linear in the cores would be 1.",
    "step": "Linear in the patch volume would be 1.",
    "folds": "Linear would be 1; memory hardly grows, because all folds share the sums.",
    "memory": "Peak of all processes of a command together; training follows the plan made with the limit.",
}


def write(curve: dict, *, order: Sequence[str], machine: str, folder: Path) -> None:
    """Put a curve in the place of its last measurement: in ``curves.json``, the figure and the section."""
    path = folder / "curves.json"
    known = json.loads(path.read_text())["curves"] if path.exists() else []
    latest = {one["name"]: one for one in [*known, curve]}
    ordered = [latest[name] for name in order if name in latest]
    records.write_text(path, json.dumps({"machine": machine, "curves": ordered}, indent=1) + "\n")
    _draw([one for one in ordered if exponent(one) is not None], folder / "images" / "curves.svg")
    page = folder / "benchmarks.md"
    head, rest = page.read_text().split(BEGIN)
    tail = rest.split(END)[1]
    records.write_text(page, f"{head}{BEGIN}\n{_section(ordered, machine)}\n{END}{tail}")


def exponent(curve: dict) -> float | None:
    """The power of x with which y grows, by least squares on a log-log scale; None where x is not a number."""
    points = [row[:2] for row in curve["rows"] if isinstance(row[0], int | float)]
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points, dtype=np.float64).T)
    return float(np.polyfit(x, y, 1)[0])


def summary(curve: dict) -> str:
    """A few words for the terminal."""
    points = ", ".join(f"{_text(row[0])}: {_text(row[1])}" for row in curve["rows"])
    return f"{curve['title']} ({curve['y']}): {points}{_power(curve)}"


def _power(curve: dict) -> str:
    power = exponent(curve)
    return "" if power is None else f"; grows with the power {power:.2f}"


def _section(curves: Sequence[dict], machine: str) -> str:
    lines = [machine, "", "![Cost against size, on log-log scales](images/curves.svg)"]
    for curve in curves:
        header = [curve["x"], curve["y"], *curve["columns"]]
        lines += ["", f"### {curve['title']}", ""]
        lines += ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
        lines += ["| " + " | ".join(map(_text, row)) + " |" for row in curve["rows"]]
        power = exponent(curve)
        fitted = "" if power is None else f"Grows with the power {power:.2f} of {curve['x']}. "
        lines += ["", fitted + _MEANING[curve["name"]]]
    return "\n".join(lines)


def _text(value: object) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _draw(curves: Sequence[dict], path: Path) -> None:
    columns = 4
    count = math.ceil(len(curves) / columns)
    # Without these two the file would differ from run to run.
    plt.rcParams.update({"svg.hashsalt": "curves", "font.size": 7})
    figure, axes = plt.subplots(
        count, columns, figsize=(2.2 * columns, 1.9 * count), squeeze=False, layout="constrained"
    )
    for axis, curve in zip(axes.flat, curves, strict=False):
        x, y = np.array([row[:2] for row in curve["rows"]], dtype=np.float64).T
        slope, offset = np.polyfit(np.log(x), np.log(y), 1)
        axis.loglog(x, np.exp(offset) * x**slope, color="0.7", linewidth=1)
        axis.loglog(x, y, "o", color="tab:blue", markersize=3)
        axis.set_ylim(min(y) / 2, max(y) * 2)
        for ticks, values in ((axis.set_xticks, x), (axis.set_yticks, y)):
            low, high = float(values.min()), float(values.max())
            ends = [low, high] if high > 1.3 * low else [high]
            ticks(ends, [_text(end) for end in ends])
            ticks([], minor=True)
        axis.set_title(f"{curve['name'].replace('_', ', ')}: power {slope:.2f}", fontsize=7)
        axis.set_xlabel(curve["x"])
        axis.set_ylabel(curve["y"])
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
