"""python -m benchmarks.ours.validation MODEL DATASET: predict and score all cases of a dataset as fold 0."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from autoseg import records
from autoseg.pipeline.validate import validate_fold
from autoseg.schema.dataset import CaseFiles, DatasetSpec
from autoseg.schema.folders import ModelFolder
from autoseg.schema.report import EvaluationReport
from benchmarks.watch import report


def main(model: str, dataset: str) -> None:
    folder = ModelFolder(Path(model))
    labels = sorted((Path(dataset) / "labelsTr").glob("*.nii.gz"))
    cases = tuple(
        CaseFiles(
            id=label.name.removesuffix(".nii.gz"),
            images=(str(Path(dataset) / "imagesTr" / label.name.replace(".nii.gz", "_0000.nii.gz")),),
            label=str(label),
        )
        for label in labels
    )
    spec = replace(records.load(DatasetSpec, folder.dataset), cases=cases)
    started = time.perf_counter()
    validate_fold(folder, "0", [case.id for case in cases], spec=spec, device="cpu")
    seconds = time.perf_counter() - started
    scores = records.load(EvaluationReport, folder.fold(0).summary)
    report(seconds, dice=[[label.dice for label in case.classes] for case in scores.cases])


if __name__ == "__main__":
    main(*sys.argv[1:])
