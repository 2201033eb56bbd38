"""A folder of DICOM series with RTSTRUCT or SEG annotations as a collection: every annotated series is a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from autoseg.errors import DatasetError, joined
from autoseg.interop.collection import Collection, Entry, refuse_repeated
from autoseg.interop.dicom_names import Naming, names_by_size, names_of_file
from autoseg.interop.dicom_survey import DicomCase, label_map, survey, warn_of_marks
from autoseg.io.dicom import Series, read_series, scan_series
from autoseg.io.dicom_labels import Annotation, find_annotations
from autoseg.io.volume import Volume
from autoseg.log import get_logger

_LOG = get_logger(__name__)

# Names in a line of the log.
_SHOWN = 5


def dicom_collection(
    folder: Path, *, channels: Sequence[str] = (), labels: Path | None = None, workers: int | None = 0
) -> Collection:
    """Every series below ``folder`` that an RTSTRUCT or SEG below it refers to, with all that is marked in it.

    A case is called as the folder right below ``folder`` that holds it, else as the patient. Structures are known by
    their names in all cases together; without ``labels`` they are numbered by their size, the largest first. Where
    structures overlap, the highest integer wins. What some cases list and others do not was not looked for in these:
    ``annotated`` of dataset.json. What is odd is logged.

    Args:
        channels: a name for the one channel; default: the modality.
        labels: a JSON file whose ``labels`` say which names are wanted, and their integers.
        workers: processes; 0 does everything in this one.

    Raises:
        DatasetError: nothing is annotated, series and annotations do not fit, or names cannot become labels; all
            problems are listed.
        SettingError: pydicom is not installed.
    """
    cases = _cases(folder)
    given = None if labels is None else names_of_file(labels, cases)
    found = survey(cases, workers=workers)
    naming = given or names_by_size(cases, found, folder)
    empty = [case for case in cases if not naming.listed(case.names)]
    cases = [case for case in cases if case not in empty]
    if empty:
        _LOG.warning("%d cases list none of the labels and are left out: %s", len(empty), _shown(empty))
    warn_of_marks(cases, found, naming.labels, naming.values)
    modalities = sorted({case.series.modality for case in cases})
    return Collection(
        name=folder.name,
        channels=tuple(channels) or ("_".join(modalities) or "image",),
        labels=naming.labels,
        entries=tuple(Entry(id=case.id, read=partial(_read, case, naming.values)) for case in cases),
        facts=_facts(cases, naming),
    )


def _cases(folder: Path) -> list[DicomCase]:
    scanned = scan_series(folder)
    series = {uid: one for uid, one in scanned.items() if isinstance(one, Series)}
    by_series: dict[str, list[Annotation]] = {}
    problems = []
    for annotation in find_annotations(folder):
        uid = annotation.series or (next(iter(scanned)) if len(scanned) == 1 else "")
        found = scanned.get(uid)
        if isinstance(found, Series):
            by_series.setdefault(uid, []).append(annotation)
        elif found is None:
            problems.append(f"{annotation.path}: the series {uid or 'that it is about'} is not there")
        else:
            problems.append(found.error.message)
    if problems or not by_series:
        listed = list(dict.fromkeys(problems)) or ["no series has an RTSTRUCT or SEG"]
        raise DatasetError(
            f"{folder} cannot be imported:\n{joined(listed)}",
            hint="put each annotation and its series below the same folder",
        )
    if len(by_series) < len(series):
        _LOG.info("import: %d series without annotations are left out", len(series) - len(by_series))
    cases = [
        DicomCase(id=id_, series=series[uid], annotations=tuple(found))
        for id_, (uid, found) in zip(_ids(folder, series, by_series), by_series.items(), strict=True)
    ]
    refuse_repeated([Entry(id=case.id) for case in cases], folder)
    return cases


def _ids(folder: Path, series: Mapping[str, Series], by_series: Mapping[str, Sequence[Annotation]]) -> list[str]:
    inside = [series[uid].files[0].relative_to(folder).parts for uid in by_series]
    above = [parts[0] if len(parts) > 1 else "" for parts in inside]
    if all(above) and len(set(above)) == len(above):
        return above
    return [found[0].patient or parts[0] or folder.name for parts, found in zip(above, by_series.values(), strict=True)]


def _facts(cases: Sequence[DicomCase], naming: Naming) -> dict[str, Any]:
    """What was looked for, where that is not everything."""
    everything = naming.listed(naming.values)
    annotated = {case.id: naming.listed(case.names) for case in cases}
    partial_ = {id_: names for id_, names in annotated.items() if names != everything}
    if not partial_:
        return {}
    _LOG.info(
        '%d of %d cases do not list all structures: "annotated" in dataset.json says that nobody looked for those '
        "there (docs/labels.md); take it out where they are absent",
        len(partial_),
        len(cases),
    )
    return {"annotated": partial_}


def _shown(cases: Sequence[DicomCase]) -> str:
    return ", ".join([case.id for case in cases[:_SHOWN]] + ["..."] * (len(cases) > _SHOWN))


def _read(case: DicomCase, values: Mapping[str, int]) -> tuple[Volume, Volume]:
    image = read_series(case.series)
    return image, Volume(label_map(case, values)[None], image.geometry)


__all__ = ["dicom_collection"]
