"""``autoseg_predict --uncertainty``: an image of entropies per case, and the cases in the order of their doubt."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from autoseg import records
from autoseg.errors import AutosegError
from autoseg.inference.joint import JointPredictor
from autoseg.inference.joint_uncertainty import DoubtfulJointPredictor
from autoseg.inference.predictor import Predictor
from autoseg.inference.uncertainty import Doubt, DoubtfulPredictor
from autoseg.io.images import read_shape, split_ending, write_image
from autoseg.io.volume import Geometry, Volume
from autoseg.log import get_logger
from autoseg.pipeline.calibrate import read_temperature
from autoseg.schema.calibration import CaseDoubt, ListedCase, UncertaintyReport
from autoseg.schema.dataset import CaseFiles
from autoseg.schema.folders import ModelFolder

_LOG = get_logger(__name__)

FOLDER = "uncertainty"
REPORT, TABLE = "uncertainty.json", "uncertainty.csv"
# Pictures hold integers of few bits only.
_WITHOUT_FLOATS = (".png", ".bmp")
_WITH_SIDECAR = (".tif", ".tiff")


AnyDoubtful = DoubtfulPredictor | DoubtfulJointPredictor


def doubtful(members: Sequence[Predictor], models: Sequence[ModelFolder]) -> AnyDoubtful:
    """The predictors of one or several models, each with its own temperature.

    Raises:
        RecordError: ``calibration.json`` cannot be read.
        ModelFolderError: models have other channels or labels.
    """
    temperatures = {
        model.root.name: read_temperature(model, member.folds) for member, model in zip(members, models, strict=True)
    }
    if len(members) == 1:
        return DoubtfulPredictor(predictor=members[0], temperature=next(iter(temperatures.values())))
    named = ", ".join(f"{name} at temperature {value:.3f}" for name, value in temperatures.items())
    _LOG.info("uncertainty: of %s together", named)
    return DoubtfulJointPredictor(predictor=JointPredictor.together(members), temperatures=temperatures)


def entropy_path(target: Path) -> Path:
    """Where the entropies of the segmentation ``target`` lie: the same name in a folder of their own."""
    name, ending = split_ending(target.name)
    return target.parent / FOLDER / f"{name}{'.tif' if ending.lower() in _WITHOUT_FLOATS else ending}"


def _case_path(target: Path) -> Path:
    # Not CASE.json: that is where the spacing of a TIFF stands.
    return target.parent / FOLDER / f"{split_ending(target.name)[0]}.scores.json"


def doubt_files(target: Path) -> tuple[Path, ...]:
    """All files that say something about the doubt of a case, that with the spacing of a TIFF too."""
    image = entropy_path(target)
    sidecar = (image.with_suffix(".json"),) if image.suffix.lower() in _WITH_SIDECAR else ()
    return image, *sidecar, _case_path(target), target.parent / REPORT, target.parent / TABLE


def write_doubt(target: Path, doubt: Doubt, geometry: Geometry) -> None:
    """Write the entropies (float32, nats) and the scores of one case.

    Raises:
        DatasetError: the format cannot hold them.
        ResourceError: the disk is full.
    """
    write_image(entropy_path(target), Volume(doubt.entropy[np.newaxis].astype(np.float32), geometry))
    records.save(_case_path(target), doubt.case)


def remove_doubt(target: Path) -> None:
    """Remove what an earlier run said about a case, and its list of all cases, which is made anew at the end."""
    for path in doubt_files(target):
        path.unlink(missing_ok=True)


def with_missing_doubt(
    cases: Sequence[CaseFiles], todo: Sequence[CaseFiles], targets: Mapping[str, Path], predictor: AnyDoubtful
) -> tuple[CaseFiles, ...]:
    """``todo`` and the cases whose entropies or scores are missing, damaged, or of another temperature, in order."""
    wanted = {case.id for case in todo}
    return tuple(case for case in cases if case.id in wanted or not _is_complete(targets[case.id], predictor))


def _is_complete(target: Path, predictor: AnyDoubtful) -> bool:
    try:
        read_shape(entropy_path(target))
        known = records.load(CaseDoubt, _case_path(target))
    except AutosegError:
        return False
    found, wanted = (one.temperatures or {"": one.temperature} for one in (known, predictor))
    return found.keys() == wanted.keys() and all(math.isclose(found[name], wanted[name]) for name in wanted)


def sum_up_doubts(outputs: Path, targets: Mapping[str, Path], predictor: AnyDoubtful) -> UncertaintyReport:
    """Write ``uncertainty.json`` and ``uncertainty.csv``, the least certain case first, and log the first three."""
    written = {name: _case_path(target) for name, target in targets.items()}
    cases = [
        ListedCase(id=name, doubt=records.load(CaseDoubt, path)) for name, path in written.items() if path.exists()
    ]
    # Nothing found at all is what needs looking at most.
    cases.sort(key=lambda case: -math.inf if math.isnan(case.doubt.score) else -case.doubt.score)
    report = UncertaintyReport(
        temperature=predictor.temperature, cases=tuple(cases), temperatures=predictor.temperatures
    )
    records.save(outputs / REPORT, report)
    records.write_text(outputs / TABLE, _table(report))
    first = ", ".join(f"{case.id} {_words(case.doubt.score)}" for case in cases[:3])
    if len(cases) > 1:
        _LOG.info("least certain: %s (all in %s)", first, outputs / TABLE)
    return report


def _words(score: float) -> str:
    return "(nothing found)" if math.isnan(score) else f"{score:.3f}"


def _table(report: UncertaintyReport) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    labels = [item.label for item in report.cases[0].doubt.labels] if report.cases else []
    writer.writerow(["id", "score", *(f"expected_dice {label}" for label in labels)])
    for case in report.cases:
        values = [case.doubt.score, *(item.expected_dice for item in case.doubt.labels)]
        writer.writerow([case.id, *("" if math.isnan(value) else f"{value:.5f}" for value in values)])
    return text.getvalue()


__all__ = [
    "AnyDoubtful",
    "doubt_files",
    "doubtful",
    "entropy_path",
    "remove_doubt",
    "sum_up_doubts",
    "with_missing_doubt",
    "write_doubt",
]
