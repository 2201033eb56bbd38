"""nnU-Net's evaluation of a folder with HD95 beside it, for each case and label, in as many processes.

nnU-Net 2 scores overlaps only. Its users take HD95 from MedPy, as nnU-Net 1 did, or from DeepMind's surface-distance.

    python -m benchmarks.theirs.evaluation medpy REFERENCES SEGMENTATIONS OUTPUT.json LABELS CASES
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from medpy.metric import binary
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

_PROCESSES = 2


def main() -> None:
    tool, references, segmentations, output, labels, cases = sys.argv[1:]
    files = sorted(Path(references).glob("*.nii.gz"))[: int(cases)]
    pairs = [(path, Path(segmentations) / path.name) for path in files]
    score = partial(_score, tool=tool, labels=range(1, int(labels) + 1))
    with multiprocessing.get_context("spawn").Pool(_PROCESSES) as pool:
        scores = pool.starmap(score, pairs)
    Path(output).write_text(json.dumps(dict(zip((path.name for path, _ in pairs), scores, strict=True))))


def _score(reference: Path, segmentation: Path, *, tool: str, labels: Sequence[int]) -> dict[int, dict[str, float]]:
    """Dice and HD95 of each label of a case."""
    reader = SimpleITKIO()
    overlaps = compute_metrics(str(reference), str(segmentation), reader, labels)["metrics"]
    first, facts = reader.read_seg(str(reference))
    second, _ = reader.read_seg(str(segmentation))
    masks = {label: (second[0] == label, first[0] == label) for label in labels}
    return {
        label: {
            "Dice": float(overlaps[label]["Dice"]),
            "HD95": _TOOLS[tool](*masks[label], facts["spacing"]) if all(map(np.any, masks[label])) else float("nan"),
        }
        for label in labels
    }


def _medpy(result: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> float:
    return float(binary.hd95(result, reference, voxelspacing=spacing))


def _medpy_directed(result: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> float:
    """MedPy's distances, but the larger percentile of both directions, as MONAI and autoseg have it."""
    distances = binary.__dict__["__surface_distances"]
    sides = (distances(result, reference, spacing, 1), distances(reference, result, spacing, 1))
    return float(max(np.percentile(side, 95) for side in sides))


def _deepmind(result: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> float:
    from surface_distance import compute_robust_hausdorff, compute_surface_distances

    return float(compute_robust_hausdorff(compute_surface_distances(reference, result, spacing), 95))


_TOOLS = {"medpy": _medpy, "medpy-directed": _medpy_directed, "deepmind": _deepmind}


if __name__ == "__main__":
    main()
