"""A model that nnU-Net trained, as it is: both read its folder and predict one large image, on the CPU, unmirrored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks import data
from benchmarks.bench import Row, Setting, Side
from benchmarks.stages.inference import alike

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
    images, ours, theirs = _images(work / f"images{edge}", edge), work / "ours", work / "theirs"
    return [
        Row(
            stage="nnunet_model",
            task=f"nnU-Net's own model folder, {edge}x{edge}x{edge}, CPU, no mirroring",
            ours=Side(
                command=setting.tool(
                    "autoseg_predict", "-i", images, "-o", ours, "-m", model, "--device", "cpu", "--no-tta"
                ),
                env={"AUTOSEG_HOME": str(work / "home")},
                before=lambda: data.empty(ours),
            ),
            peer=Side(
                command=setting.tool(
                    "nnUNetv2_predict_from_modelfolder",
                    *("-i", images, "-o", theirs, "-m", model, "-f", 0, "-device", "cpu", "--disable_tta"),
                    *("-npp", 1, "-nps", 1),
                ),
                env=dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), "/nowhere"),
                before=lambda: data.empty(theirs),
            ),
            least_time=3.0,
            least_memory=3.0,
            compare=lambda *_: alike(ours / "case.nii.gz", theirs / "case.nii.gz", least=_LEAST_ALIKE),
            repeats=3,
        )
    ]


def _images(folder: Path, edge: int) -> Path:
    path = folder / "case_0000.nii.gz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(0).standard_normal((edge, edge, edge), dtype=np.float32)
        partial = folder / "partial.nii.gz"
        data.write_nifti(partial, (gaussian_filter(noise, 2) * 2000 + 300).astype(np.int16), (1.0, 1.0, 1.0))
        partial.rename(path)
    return folder
