"""How training goes, in one small picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from autoseg.records import atomic_path

# Okabe and Ito's colours, told apart by nearly everybody, in an order that also differs in lightness.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
INK = "#333333"

# More names than this would cover the curves.
_LONGEST_LEGEND = 8

# Longer histories are a blur of noise without a running mean.
_LONGEST_RAW = 150


def progress_png(path: Path, history: Sequence[Mapping[str, Any]], *, title: str = "") -> None:
    """Draw losses, Dice per class, learning rate and seconds per epoch.

    Args:
        path: PNG to write, atomically; 900 x 600 pixels.
        history: one mapping per epoch as in ``log.jsonl``: ``epoch``, ``train_loss``, ``val_loss``, ``dice`` (name of
            the label to value), ``learning_rate``, ``seconds``; None where something was not measured.
        title: of the picture.
    """
    figure = Figure(figsize=(7.5, 5), dpi=120)
    FigureCanvasAgg(figure)
    # A layout engine would draw everything twice, and this is drawn after every epoch.
    figure.subplots_adjust(left=0.08, right=0.985, top=0.895 if title else 0.95, bottom=0.095, wspace=0.17, hspace=0.2)
    figure.suptitle(title, fontsize=11, color=INK, x=0.012, ha="left")
    (losses, dice), (rate, seconds) = figure.subplots(2, 2, sharex=True, height_ratios=(2.2, 1))
    epochs = [row["epoch"] for row in history]
    _draw_losses(losses, epochs, history)
    _draw_dice(dice, epochs, history)
    _line(rate, epochs, _column(history, "learning_rate"), color=INK)
    _style(rate, "learning rate")
    _line(seconds, epochs, _column(history, "seconds"), color=INK)
    _style(seconds, "seconds per epoch")
    for axes in (rate, seconds):
        axes.set_ylim(0, 1.15 * axes.dataLim.ymax if math.isfinite(axes.dataLim.ymax) and axes.dataLim.ymax > 0 else 1)
        axes.set_xlabel("epoch", fontsize=9, color=INK)
        axes.xaxis.get_major_locator().set_params(integer=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_losses(axes: Axes, epochs: Sequence[int], history: Sequence[Mapping[str, Any]]) -> None:
    _line(axes, epochs, _column(history, "train_loss"), color=COLORS[0], label="training")
    _line(axes, epochs, _column(history, "val_loss"), color=COLORS[1], label="validation")
    _style(axes, "loss")
    axes.legend(fontsize=8, frameon=False)


def _draw_dice(axes: Axes, epochs: Sequence[int], history: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in history for name in row.get("dice") or {}))
    few = len(names) <= _LONGEST_LEGEND
    for index, name in enumerate(names):
        values = [_number((row.get("dice") or {}).get(name)) for row in history]
        _line(axes, epochs, values, color=COLORS[index % len(COLORS)], label=name if few else None)
    if len(names) > 1:
        label = "mean" if few else f"mean of {len(names)} labels"
        _line(axes, epochs, [_mean_dice(row) for row in history], color="black", label=label, width=2.0)
    _style(axes, "Dice on validation patches")
    axes.set_ylim(0, 1.01)
    if names:
        axes.legend(fontsize=8, frameon=False, loc="lower right", ncols=2 if len(names) > 4 else 1)


def _mean_dice(row: Mapping[str, Any]) -> float:
    known = [value for value in (row.get("dice") or {}).values() if value is not None]
    return sum(known) / len(known) if known else math.nan


def _column(history: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [_number(row.get(key)) for row in history]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _smooth(values: Sequence[float], width: int) -> np.ndarray:
    """Running mean over ``width`` values around each (fewer at the ends); what is NaN stays out."""
    known = np.isfinite(values)
    window = np.ones(width)
    total = np.convolve(np.where(known, values, 0.0), window, mode="same")
    count = np.convolve(known.astype(float), window, mode="same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0.5)


def _line(
    axes: Axes,
    epochs: Sequence[int],
    values: Sequence[float],
    *,
    color: str,
    label: str | None = None,
    width: float = 1.2,
) -> None:
    # A single epoch, or one between two gaps, makes no line: markers keep a short history visible.
    marker = "o" if len(epochs) <= 20 else None
    if len(epochs) > _LONGEST_RAW:
        axes.plot(epochs, values, color=color, linewidth=0.6, alpha=0.3)
        values = _smooth(values, len(epochs) // 50 | 1).tolist()
    axes.plot(epochs, values, color=color, label=label, linewidth=width, marker=marker, markersize=3)


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.tick_params(labelsize=8, colors=INK, length=3)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")
