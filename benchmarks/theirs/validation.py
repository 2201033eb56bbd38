"""python -m benchmarks.theirs.validation MODEL DATASET OUT: predict and score all cases of a dataset."""

from __future__ import annotations

import os
import sys
import time

os.environ.update(dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), "/nowhere"))

import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from benchmarks.watch import report


def main(model: str, dataset: str, out: str) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    started = time.perf_counter()
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(model, use_folds=(0,))
    predictor.predict_from_files(
        f"{dataset}/imagesTr", out, num_processes_preprocessing=2, num_processes_segmentation_export=2
    )
    classes = predictor.label_manager.foreground_labels
    scores = compute_metrics_on_folder(
        f"{dataset}/labelsTr", out, f"{out}/summary.json", SimpleITKIO(), ".nii.gz", classes, num_processes=2
    )
    seconds = time.perf_counter() - started
    cases = sorted(scores["metric_per_case"], key=lambda case: case["prediction_file"])
    report(seconds, dice=[[float(case["metrics"][value]["Dice"]) for value in classes] for case in cases])


if __name__ == "__main__":
    main(*sys.argv[1:])
