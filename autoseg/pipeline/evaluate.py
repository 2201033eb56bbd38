"""``autoseg_evaluate``: score a folder of segmentations against references."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from autoseg import records
from autoseg.errors import AutosegError, DatasetError, PartialError, SettingError, joined
from autoseg.evaluation.boxes import value_boxes
from autoseg.evaluation.metrics import case_dice, case_scores, summarize
from autoseg.io.dataset_json import read_description
from autoseg.io.images import LABEL_ENDINGS, read_label, read_shape, split_ending
from autoseg.io.volume import Volume, corner_distance_mm
from autoseg.log import get_logger, progress, table
from autoseg.parallel import SECONDS_TO_START_WORKERS, Outcome, map_cases, prefetch
from autoseg.schema.dataset import DatasetSpec, Label, Labels
from autoseg.schema.report import CaseScores, ClassScores, EvaluationReport
from autoseg.schema.settings import EvaluateSettings

_LOG = get_logger(__name__)

# As in the check of a dataset: the largest distance between the corners of two grids that count as the same.
GRID_TOLERANCE_MM = 0.1

# Pairs that tell how long the others will take, and the time of one from which on a single pair tells enough: to load
# packages, as the first one does, takes less.
_TIMED = 3
_SLOW_SECONDS = 1.0
# Up to this size the next pair is read while one is scored, with up to two pairs more in memory.
_VOXELS_READ_AHEAD = 1 << 24

# A raw dataset.json has other words for the last two; some have a version of their own.
_KEYS_OF_OURS = {"version", "channels", "cases"}

Annotated = Mapping[str, tuple[str, ...]]
V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """``annotated``: names of the labels that the reference was searched for, None for all of them."""

    id: str
    reference: Path
    prediction: Path
    annotated: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """``id``: that of the pair, by which errors name it."""

    id: str
    pair: Pair
    reference: Volume
    prediction: Volume


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


def _outcomes(use: Callable[[_Loaded], V], pairs: Sequence[Pair], workers: int | None) -> Iterator[Outcome[Pair, V]]:
    """Read all pairs and use them, in worker processes where that is sooner done (``workers`` None) or asked for."""
    whole = partial(_load_and_use, use=use)
    timed, seconds = 0, math.inf
    while workers is None and timed < min(_TIMED, len(pairs)) and not _SLOW_SECONDS <= seconds < math.inf:
        started = time.monotonic()
        (outcome,) = map_cases(whole, pairs[timed : timed + 1], workers=0)
        timed += 1
        # A file that cannot be read says nothing about the others.
        seconds = seconds if outcome.error else min(seconds, time.monotonic() - started)
        yield outcome
    rest = pairs[timed:]
    voxels = _most_voxels(rest)
    ahead = voxels <= _VOXELS_READ_AHEAD
    # To read ahead halves the time that is left.
    if workers is None and seconds * len(rest) / (1 + ahead) < SECONDS_TO_START_WORKERS:
        workers = 0
    if workers == 0 and ahead:
        yield from _reading_ahead(use, rest)
    else:
        yield from map_cases(whole, rest, workers=workers, bytes_per_item=_bytes_needed(voxels))


def _reading_ahead(use: Callable[[_Loaded], V], pairs: Sequence[Pair]) -> Iterator[Outcome[Pair, V]]:
    """Reading takes half of the time, and decompresses on a core of its own."""
    for loaded in prefetch(map_cases(_load, pairs, workers=0), depth=1):
        if loaded.error is not None:
            yield Outcome(item=loaded.item, error=loaded.error)
            continue
        (used,) = map_cases(use, [loaded.unwrap()], workers=0)
        yield Outcome(item=loaded.item, value=used.value, error=used.error)


def _load(pair: Pair) -> _Loaded:
    return _Loaded(id=pair.id, pair=pair, reference=read_label(pair.reference), prediction=read_label(pair.prediction))


def _load_and_use(pair: Pair, *, use: Callable[[_Loaded], V]) -> V:
    return use(_load(pair))


def _most_voxels(pairs: Sequence[Pair]) -> int:
    voxels = 0
    for pair in pairs:
        try:
            voxels = max(voxels, math.prod(read_shape(pair.reference)))
        except DatasetError:
            # It will be reported when it is scored.
            continue
    return voxels


def _bytes_needed(voxels: int) -> float:
    """Memory for a case of so many voxels: two label maps, masks and components, and a distance transform of bounded
    size."""
    return 20.0 * voxels + 80.0 * min(voxels, 30_000_000)


def _score(loaded: _Loaded, *, labels: Labels, tolerance_mm: float, grid_tolerance_mm: float) -> _Scored:
    pair, reference, prediction = loaded.pair, loaded.reference, loaded.prediction
    _check_grids(reference, prediction, pair, tolerance_mm=grid_tolerance_mm)
    truth, guess = reference.data[0], prediction.data[0]
    boxes = value_boxes(truth), value_boxes(guess)
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
        boxes=boxes,
    )
    unknown = {*boxes[0], *boxes[1]} - {*labels.leaves, labels.ignore}
    return _Scored(scores=scores, unknown=tuple(sorted(unknown)))


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
    for outcome in _outcomes(_values, pairs, workers):
        # A file that cannot be read is reported when it is scored.
        values |= outcome.value or set()
    foreground = tuple(Label(name=str(value), values=(value,)) for value in sorted(values) if value != 0)
    if not foreground:
        raise SettingError("no file holds a label: all voxels are 0", hint="check --references and --predictions")
    return Labels(foreground=foreground)


def _values(loaded: _Loaded) -> set[int]:
    return {*value_boxes(loaded.reference.data[0]), *value_boxes(loaded.prediction.data[0])}


def write_scores(folder: Path, report: EvaluationReport) -> None:
    """Write ``summary.json`` (the report) and ``scores.csv`` (a line per case and label; empty where undefined)."""
    names = [field.name for field in fields(ClassScores)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", *names, "reference", "prediction"])
    for case in report.cases:
        for scores in case.classes:
            row = [getattr(scores, name) for name in names]
            shown = ["" if isinstance(value, float) and math.isnan(value) else value for value in row]
            writer.writerow([case.id, *shown, case.reference, case.prediction])
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
