"""Generated datasets of clinical size, the same on every machine, written once into a cache folder.

A body of soft tissue in air with noise, and ellipsoid organs of random place and size, one or more per class. The
noise makes files as hard to unpack as real ones.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name everybody uses
from PIL import Image
from scipy.ndimage import binary_erosion, zoom

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]

_AIR, _TISSUE, _NOISE = -1000.0, 40.0, 20.0


def ct_volume(shape: Shape, *, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One CT and its label, (z, y, x): int16 Hounsfield units, and uint8 with ``classes`` labels beside 0."""
    generator = np.random.default_rng(seed)
    label = organs(shape, classes=classes, generator=generator)
    levels = np.array([0.0, *generator.uniform(-80.0, 200.0, classes)], dtype=np.float32)
    body = _body(shape[1:])
    image = np.empty(shape, dtype=np.int16)
    for plane, marked in zip(image, label, strict=True):
        values = np.where(body, _TISSUE + levels[marked], _AIR)
        plane[...] = values + generator.standard_normal(shape[1:], dtype=np.float32) * _NOISE
    return image, label


def mri_volume(shape: Shape, *, channels: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A skull-stripped MRI, (c, z, y, x) int16 and 0 outside the head, and its uint8 label (z, y, x)."""
    generator = np.random.default_rng(seed)
    label = organs(shape, classes=classes, generator=generator)
    head = _ellipsoid(shape, centre=[length / 2 for length in shape], radii=[0.42 * length for length in shape])
    label[~head] = 0
    image = np.zeros((channels, *shape), dtype=np.int16)
    for channel in image:
        levels = np.array([400.0, *generator.uniform(100.0, 1000.0, classes)], dtype=np.float32)
        values = levels[label] + generator.standard_normal(shape, dtype=np.float32) * 30.0
        channel[head] = values[head]
    return image, label


def picture(size: tuple[int, int], *, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An RGB picture (y, x, 3) uint8 and its label (y, x) uint8."""
    generator = np.random.default_rng(seed)
    label = organs((1, *size), classes=classes, generator=generator)[0]
    colours = generator.uniform(60.0, 220.0, (classes + 1, 3)).astype(np.float32)
    values = colours[label] + generator.standard_normal((*size, 3), dtype=np.float32) * 12.0
    return np.clip(values, 0, 255).astype(np.uint8), label


def organs(shape: Shape, *, classes: int, generator: np.random.Generator) -> np.ndarray:
    """A uint8 label map (z, y, x) in which every class has two ellipsoids; later classes lie on top."""
    label = np.zeros(shape, dtype=np.uint8)
    reach = 0.35 / max(1.0, classes ** (1 / 3))
    for value in [value for value in range(1, classes + 1) for _ in range(2)]:
        centre = [generator.uniform(0.25, 0.75) * length for length in shape]
        radii = [max(1.0, generator.uniform(0.5, 1.0) * reach * length) for length in shape]
        box = tuple(
            slice(max(0, int(middle - radius)), math.ceil(middle + radius) + 1)
            for middle, radius in zip(centre, radii, strict=True)
        )
        part = label[box]
        inside = [middle - place.start for middle, place in zip(centre, box, strict=True)]
        part[_ellipsoid(part.shape, centre=inside, radii=radii)] = value
    return label


def ct_dataset(folder: Path, *, cases: Sequence[tuple[Shape, Spacing]], classes: int) -> Path:
    """A dataset in nnU-Net's layout, one compressed CT per (shape, spacing in mm), both (z, y, x); cached."""

    def write(partial: Path) -> None:
        for index, (shape, spacing) in enumerate(cases):
            image, label = ct_volume(shape, classes=classes, seed=index)
            _write_case(partial, index, image[np.newaxis], label, spacing)
        _describe(partial, ["CT"], classes=classes, cases=len(cases), ending=".nii.gz")

    return _cached(folder, write)


def mri_dataset(folder: Path, *, cases: Sequence[tuple[Shape, Spacing]], channels: int, classes: int) -> Path:
    """As ``ct_dataset``, with ``channels`` MRI files per case."""

    def write(partial: Path) -> None:
        for index, (shape, spacing) in enumerate(cases):
            image, label = mri_volume(shape, channels=channels, classes=classes, seed=index)
            _write_case(partial, index, image, label, spacing)
        names = [f"MRI{number}" for number in range(channels)]
        _describe(partial, names, classes=classes, cases=len(cases), ending=".nii.gz")

    return _cached(folder, write)


def picture_dataset(folder: Path, *, cases: int, size: tuple[int, int], classes: int) -> Path:
    """RGB pictures (y, x) as PNG, one file per case with the three colours in it; cached."""

    def write(partial: Path) -> None:
        for index in range(cases):
            image, label = picture(size, classes=classes, seed=index)
            Image.fromarray(image).save(partial / "imagesTr" / f"case_{index:03d}_0000.png", compress_level=4)
            Image.fromarray(label).save(partial / "labelsTr" / f"case_{index:03d}.png")
        # Both sides take these names to mean that 255 is white.
        _describe(partial, ["rgb_to_0_1"] * 3, classes=classes, cases=cases, ending=".png")

    return _cached(folder, write)


def segmented_dataset(folder: Path, *, cases: int, shape: Shape, spacing: Spacing, classes: int) -> Path:
    """Label maps in ``labelsTr``, and in ``segmentations`` what a network that errs by a mm or two makes of them.

    Every class is an ellipsoid with an uneven surface. In one case of ten a segmentation has a false structure too, in
    one of twenty it misses the last class.
    """

    def write(partial: Path) -> None:
        (partial / "segmentations").mkdir()
        for index in range(cases):
            label, segmentation = _segmented(shape, spacing, classes=classes, seed=index)
            if index % 10 == 3:
                segmentation[2:6, 10:20, 10:20] = 1 + index % classes
            if index % 20 == 7:
                segmentation[segmentation == classes] = 0
            write_nifti(partial / "labelsTr" / f"case_{index:03d}.nii.gz", label, spacing)
            write_nifti(partial / "segmentations" / f"case_{index:03d}.nii.gz", segmentation, spacing)
        _describe(partial, ["CT"], classes=classes, cases=cases, ending=".nii.gz")

    return _cached(folder, write)


def misplaced_dataset(folder: Path, *, source: Path, cases: int) -> Path:
    """The first labels of a real dataset of NIfTI files, and segmentations that are shifted by a voxel, with the outer
    voxels of every second case removed; laid out as ``segmented_dataset``, cached."""

    def write(partial: Path) -> None:
        (partial / "segmentations").mkdir()
        for index, path in enumerate(sorted((source / "labelsTr").glob("*.nii.gz"))[:cases]):
            image = sitk.ReadImage(str(path))
            segmentation = np.roll(sitk.GetArrayFromImage(image), 1, axis=index % 3)
            if index % 2:
                segmentation[~binary_erosion(segmentation > 0)] = 0
            shifted = sitk.GetImageFromArray(segmentation)
            shifted.CopyInformation(image)
            shutil.copyfile(path, partial / "labelsTr" / path.name)
            sitk.WriteImage(shifted, str(partial / "segmentations" / path.name), useCompression=True)
        shutil.copyfile(source / "dataset.json", partial / "dataset.json")

    return _cached(folder, write)


def write_nifti(path: Path, data: np.ndarray, spacing: Spacing) -> None:
    """(z, y, x) with ``spacing`` in mm of the same order, upright at the origin; compressed if the name says so."""
    image = sitk.GetImageFromArray(data)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(path), useCompression=True)


def _write_case(folder: Path, index: int, image: np.ndarray, label: np.ndarray, spacing: Spacing) -> None:
    for number, channel in enumerate(image):
        write_nifti(folder / "imagesTr" / f"case_{index:03d}_{number:04d}.nii.gz", channel, spacing)
    write_nifti(folder / "labelsTr" / f"case_{index:03d}.nii.gz", label, spacing)


def _describe(folder: Path, channels: Sequence[str], *, classes: int, cases: int, ending: str) -> None:
    description = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": {"background": 0, **{f"organ{value}": value for value in range(1, classes + 1)}},
        "numTraining": cases,
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n")


def _cached(folder: Path, write: Callable[[Path], None]) -> Path:
    if (folder / "dataset.json").exists():
        return folder
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part in ("imagesTr", "labelsTr"):
        (partial / part).mkdir(parents=True)
    write(partial)
    partial.rename(folder)
    return folder


def _segmented(shape: Shape, spacing: Spacing, *, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A uint8 label map (z, y, x) and a segmentation of it."""
    generator = np.random.default_rng(seed)
    label, segmentation = np.zeros((2, *shape), dtype=np.uint8)
    extent = np.multiply(shape, spacing)
    for value in range(1, classes + 1):
        angle = 2 * np.pi * value / classes
        around = np.array([0.15 * np.cos(3 * angle), 0.24 * np.sin(angle), 0.24 * np.cos(angle)])
        middle = (0.5 + around + generator.uniform(-0.04, 0.04, 3)) * extent
        radii = generator.uniform(0.1, 0.2, 3) * extent
        box = tuple(
            slice(max(0, int((centre - 1.3 * radius) / step)), min(length, int((centre + 1.3 * radius) / step) + 1))
            for centre, radius, step, length in zip(middle, radii, spacing, shape, strict=True)
        )
        places = zip(np.ogrid[box], spacing, middle, radii, strict=True)
        distance = sum(((index * step - centre) / radius) ** 2 for index, step, centre, radius in places)
        outside = (np.sqrt(distance) - 1) * radii.mean() + 2.0 * _smooth(distance.shape, generator)
        label[box][outside < 0] = value
        segmentation[box][outside + 2.5 * _smooth(distance.shape, generator) < 0] = value
    return label, segmentation


def _smooth(shape: Sequence[int], generator: np.random.Generator) -> np.ndarray:
    """Noise that is even over some six voxels, standard deviation about 0.6."""
    coarse = generator.standard_normal([2 + length // 6 for length in shape], dtype=np.float32)
    return zoom(coarse, [length / few for length, few in zip(shape, coarse.shape, strict=True)], order=1)


def _body(size: Sequence[int]) -> np.ndarray:
    centre = [length / 2 for length in size]
    return _ellipsoid(size, centre=centre, radii=[0.40 * size[0], 0.46 * size[1]])


def _ellipsoid(shape: Sequence[int], *, centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    axes = np.ogrid[tuple(slice(length) for length in shape)]
    distance = sum(
        ((axis - middle) / radius).astype(np.float32) ** 2
        for axis, middle, radius in zip(axes, centre, radii, strict=True)
    )
    return distance <= 1.0


def empty(folder: Path) -> None:
    """Remove what a run left in its folder of outputs, and make the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
