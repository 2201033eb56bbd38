"""What is done to one case at a time, by worker processes: this file must not import torch, which takes seconds."""

from __future__ import annotations

import numpy as np

from autoseg.errors import DatasetError
from autoseg.fingerprint import CaseStats, case_stats
from autoseg.io.store import CaseStore
from autoseg.io.verify import Fault, fault_table, load_case
from autoseg.preprocessing.case import class_locations, preprocess_case
from autoseg.preprocessing.partial import mark_ambiguous
from autoseg.schema.dataset import CaseFiles, DatasetSpec
from autoseg.schema.plan import Configuration, Plan

# nnU-Net's seed for the voxels that it remembers of each class.
LOCATION_SEED = 1234


def inspect_case(case: CaseFiles, *, spec: DatasetSpec, tolerance: float) -> tuple[CaseStats | None, list[Fault]]:
    """Read, check and measure a case; no measurements if it has a fatal fault."""
    loaded, faults = load_case(case, spec, tolerance_mm=tolerance)
    if loaded is None or any(fault.fatal for fault in faults):
        return None, list(faults)
    return case_stats(loaded.id, loaded.image, loaded.label, spec.labels), list(faults)


def store_case(case: CaseFiles, *, spec: DatasetSpec, made: Plan, configuration: Configuration, root: str) -> None:
    """Read, preprocess and store a case.

    Raises:
        DatasetError: its files are gone or damaged since they were measured.
    """
    loaded, faults = load_case(case, spec, tolerance_mm=float("inf"))
    if loaded is None:
        raise DatasetError(f"{case.id}: {fault_table(faults)}", hint="mend the file and run the same command again")
    properties = {"spacing": list(loaded.image.geometry.spacing), "shape": list(loaded.image.data.shape[1:])}
    done = preprocess_case(loaded.image, loaded.label, plan=made, configuration=configuration, id=case.id)
    # What was read is not needed any more, and writing needs memory too.
    del loaded
    label = np.asarray(done.label)
    locations = class_locations(label, made.labels, seed=LOCATION_SEED)
    if done.mask is not None:
        # Training zeroes masked channels here again after augmentation.
        label = label.astype(np.int16, copy=False)
        label[(label == 0) & ~done.mask] = -1
    if case.annotated is not None:
        label = mark_ambiguous(label, made.labels, case.annotated)
    patch = configuration.patch_size if configuration.ndim == 3 else (1, *configuration.patch_size)
    CaseStore(root).write_case(case.id, done.image, label[None], properties, locations, patch)
