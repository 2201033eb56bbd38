"""A model that nnU-Net trained, as it is: both read its folder and predict on the CPU, unmirrored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.bench import Differs, Row, Setting
from benchmarks.stages.inference import agreement, image_folder, our_prediction, peer_prediction, worded

_MODEL = Path("nnunet_hippocampus", "nnUNetTrainer__nnUNetPlansSmall__3d_fullres")
_IMAGES = Path("Dataset004_Hippocampus", "imagesTs")
# The large image is a texture that nobody trained on, so that most decisions are close.
_LEAST_ALIKE = 0.999


def rows(setting: Setting) -> list[Row]:
    """One large image, and many small real ones; no row where the trained model is missing."""
    model = None if setting.data is None else setting.data.parent / "models" / _MODEL
    if setting.data is None or model is None or not model.is_dir():
        return []
    edge = 64 if setting.quick else 192
    work = setting.work / "nnunet_model"
    large = image_folder(work / f"images{edge}", lambda: _texture(edge), (1.0, 1.0, 1.0))
    tasks = {f"{edge}x{edge}x{edge}": large}
    if not setting.quick:
        small = setting.data / _IMAGES
        tasks[f"{len(list(small.glob('*.nii.gz')))} images of about 36x50x35"] = small
    return [_row(setting, model, task, images, work / images.name) for task, images in tasks.items()]


def _row(setting: Setting, model: Path, task: str, images: Path, work: Path) -> Row:
    ours, theirs = work / "ours", work / "theirs"
    return Row(
        stage="nnunet_model",
        task=f"nnU-Net's own model folder, {task}, CPU, no mirroring",
        ours=our_prediction(setting, images, ours, model),
        peer=peer_prediction(setting, images, theirs, model),
        least_time=3.0,
        least_memory=3.0,
        compare=lambda *_: _compare(ours, theirs),
        repeats=3,
    )


def _compare(ours: Path, theirs: Path) -> str:
    names = sorted(path.name for path in ours.glob("*.nii.gz"))
    if names != sorted(path.name for path in theirs.glob("*.nii.gz")):
        raise Differs("other images were segmented")
    shares = [agreement(ours / name, theirs / name) for name in names]
    return worded(*(min(column) for column in zip(*shares, strict=True)), least=_LEAST_ALIKE)


def _texture(edge: int) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal((edge, edge, edge), dtype=np.float32)
    return (gaussian_filter(noise, 2) * 2000 + 300).astype(np.int16)
