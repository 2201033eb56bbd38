"""``autoseg_evaluate``: score a folder of segmentations against references."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np

from autoseg import records
from autoseg.errors import AutosegError, DatasetError, PartialError, SettingError, joined
from autoseg.evaluation.metrics import case_dice, case_scores, summarize
from autoseg.io.dataset_json import read_description
from autoseg.io.images import LABEL_ENDINGS, read_label, read_shape, split_ending
from autoseg.io.volume import Volume, corner_distance_mm
from autoseg.log import get_logger, progress, table
from autoseg.parallel import Outcome, map_cases
from autoseg.schema.dataset import DatasetSpec, Label, Labels
from autoseg.schema.report import CaseScores, ClassScores, EvaluationReport
from autoseg.schema.settings import EvaluateSettings

_LOG = get_logger(__name__)

# As in the check of a dataset: the largest distance between the corners of two grids that count as the same.
GRID_TOLERANCE_MM = 0.1

# Starting worker processes takes about this long, most of it to import.
_SECONDS_TO_START_WORKERS = 3.0

# A raw dataset.json has other words for the last two; some have a version of their own.
_KEYS_OF_OURS = {"version", "channels", "cases"}

Annotated = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """``annotated``: names of the labels that the reference was searched for, None for all of them."""

    id: str
    reference: Path
    prediction: Path
    annotated: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class _Scored:
    scores: CaseScores
    unknown: tuple[int, ...]


def evaluate(settings: EvaluateSettings) -> EvaluationReport:
    """Score every prediction that has a reference, write ``summary.json`` and ``scores.csv``, log a table.

    References without a prediction are in ``report.missing``, and do not count in the means.

    Raises:
        SettingError: no folder, or no file of one has a partner in the other.
        DatasetError: two files of one case in a folder, a bad ``dataset.json``, or no pair could be scored.
        PartialError: some pairs could not be scored, each with the reason, or references have no prediction; the
            results of the others are written.
    """
    references, predictions = (
        _folder(settings.references, "--references"),
        _folder(settings.predictions, "--predictions"),
    )
    pairs, missing, extra = _matched(references, predictions)
    labels, annotated = _labels(settings, references, predictions, pairs)
    pairs = [replace(pair, annotated=annotated.get(pair.id)) for pair in pairs]
    if extra:
        _LOG.warning("%d segmentations have no reference and are left out: %s", len(extra), _some(extra))
    report = evaluate_pairs(pairs, labels, tolerance_mm=settings.tolerance, workers=settings.workers, missing=missing)
    if not report.cases:
        raise DatasetError(f"no pair could be scored:\n{joined(list(report.faults))}", hint="correct these files")
    output = Path(settings.output).expanduser() if settings.output else predictions
    write_scores(output, report)
    _LOG.info("%s\nwritten: %s", score_table(report), output / "summary.json")
    if report.faults:
        raise PartialError(
            f"{len(report.faults)} of {len(pairs)} pairs could not be scored:\n{joined(list(report.faults))}",
            hint="correct these files and run it again; the scores of the others are written",
        )
    if report.missing:
        raise PartialError(
            f"{len(report.missing)} of {len(pairs) + len(report.missing)} references have no segmentation: "
            f"{_some(report.missing)}",
            hint="predict these, or remove their references; the scores of the others are written",
        )
    return report


def evaluate_pairs(
    pairs: Sequence[Pair],
    labels: Labels,
    *,
    tolerance_mm: float = 2.0,
    workers: int | None = None,
    missing: Sequence[str] = (),
    grid_tolerance_mm: float = GRID_TOLERANCE_MM,
) -> EvaluationReport:
    """Score pairs of files; a pair that cannot be scored is in ``report.faults`` with the reason.

    Args:
        pairs: what to compare; both files have one channel of integers on the same grid.
        labels: names and integers of the files.
        tolerance_mm: of the surface Dice.
        workers: see ``map_cases``; None also means this process alone where that is sooner done.
        missing: ids to note as references without a prediction.
        grid_tolerance_mm: how far the corners of two files may lie apart; infinite leaves only the shapes to agree.
    """
    score = partial(_score, labels=labels, tolerance_mm=tolerance_mm, grid_tolerance_mm=grid_tolerance_mm)
    scored: list[_Scored] = []
    faults: list[str] = []
    for outcome in progress(_outcomes(score, pairs, workers), total=len(pairs), label="scoring"):
        if outcome.error is not None:
            faults.append(_fault(outcome.item, outcome.error))
        else:
            scored.append(outcome.unwrap())
    unknown = sorted({value for item in scored for value in item.unknown})
    if unknown:
        _LOG.warning("integers that no label has count as background: %s", ", ".join(map(str, unknown)))
    if missing:
        _LOG.warning("%d references have no segmentation: %s", len(missing), _some(missing))
    return summarize(
        [item.scores for item in scored], labels, tolerance_mm=tolerance_mm, missing=missing, faults=faults
    )


def _outcomes(score: partial[_Scored], pairs: Sequence[Pair], workers: int | None) -> Iterator[Outcome[Pair, _Scored]]:
    started = time.monotonic()
    yield from map_cases(score, pairs[:1], workers=0)
    left = (time.monotonic() - started) * (len(pairs) - 1)
    if workers is None and left < _SECONDS_TO_START_WORKERS:
        workers = 0
    needed = 0.0 if workers == 0 else _bytes_needed(pairs[1:])
    yield from map_cases(score, pairs[1:], workers=workers, bytes_per_item=needed)


def _bytes_needed(pairs: Sequence[Pair]) -> float:
    """Memory for the largest case: two label maps, masks and components, and a distance transform of bounded size."""
    voxels = 0
    for pair in pairs:
        try:
            voxels = max(voxels, math.prod(read_shape(pair.reference)))
        except DatasetError:
            # It will be reported when it is scored.
            continue
    return 20.0 * voxels + 80.0 * min(voxels, 30_000_000)


def _score(pair: Pair, *, labels: Labels, tolerance_mm: float, grid_tolerance_mm: float) -> _Scored:
    reference, prediction = read_label(pair.reference), read_label(pair.prediction)
    _check_grids(reference, prediction, pair, tolerance_mm=grid_tolerance_mm)
    truth, guess = reference.data[0], prediction.data[0]
    known = {*labels.leaves, labels.ignore}
    scores = case_scores(
        truth,
        guess,
        labels,
        reference.geometry.spacing,
        tolerance_mm=tolerance_mm,
        id=pair.id,
        reference_file=str(pair.reference),
        prediction_file=str(pair.prediction),
        annotated=pair.annotated,
    )
    return _Scored(scores=scores, unknown=tuple(sorted((_values(truth) | _values(guess)) - known)))


def _check_grids(reference: Volume, prediction: Volume, pair: Pair, *, tolerance_mm: float) -> None:
    hint = "resample the segmentation to the grid of the reference"
    if reference.shape != prediction.shape:
        raise DatasetError(
            f"{pair.prediction} has {prediction.shape} voxels (z, y, x), {pair.reference} {reference.shape}", hint=hint
        )
    distance = corner_distance_mm(reference.geometry, prediction.geometry, reference.shape)
    if distance > tolerance_mm:
        raise DatasetError(
            f"{pair.prediction} lies elsewhere than {pair.reference}: their corners are up to {distance:.3g} mm apart",
            hint=f"{hint}, or correct the header if only that is wrong",
        )


def _values(array: np.ndarray) -> set[int]:
    # Only where a value differs from the one before: sorting all voxels takes twenty times longer.
    flat = array.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return {int(flat[0]), *np.unique(flat[1:][changes]).tolist()}


def _fault(pair: Pair, error: Exception) -> str:
    text = f"{error.message} ({error.hint})" if isinstance(error, AutosegError) and error.hint else str(error)
    return f"{pair.id}: {text}"


def _folder(text: str, flag: str) -> Path:
    folder = Path(text).expanduser().absolute()
    if not text or not folder.is_dir():
        raise SettingError(f"{flag}: {text!r} is not a folder", hint="give a folder with label files")
    return folder


def _matched(references: Path, predictions: Path) -> tuple[list[Pair], list[str], list[str]]:
    """Pairs of files with the same name apart from the ending, then what is on one side only."""
    left, right = label_files(references), label_files(predictions)
    pairs = [Pair(id=name, reference=left[name], prediction=right[name]) for name in left if name in right]
    if not pairs:
        raise SettingError(
            f"no file of {predictions} ({_some(sorted(right))}) has the name of one of {references} "
            f"({_some(sorted(left))})",
            hint="a segmentation and its reference have the same name, apart from the ending",
        )
    return pairs, [name for name in left if name not in right], [name for name in right if name not in left]


def label_files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    problems = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.lower().endswith(LABEL_ENDINGS) or not path.is_file():
            continue
        name = split_ending(path.name)[0]
        if name in found:
            problems.append(f"{found[name].name} and {path.name} are of one case")
        found[name] = path
    if problems:
        raise DatasetError(f"{folder} is ambiguous:\n{joined(problems)}", hint="keep one file per case")
    return found


def _labels(
    settings: EvaluateSettings, references: Path, predictions: Path, pairs: Sequence[Pair]
) -> tuple[Labels, Annotated]:
    """The labels to score, and the cases in which only some of them were annotated."""
    if settings.labels:
        return read_labels(Path(settings.labels).expanduser())
    # A model folder holds dataset.json two floors above its fold_k/validation.
    for folder in (predictions, references, references.parent, predictions.parent, predictions.parent.parent):
        path = folder / "dataset.json"
        if path.is_file():
            _LOG.info("labels: %s", path)
            labels, annotated = read_labels(path)
            return labels, {**annotated, **_annotated_beside(references, known=path)}
    _LOG.info("labels: no dataset.json found, scoring plain integers (--labels gives them names)")
    return _plain_labels(pairs, settings.workers), {}


def _annotated_beside(references: Path, *, known: Path) -> Annotated:
    """What the dataset of the references says; that of a model knows only the cases that it was trained on."""
    for folder in (references, references.parent):
        path = folder / "dataset.json"
        if path.is_file() and path != known:
            return read_labels(path)[1]
    return {}


def read_labels(path: Path) -> tuple[Labels, Annotated]:
    """Labels of a dataset.json, either a raw dataset's or one that autoseg wrote into a model folder."""
    if path.name != "dataset.json":
        raise SettingError(f"--labels: {path} is not called dataset.json", hint="give the dataset.json of a dataset")
    try:
        written_by_us = json.loads(path.read_text(encoding="utf-8-sig")).keys() >= _KEYS_OF_OURS
    except (OSError, ValueError, AttributeError):
        # Whatever is wrong with the file, the reader of raw datasets says it.
        written_by_us = False
    if not written_by_us:
        description = read_description(path.parent)
        return description.labels, description.annotated
    spec = records.load(DatasetSpec, path)
    return spec.labels, {case.id: case.annotated for case in spec.cases if case.annotated is not None}


def _plain_labels(pairs: Sequence[Pair], workers: int | None) -> Labels:
    values: set[int] = set()
    for outcome in map_cases(_pair_values, pairs, workers=workers):
        # A file that cannot be read is reported when it is scored.
        values |= outcome.value or set()
    foreground = tuple(Label(name=str(value), values=(value,)) for value in sorted(values) if value != 0)
    if not foreground:
        raise SettingError("no file holds a label: all voxels are 0", hint="check --references and --predictions")
    return Labels(foreground=foreground)


def _pair_values(pair: Pair) -> set[int]:
    return _values(read_label(pair.reference).data[0]) | _values(read_label(pair.prediction).data[0])


def write_scores(folder: Path, report: EvaluationReport) -> None:
    """Write ``summary.json`` (the report) and ``scores.csv`` (a line per case and label; empty where undefined)."""
    names = [field.name for field in fields(ClassScores)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", *names, "reference", "prediction"])
    for case in report.cases:
        for scores in case.classes:
            row = ["" if isinstance(value, float) and math.isnan(value) else value for value in astuple(scores)]
            writer.writerow([case.id, *row, case.reference, case.prediction])
    records.write_text(folder / "scores.csv", text.getvalue())
    records.save(folder / "summary.json", report)


def score_table(report: EvaluationReport) -> str:
    """The means per label, how many cases are empty on which side, and the cases that score lowest."""
    header = ["label", "cases", "Dice", "IoU", "precision", "recall", "HD95 mm", "ASSD mm"]
    header += [
        f"surface Dice {report.surface_tolerance_mm:g} mm",
        "lesion F1",
        "only predicted",
        "only reference",
        "neither",
    ]
    rows = []
    for mean in report.mean:
        shares = [_number(value) for value in (mean.dice, mean.iou, mean.precision, mean.recall)]
        distances = [_number(value, digits=2) for value in (mean.hd95, mean.assd)]
        rest = [_number(mean.surface_dice), _number(mean.lesion_f1)]
        empty = [mean.empty_reference, mean.empty_prediction, mean.empty_both]
        rows.append([mean.label, mean.cases, *shares, *distances, *rest, *empty])
    if not any(any(row[-3:]) for row in rows):
        header, rows = header[:-3], [row[:-3] for row in rows]
    lines = [table(rows, header=header)]
    lines.append(f"mean foreground Dice {_number(report.foreground_dice)} over {len(report.cases)} cases")
    ranked = sorted((score, case.id) for case in report.cases if not math.isnan(score := case_dice(case)))
    if len(ranked) > 1:
        lines.append("lowest: " + ", ".join(f"{name} {_number(score)}" for score, name in ranked[:3]))
    if report.missing:
        lines.append(f"not counted: {len(report.missing)} references without a segmentation")
    return "\n".join(lines)


def _number(value: float, *, digits: int = 4) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _some(names: Iterable[str], *, limit: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + more) or "none"
