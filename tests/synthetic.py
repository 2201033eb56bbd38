"""Writes tiny datasets with known shapes, spacings and labels, for tests that need files.

Files are written with SimpleITK and imageio directly, so that readers of autoseg meet an independent writer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import SimpleITK as sitk  # noqa: N813 - the field's name

# A rotation about no axis of the grid, with exact cosines.
OBLIQUE = (0.36, 0.48, -0.8, -0.8, 0.6, 0.0, 0.48, 0.64, 0.6)


def write_dataset(
    raw: Path,
    *,
    name: str = "Dataset007_Tiny",
    cases: int = 6,
    test_cases: int = 2,
    shape: tuple[int, int, int] = (14, 24, 20),
    spacing: tuple[float, float, float] = (2.0, 1.0, 1.0),
    direction: Sequence[float] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
    channels: Sequence[str] = ("MRI",),
    ending: str = ".nii.gz",
    seed: int = 0,
) -> Path:
    """A bright ball ("ball", 1) that holds a brighter box ("box", 2) somewhere in noise; returns the dataset folder.

    ``shape`` and ``spacing`` are (z, y, x); every case differs from them a little, as cases do.
    """
    folder = raw / name
    rng = np.random.default_rng(seed)
    for index in range(cases + test_cases):
        part = "Tr" if index < cases else "Ts"
        size = tuple(int(length + rng.integers(-2, 3)) for length in shape)
        label = _ball_with_box(rng, size, spacing)
        for number in range(len(channels)):
            image = rng.normal(100.0, 10.0, size) + (40.0 + 20.0 * number) * label
            path = folder / f"images{part}" / f"case_{index:02d}_{number:04d}{ending}"
            write_volume(path, image.astype(np.float32), spacing=spacing, direction=direction, origin=(index, -3.5, 7))
        path = folder / f"labels{part}" / f"case_{index:02d}{ending}"
        write_volume(path, label, spacing=spacing, direction=direction, origin=(index, -3.5, 7))
    write_manifest(folder, channels=channels, labels={"background": 0, "ball": 1, "box": 2}, cases=cases, ending=ending)
    return folder


def write_pictures(
    raw: Path,
    *,
    name: str = "Dataset008_Pictures",
    cases: int = 6,
    test_cases: int = 2,
    colour: bool = True,
    seed: int = 0,
) -> Path:
    """PNG pictures of discs ("disc", 1) in noise, RGB or grey; returns the dataset folder."""
    folder = raw / name
    rng = np.random.default_rng(seed)
    for index in range(cases + test_cases):
        part = "Tr" if index < cases else "Ts"
        size = tuple(int(length) for length in rng.integers(40, 56, 2))
        y, x = np.indices(size)
        centre = [rng.uniform(0.35, 0.65) * length for length in size]
        label = (np.hypot(y - centre[0], x - centre[1]) < rng.uniform(8, 12)).astype(np.uint8)
        grey = np.clip(rng.normal(90, 15, size) + 80 * label, 0, 255).astype(np.uint8)
        image = np.stack([grey, grey // 2, 255 - grey], axis=-1) if colour else grey
        for folder_name, stem, array in (
            ("images", f"case_{index:02d}_0000", image),
            ("labels", f"case_{index:02d}", label),
        ):
            path = folder / f"{folder_name}{part}" / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            imageio.imwrite(path, array)
    channels = ("R", "G", "B") if colour else ("grey",)
    write_manifest(folder, channels=channels, labels={"background": 0, "disc": 1}, cases=cases, ending=".png")
    return folder


def write_volume(
    path: Path,
    array: np.ndarray,
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    direction: Sequence[float] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
    origin: Sequence[float] = (0, 0, 0),
) -> None:
    """Write a (z, y, x) array with ``spacing`` (z, y, x) in mm; ``direction`` and ``origin`` in ITK's (x, y, z)."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(step) for step in reversed(spacing)])
    image.SetDirection([float(value) for value in direction])
    image.SetOrigin([float(value) for value in origin])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=True)


def write_manifest(
    folder: Path, *, channels: Sequence[str], labels: dict[str, object], cases: int, ending: str, **more: object
) -> None:
    """Write ``dataset.json``; ``more`` are further entries, such as regions_class_order."""
    facts = {
        "channel_names": {str(number): channel for number, channel in enumerate(channels)},
        "labels": labels,
        "numTraining": cases,
        "file_ending": ending,
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(facts), encoding="utf-8")


def _ball_with_box(rng: np.random.Generator, size: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    extent = np.asarray(size) * np.asarray(spacing)
    centre = extent * rng.uniform(0.4, 0.6, 3)
    radius = 0.3 * float(extent.min())
    grid = np.stack(
        np.meshgrid(*(np.arange(n) * s for n, s in zip(size, spacing, strict=True)), indexing="ij"), axis=-1
    )
    label = (np.linalg.norm(grid - centre, axis=-1) < radius).astype(np.uint8)
    label[(np.abs(grid - centre) < 0.45 * radius).all(axis=-1)] = 2
    return label
