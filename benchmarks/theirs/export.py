"""python -m benchmarks.theirs.export LOGITS RESULT Z,Y,X PLANS: nnU-Net's way from logits to a label map."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ.update(dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), "/nowhere"))

import json

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from benchmarks.watch import report

FINE = (0.8, 0.8, 0.8)


def main(path: str, result: str, shape: str, folder: str) -> None:
    plans = PlansManager(json.loads((Path(folder) / "plans.json").read_text()))
    labels = plans.get_label_manager(json.loads((Path(folder) / "dataset.json").read_text()))
    full = tuple(map(int, shape.split(",")))
    properties = {
        "spacing": FINE,
        "shape_before_cropping": full,
        "shape_after_cropping_and_before_resampling": full,
        "bbox_used_for_cropping": [[0, length] for length in full],
    }
    started = time.perf_counter()
    logits = torch.from_numpy(np.load(path))
    segmentation = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, plans, plans.get_configuration("3d_fullres"), labels, properties, num_threads_torch=os.cpu_count()
    )
    seconds = time.perf_counter() - started
    np.save(result, segmentation)
    report(seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
