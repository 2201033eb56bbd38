"""Run a model that autoseg_export --onnx wrote, with numpy, scipy and onnxruntime alone.

This file needs nothing of autoseg and is copied beside the graphs. It is written to be read: everything is done in
the plainest way, and the logits of all classes are held at full resolution. Use it as it is, or as the reference for
a port to another language.

    python onnx_runner.py FOLDER image.npy labels.npy --spacing 1 0.5 0.5

Images are (z, y, x) or (channels, z, y, x), spacings (z, y, x) in mm. A picture has z = 1 and the spacing (y, x).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

Run = Callable[[np.ndarray], np.ndarray]


def segment(folder: str | Path, image: np.ndarray, spacing: Sequence[float], *, mirror: bool = False) -> np.ndarray:
    """The label map (z, y, x) of an image.

    Args:
        folder: with model.json and the graphs.
        image: (z, y, x) or (channels, z, y, x).
        spacing: (z, y, x) in mm, or (y, x) of a picture, in which sizes of components are areas.
        mirror: average over mirror images too, which is slower and a little better.
    """
    model = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
    channels = image if image.ndim == 4 else image[None]
    if len(channels) != len(model["channels"]):
        raise ValueError(f"the image has {len(channels)} channels, the model needs {', '.join(model['channels'])}")
    picture = len(spacing) == 2 and channels.shape[1] == 1
    if len(spacing) != 3 and not picture:
        raise ValueError(f"{len(spacing)} spacings: give those of z, y and x, or of y and x if there is one plane")
    spatial = [max(spacing), *spacing] if picture else spacing
    order = model["transpose"]
    data = channels.transpose(0, *(axis + 1 for axis in order))
    own = [spatial[axis] for axis in order]
    box = nonzero_box(data)
    cropped = data[(slice(None), *box)]
    target = [own[0], *model["spacing"]] if model["ndim"] == 2 else model["spacing"]
    prepared = resample_image(normalize(cropped, model["normalization"]), own, target, model["resampling"])
    run = ensemble(Path(folder), model, mirror=mirror)
    logits = sliding_window(prepared, run, model)
    logits = resample_logits(logits, cropped.shape[1:], target, own, model["resampling"])
    labels = np.zeros(data.shape[1:], dtype=np.int32)
    labels[box] = np.array(model["output_values"])[decide(logits, regions=model["regions"])]
    return postprocess(labels.transpose(np.argsort(order)), model["postprocessing"], math.prod(spacing))


def nonzero_box(data: np.ndarray) -> tuple[slice, ...]:
    """The smallest box with every voxel that is not zero in all channels; the whole image if there is none."""
    places = np.argwhere((data != 0).any(axis=0))
    if not len(places):
        return tuple(slice(0, length) for length in data.shape[1:])
    return tuple(slice(low, high + 1) for low, high in zip(places.min(axis=0), places.max(axis=0), strict=True))


def normalize(data: np.ndarray, schemes: Sequence[dict[str, Any]]) -> np.ndarray:
    """Each channel by its scheme, float32."""
    result = data.astype(np.float32)
    mask = ndimage.binary_fill_holes((data != 0).any(axis=0))
    for channel, scheme in zip(result, schemes, strict=True):
        kind = scheme["scheme"]
        if kind == "ct":
            channel[...] = (np.clip(channel, scheme["lower"], scheme["upper"]) - scheme["mean"]) / scheme["std"]
        elif kind == "zscore":
            channel[...] = _standardized(channel)
        elif kind == "zscore_masked":
            channel[mask] = _standardized(channel[mask])
        elif kind == "rescale_0_1":
            channel -= channel.min()
            channel /= max(channel.max(), 1e-8)
        elif kind == "rgb_0_1":
            channel /= 255
        elif kind != "none":
            raise ValueError(f"normalisation {kind!r} is unknown to this program")
    return result


def _standardized(values: np.ndarray) -> np.ndarray:
    if not values.size:
        return values
    centred = values - np.float32(values.mean(dtype=np.float64))
    return centred / max(math.sqrt(np.square(centred).mean(dtype=np.float64)), 1e-8)


def separate_axis(spacing: Sequence[float], target: Sequence[float], threshold: float) -> int | None:
    """The one coarse axis that is resampled apart from the others, if the voxels are far from cubes."""
    for values in (spacing, target):
        if max(values) / min(values) > threshold:
            coarsest = [axis for axis, value in enumerate(values) if value == max(values)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resample_image(
    data: np.ndarray, spacing: Sequence[float], target: Sequence[float], rules: dict[str, Any]
) -> np.ndarray:
    """(c, z, y, x) from one spacing to another, with splines that keep to the range of the values."""
    shape = tuple(
        max(1, round(old / new * length)) for length, old, new in zip(data.shape[1:], spacing, target, strict=True)
    )
    if shape == data.shape[1:]:
        return data
    apart = separate_axis(spacing, target, rules["anisotropy_threshold"])
    result = np.empty((len(data), *shape), dtype=np.float32)
    for channel, out in zip(data, result, strict=True):
        if apart is None:
            out[...] = _zoomed(channel, shape, rules["order_image"])
            continue
        plane_shape = tuple(length for axis, length in enumerate(shape) if axis != apart)
        planes = [_zoomed(plane, plane_shape, rules["order_image"]) for plane in np.moveaxis(channel, apart, 0)]
        stack = np.stack(planes, axis=apart)
        out[...] = _along(stack, apart, shape[apart], rules["order_z"])
    return result


def _zoomed(array: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    if array.shape == shape:
        return array
    factors = [new / old for old, new in zip(array.shape, shape, strict=True)]
    zoomed = ndimage.zoom(array.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(zoomed, array.min(), array.max())


def _along(array: np.ndarray, axis: int, length: int, order: int) -> np.ndarray:
    """One axis resized to ``length`` voxels of the same extent: nearest (order 0), linear (1) or a spline."""
    count = array.shape[axis]
    if count == length:
        return array
    if order > 1:
        factors = [length / count if other == axis else 1.0 for other in range(array.ndim)]
        return ndimage.zoom(array.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)
    centres = (np.arange(length) + 0.5) * (count / length) - 0.5
    if order == 0:
        return np.take(array, np.clip(np.floor(centres + 0.5), 0, count - 1).astype(int), axis=axis)
    centres = np.clip(centres, 0, count - 1)
    low = np.floor(centres).astype(int)
    shape = [length if other == axis else 1 for other in range(array.ndim)]
    weight = (centres - low).astype(np.float32).reshape(shape)
    upper = np.take(array, np.minimum(low + 1, count - 1), axis=axis)
    return (1 - weight) * np.take(array, low, axis=axis) + weight * upper


def resample_logits(
    logits: np.ndarray,
    shape: Sequence[int],
    spacing: Sequence[float],
    target: Sequence[float],
    rules: dict[str, Any],
) -> np.ndarray:
    """(heads, z, y, x) from the spacing of the network back to that of the image."""
    apart = separate_axis(spacing, target, rules["anisotropy_threshold"])
    for axis, length in enumerate(shape):
        logits = _along(logits, axis + 1, length, rules["order_z"] if axis == apart else rules["order_logits"])
    return logits


def ensemble(folder: Path, model: dict[str, Any], *, mirror: bool) -> Run:
    """A function from a window (1, c, *patch) to the mean logits (heads, *patch) of all graphs."""
    import onnxruntime

    sessions = [
        onnxruntime.InferenceSession(str(folder / name), providers=onnxruntime.get_available_providers())
        for name in model["graphs"]
    ]
    axes = [axis + 2 for axis in model["mirror_axes"]] if mirror else []
    flips = list(chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1)))

    def run(window: np.ndarray) -> np.ndarray:
        total = 0.0
        for session, flip in product(sessions, flips):
            mirrored = np.ascontiguousarray(np.flip(window, flip))
            logits = session.run([model["output"]], {model["input"]: mirrored})[0]
            total = total + np.flip(logits, flip)
        return total[0] / (len(sessions) * len(flips))  # type: ignore[index, no-any-return]

    return run


def sliding_window(image: np.ndarray, run: Run, model: dict[str, Any]) -> np.ndarray:
    """Logits (heads, z, y, x) of an image: overlapping windows, of which the middle counts most."""
    flat = model["ndim"] == 2
    patch = (1, *model["patch_size"]) if flat else tuple(model["patch_size"])
    missing = [max(0, size - length) for size, length in zip(patch, image.shape[1:], strict=True)]
    before = [gap // 2 for gap in missing]
    padded = np.pad(image, ((0, 0), *((low, gap - low) for low, gap in zip(before, missing, strict=True))))
    sums = np.zeros((model["heads"], *padded.shape[1:]), dtype=np.float32)
    weights = np.zeros(padded.shape[1:], dtype=np.float32)
    window = gaussian(patch, model["window_sigma"], model["window_floor"])
    for place in windows(padded.shape[1:], patch, model["step_size"]):
        part = np.ascontiguousarray(padded[(slice(None), *place)][None], dtype=np.float32)
        logits = run(part[:, :, 0])[:, None] if flat else run(part)
        sums[(slice(None), *place)] += logits * window
        weights[place] += window
    inside = tuple(slice(low, low + length) for low, length in zip(before, image.shape[1:], strict=True))
    return (sums / weights)[(slice(None), *inside)]


def windows(shape: Sequence[int], patch: Sequence[int], step: float) -> Iterator[tuple[slice, ...]]:
    """Where windows lie: evenly spread, at most ``step`` patches apart, the last one at the border."""
    starts = []
    for length, size in zip(shape, patch, strict=True):
        count = math.ceil((length - size) / (step * size)) + 1 if length > size else 1
        if size == 1:
            count = length
        distance = (length - size) / max(count - 1, 1)
        starts.append([round(index * distance) for index in range(count)])
    for corner in product(*starts):
        yield tuple(slice(start, start + size) for start, size in zip(corner, patch, strict=True))


def gaussian(patch: Sequence[int], sigma: float, floor: float) -> np.ndarray:
    """Weights of a window: 1 in the middle, falling off to ``floor``."""
    result = np.ones(())
    for size in patch:
        result = result[..., None] * np.exp(-0.5 * ((np.arange(size) - size // 2) / (sigma * size)) ** 2)
    return np.maximum(result, floor).astype(np.float32)


def decide(logits: np.ndarray, *, regions: bool) -> np.ndarray:
    """The number of the winner per voxel: of the largest logit, or 1 + the last head above 0 (0 if none is)."""
    if not regions:
        return logits.argmax(axis=0)
    result = np.zeros(logits.shape[1:], dtype=int)
    for number, values in enumerate(logits, start=1):
        result[values > 0] = number
    return result


def postprocess(labels: np.ndarray, steps: Sequence[dict[str, Any]], voxel_size: float) -> np.ndarray:
    """A label map (z, y, x) after rules on components, whose voxels share a face, an edge or a corner.

    Args:
        voxel_size: mm^3, of a picture mm^2, as the smallest sizes of the steps.
    """
    for step in steps:
        mask = np.isin(labels, step["values"])
        if step["rule"] == "fill_holes":
            # A single plane encloses nothing in space: its holes are those of the plane.
            filled = ndimage.binary_fill_holes(mask[0])[None] if len(mask) == 1 else ndimage.binary_fill_holes(mask)
            # Other labels in a hole were predicted, and stay.
            labels = np.where(filled & ~mask & (labels == 0), step["fill"], labels)
            continue
        numbers, _ = ndimage.label(mask, np.ones((3, 3, 3)))
        sizes = np.bincount(numbers[mask], minlength=1)
        if step["rule"] == "keep_largest":
            kept = sizes == sizes.max()
        elif step["rule"] == "remove_small":
            # Spacings are rounded in files: 100 mm3 are 100 voxels of 0.9999999 mm3.
            kept = sizes >= math.ceil(step["minimum_mm3"] / voxel_size - 1e-3)
        else:
            raise ValueError(f"post-processing {step['rule']!r} is unknown to this program")
        labels = np.where(mask & ~kept[numbers], 0, labels)
    return labels.astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Segment an array with the ONNX model of a folder.",
        # Spacings are two or three numbers, so that they must not stand before the files.
        usage="%(prog)s folder image labels [--mirror] --spacing MM MM [MM]",
    )
    parser.add_argument("folder", help="folder with model.json")
    parser.add_argument("image", help=".npy, (z, y, x) or (channels, z, y, x)")
    parser.add_argument("labels", help=".npy to write")
    parser.add_argument(
        "--spacing", nargs="+", type=float, required=True, metavar="MM", help="z, y and x; of a picture y and x"
    )
    parser.add_argument("--mirror", action="store_true", help="average over mirror images too")
    given = parser.parse_args()
    image = np.load(given.image, allow_pickle=False)
    np.save(given.labels, segment(given.folder, image, given.spacing, mirror=given.mirror))


if __name__ == "__main__":
    main()
