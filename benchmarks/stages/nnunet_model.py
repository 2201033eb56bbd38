"""A model that nnU-Net trained, as it is: both read its folder and predict one large image, on the CPU, unmirrored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.bench import Row, Setting
from benchmarks.stages.inference import alike, image_folder, our_prediction, peer_prediction

_MODEL = Path("nnunet_hippocampus", "nnUNetTrainer__nnUNetPlansSmall__3d_fullres")
# The image is a texture that nobody trained on, so that most decisions are close; real ones agree in 99.97%.
_LEAST_ALIKE = 0.999


def rows(setting: Setting) -> list[Row]:
    """One row, or none where the trained model is missing."""
    model = None if setting.data is None else setting.data.parent / "models" / _MODEL
    if model is None or not model.is_dir():
        return []
    edge = 64 if setting.quick else 192
    work = setting.work / "nnunet_model"
    images = image_folder(work / f"images{edge}", lambda: _texture(edge), (1.0, 1.0, 1.0))
    ours, theirs = work / "ours", work / "theirs"
    return [
        Row(
            stage="nnunet_model",
            task=f"nnU-Net's own model folder, {edge}x{edge}x{edge}, CPU, no mirroring",
            ours=our_prediction(setting, images, ours, model),
            peer=peer_prediction(setting, images, theirs, model),
            least_time=3.0,
            least_memory=3.0,
            compare=lambda *_: alike(ours / "case.nii.gz", theirs / "case.nii.gz", least=_LEAST_ALIKE),
            repeats=3,
        )
    ]


def _texture(edge: int) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal((edge, edge, edge), dtype=np.float32)
    return (gaussian_filter(noise, 2) * 2000 + 300).astype(np.int16)
