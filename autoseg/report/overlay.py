"""One slice of a case with the outlines of reference and prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from skimage.measure import find_contours

from autoseg.records import atomic_path
from autoseg.report.progress import INK
from autoseg.schema.dataset import Labels

# Bright, because they lie on grey images; the order keeps neighbours apart.
OUTLINES = ("#FFC20A", "#1AC9FF", "#FF5CA8", "#5CFF7A", "#FF8A3D", "#B58CFF", "#F4F4F4", "#00E0B8")

_LONGEST_LEGEND = 10
_WIDTH_INCHES = 4.6


def overlay_png(
    path: Path,
    image: np.ndarray,
    reference: np.ndarray,
    prediction: np.ndarray,
    *,
    labels: Labels,
    spacing: Sequence[float],
    title: str = "",
) -> None:
    """Draw the slice that shows most of the foreground, with the outlines of both segmentations.

    Solid lines are the reference, dashed ones the prediction; a colour per label or region.

    Args:
        path: PNG to write, atomically.
        image: (c, z, y, x); three channels of unsigned bytes are shown as colours, else the first channel in grey.
        reference: integers as in label files, (z, y, x).
        prediction: the same shape.
        labels: names and integers.
        spacing: (z, y, x) in mm.
        title: above the picture.
    """
    axis = _coarse_axis(spacing, reference.shape)
    index = best_slice(reference, prediction, labels, axis)
    first, second = (_upright(np.take(array, index, axis), axis) for array in (reference, prediction))
    picture = np.stack([_upright(channel, axis) for channel in np.take(image, index, axis + 1)])
    view = _view(np.isin(np.stack([first, second]), [value for item in labels.foreground for value in item.values]))
    first, second, picture = first[view], second[view], picture[(slice(None), *view)]
    rows, columns = (step for other, step in enumerate(spacing) if other != axis)
    height, width = first.shape[0] * rows, first.shape[1] * columns
    figure = Figure(figsize=_figure_size(height / width), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1 - 0.28 / figure.get_figheight()))
    extent = (0.0, width, height, 0.0)
    axes.imshow(_shown(picture), cmap="gray", extent=extent, interpolation="nearest", vmin=0, vmax=1)
    shown = _draw_outlines(axes, first, second, labels, (rows, columns))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    _legend(axes, shown)
    slices = f"slice {index + 1} of {reference.shape[axis]}" if reference.shape[axis] > 1 else ""
    figure.text(0.01, 1 - 0.08 / figure.get_figheight(), f"{title}   {slices}".strip(), fontsize=9, color=INK, va="top")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def best_slice(reference: np.ndarray, prediction: np.ndarray, labels: Labels, axis: int) -> int:
    """The slice along ``axis`` with the largest share of the foreground, where every label weighs the same.

    The reference decides, or the prediction where the reference has none of a label; the middle slice if both are
    empty.
    """
    others = tuple(other for other in range(3) if other != axis)
    share = np.zeros(reference.shape[axis])
    for label in labels.foreground:
        for array in (reference, prediction):
            area = np.isin(array, label.values).sum(axis=others)
            if area.any():
                share += area / area.sum()
                break
    return int(np.argmax(share)) if share.any() else reference.shape[axis] // 2


def _coarse_axis(spacing: Sequence[float], shape: tuple[int, ...]) -> int:
    """Slices lie across the one axis that is coarser than both others, as they were acquired; else across z."""
    if 1 in shape:
        return shape.index(1)
    largest, second = sorted(spacing, reverse=True)[:2]
    return list(spacing).index(largest) if largest > 1.1 * second else 0


def _upright(plane: np.ndarray, axis: int) -> np.ndarray:
    # The rows of a sagittal or coronal slice run along z, which points to the head: the head belongs on top.
    return plane if axis == 0 else plane[::-1]


def _view(foreground: np.ndarray) -> tuple[slice, slice]:
    """A window around the foreground of (n, rows, columns), twice as large, so that outlines can be told apart."""
    if not foreground.any():
        return slice(None), slice(None)
    rows, columns = (np.flatnonzero(foreground.any(axis=axes)).tolist() for axes in ((0, 2), (0, 1)))
    margin = max(rows[-1] - rows[0], columns[-1] - columns[0], 16) // 2
    return (
        slice(max(0, rows[0] - margin), rows[-1] + margin + 1),
        slice(max(0, columns[0] - margin), columns[-1] + margin + 1),
    )


def _shown(picture: np.ndarray) -> np.ndarray:
    """(c, rows, columns) as (rows, columns) or (rows, columns, 3) in 0 .. 1."""
    if picture.shape[0] == 3 and picture.dtype == np.uint8:
        # Fluorescence pictures use a small part of the range; brightening all channels alike keeps the hues.
        return np.clip(np.moveaxis(picture, 0, -1) / max(np.percentile(picture, 99.8), 1), 0, 1)
    channel = picture[0].astype(np.float32)
    finite = channel[np.isfinite(channel)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    return np.clip(np.nan_to_num((channel - low) / max(high - low, 1e-6)), 0, 1)


def _figure_size(ratio: float) -> tuple[float, float]:
    height = float(np.clip(_WIDTH_INCHES * ratio, 0.4 * _WIDTH_INCHES, 1.3 * _WIDTH_INCHES))
    return _WIDTH_INCHES, height + 0.28


def _draw_outlines(
    axes: Axes, reference: np.ndarray, prediction: np.ndarray, labels: Labels, steps: tuple[float, float]
) -> list[tuple[str, str]]:
    """Draw both outlines of every label in the slice; the names and colours that were used."""
    used = []
    for number, label in enumerate(labels.foreground):
        color = OUTLINES[number % len(OUTLINES)]
        drawn = False
        for plane, style, width in ((reference, "-", 1.6), (prediction, (0, (3, 2)), 1.6)):
            lines = list(_outlines(np.isin(plane, label.values), steps))
            drawn |= bool(lines)
            # A dark edge keeps a bright line readable on a bright image.
            axes.add_collection(LineCollection(lines, colors="black", linewidths=width + 1.0, alpha=0.45))
            axes.add_collection(LineCollection(lines, colors=color, linewidths=width, linestyles=[style]))
        if drawn:
            used.append((label.name, color))
    return used


def _outlines(mask: np.ndarray, steps: tuple[float, float]) -> Iterator[np.ndarray]:
    """Outlines along the borders between pixels, as (n, 2) points (x, y) in mm from the corner of the picture."""
    for line in find_contours(np.pad(mask.astype(np.float32), 1), 0.5):
        # Pixel centres lie half a step from the corner; the padding moved everything by one pixel.
        yield ((line - 0.5) * steps)[:, ::-1]


def _legend(axes: Axes, shown: Sequence[tuple[str, str]]) -> None:
    entries = [Line2D([], [], color=color, linewidth=2, label=name) for name, color in shown[:_LONGEST_LEGEND]]
    entries.append(Line2D([], [], color="white", linewidth=1.6, label="reference"))
    entries.append(Line2D([], [], color="white", linewidth=1.6, linestyle=(0, (3, 2)), label="prediction"))
    axes.legend(
        handles=entries,
        loc="lower left",
        fontsize=7,
        facecolor="black",
        framealpha=0.55,
        edgecolor="none",
        labelcolor="white",
        handlelength=2.2,
        borderpad=0.5,
    )
