"""python -m benchmarks.doubt -m MODEL -i imagesTs -r labelsTs: does the uncertainty score find the worst cases?

A share of the images is spoilt first, in turn by noise, blur, thick slices, a bias field and a ghost: what a scanner or
a patient does, and training did not show. Then all are predicted with ``--uncertainty`` and scored, and the area under
the ROC curve says how well the score separates the worst cases by Dice from the others.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name everybody uses
from scipy import ndimage, stats

from autoseg import records
from autoseg.evaluation.metrics import case_dice
from autoseg.schema.calibration import UncertaintyReport
from autoseg.schema.report import EvaluationReport

Spoil = Callable[[np.ndarray, np.random.Generator], np.ndarray]
_WORST = (0.1, 0.2, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.doubt", description=__doc__)
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("-i", "--images", type=Path, required=True)
    parser.add_argument("-r", "--references", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.25, help="of the images that are spoilt")
    asked = parser.parse_args()
    images, segmentations = asked.output / "images", asked.output / "segmentations"
    _spoil_some(asked.images, images, share=asked.share)
    tools = Path(sys.executable).parent
    predict = [tools / "autoseg_predict", "-m", asked.model, "-i", images, "-o", segmentations, "--uncertainty"]
    labels = asked.model / "dataset.json"
    evaluate = [tools / "autoseg_evaluate", "-r", asked.references, "-p", segmentations, "--labels", labels]
    for command in (predict, evaluate):
        subprocess.run([str(word) for word in command], check=True)
    scores = records.load(EvaluationReport, segmentations / "summary.json")
    report = records.load(UncertaintyReport, segmentations / "uncertainty.json")
    doubt = {case.id: case.doubt.score for case in report.cases}
    dice = np.array([case_dice(case) for case in scores.cases])
    score = np.array([doubt[case.id] for case in scores.cases])
    found = ", ".join(f"worst {share:.0%} {_area(dice, score, share):.2f}" for share in _WORST)
    sys.stdout.write(f"{len(dice)} cases, mean Dice {dice.mean():.3f}, lowest {dice.min():.3f}: {found}\n")


def _area(dice: np.ndarray, score: np.ndarray, share: float) -> float:
    """Area under the ROC curve of ``score`` for the ``share`` of cases with the lowest Dice (Mann-Whitney)."""
    worst = np.zeros(len(dice), dtype=bool)
    worst[np.argsort(dice)[: round(share * len(dice))]] = True
    statistic = stats.mannwhitneyu(score[worst], score[~worst]).statistic
    return float(statistic / (worst.sum() * (~worst).sum()))


def _spoil_some(source: Path, target: Path, *, share: float) -> None:
    target.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = sorted(source.glob("*.nii.gz"))
    chosen = sorted(rng.choice(len(paths), round(share * len(paths)), replace=False).tolist())
    for index, path in enumerate(paths):
        image = sitk.ReadImage(str(path))
        array = sitk.GetArrayFromImage(image).astype(np.float32)
        if index in chosen:
            array = _WAYS[chosen.index(index) % len(_WAYS)](array, rng)
        written = sitk.GetImageFromArray(array.astype(np.float32))
        written.CopyInformation(image)
        sitk.WriteImage(written, str(target / path.name))


def _noise(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return array + rng.normal(0, array.std(), array.shape)


def _blur(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return ndimage.gaussian_filter(array, 2.0)


def _thick_slices(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(array[::5], 5, axis=0)[: len(array)]


def _bias(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return array * (1 + 0.8 * np.linspace(-1, 1, array.shape[2]))


def _ghost(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return array + 0.7 * np.roll(array, array.shape[1] // 3, axis=1)


_WAYS: tuple[Spoil, ...] = (_noise, _blur, _thick_slices, _bias, _ghost)


if __name__ == "__main__":
    main()
