"""Sums of weights are right whatever happens to the files, and those that stay are read for them once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoseg import records
from autoseg.pipeline.predict import predict
from autoseg.pipeline.weights import digests, weights_digest
from autoseg.schema.calibration import Calibration
from autoseg.schema.folders import ModelFolder
from autoseg.schema.postprocessing import PostProcessing
from autoseg.schema.settings import PredictSettings
from tests.synthetic import write_volume


def test_a_file_that_changes_has_another_sum(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"one")
    state = path.stat()
    assert weights_digest(path) == hashlib.sha256(b"one").hexdigest()
    # Of the same size and time, in the place of the first, as a copy that keeps times would be.
    other = tmp_path / "other"
    other.write_bytes(b"two")
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(path)
    assert weights_digest(path) == hashlib.sha256(b"two").hexdigest()


def test_a_prediction_reads_each_file_of_weights_once_for_its_sums(
    write_model: Callable[..., ModelFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "model")
    sums = {name: hashlib.sha256(model.fold(name).weights.read_bytes()).hexdigest() for name in model.finished_folds()}
    figures: dict[str, Any] = {"nll_before": 1.0, "nll_after": 1.0, "ece_before": 0.1, "ece_after": 0.1}
    calibration = Calibration(temperature=2.0, cases=1, voxels=1, weights=sums, **figures)
    records.save(model.root / "calibration.json", calibration)
    records.save(model.postprocessing, PostProcessing(steps=(), weights=sums))
    write_volume(tmp_path / "in" / "case_0000.nii.gz", np.zeros((20, 20, 20), np.float32))
    read: list[Path] = []
    opened = Path.open

    def counted(self: Path, *words: Any, **named: Any) -> Any:
        read.append(self)
        return opened(self, *words, **named)

    monkeypatch.setattr(Path, "open", counted)
    predict(
        PredictSettings(
            model=str(model.root),
            inputs=str(tmp_path / "in"),
            outputs=str(tmp_path / "out"),
            device="cpu",
            uncertainty=True,
        )
    )
    assert sorted(path for path in read if path.suffix == ".safetensors") == sorted(
        model.fold(name).weights for name in sums
    )
    assert digests(model) == sums
