"""A folder of DICOM series with RTSTRUCT or SEG annotations as a collection: every annotated series is a case."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from autoseg.errors import DatasetError, joined
from autoseg.interop.collection import Collection, Entry, refuse_repeated
from autoseg.io.dicom import Series, read_series, scan_series
from autoseg.io.dicom_labels import Annotation, find_annotations, joined_masks, read_masks
from autoseg.io.volume import Volume
from autoseg.log import get_logger

_LOG = get_logger(__name__)


def dicom_collection(folder: Path, *, channels: Sequence[str] = (), labels: Path | None = None) -> Collection:
    """Every series below ``folder`` that an RTSTRUCT or SEG below it refers to, with all that is marked in it.

    A case is called as the folder right below ``folder`` that holds it, else as the patient. Structures are known by
    their names in all cases together; without ``labels`` they are numbered in alphabetical order. Where marks of two
    names overlap, the later in the file wins.

    Args:
        channels: a name for the one channel; default: the modality.
        labels: a JSON file whose ``labels`` say which names are wanted, and their integers.

    Raises:
        DatasetError: nothing is annotated, or series and annotations do not fit; all problems are listed.
        SettingError: pydicom is not installed.
    """
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
    values = _values(by_series, labels)
    entries = tuple(
        Entry(id=id_, read=partial(_read, series[uid], tuple(found), values))
        for id_, (uid, found) in zip(_ids(folder, series, by_series), by_series.items(), strict=True)
    )
    refuse_repeated(entries, folder)
    modalities = sorted({series[uid].modality for uid in by_series})
    return Collection(
        name=folder.name,
        channels=tuple(channels) or ("_".join(modalities) or "image",),
        labels={"background": 0, **values},
        entries=entries,
    )


def _values(by_series: Mapping[str, Sequence[Annotation]], labels: Path | None) -> dict[str, int]:
    names = sorted({name for found in by_series.values() for one in found for name in one.names})
    if labels is None:
        return {name: number for number, name in enumerate(names, start=1)}
    try:
        wanted = json.loads(labels.read_text(encoding="utf-8-sig"))["labels"]
        chosen = {str(name): int(value) for name, value in wanted.items() if int(value) != 0}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{labels} has no labels: {error}", hint='write {"labels": {"Heart": 1}}') from error
    missing = [name for name in chosen if name not in names]
    if missing:
        raise DatasetError(
            f"{labels}: nothing is called {', '.join(missing)}", hint=f"the names are: {', '.join(names)}"
        )
    return chosen


def _ids(folder: Path, series: Mapping[str, Series], by_series: Mapping[str, Sequence[Annotation]]) -> list[str]:
    inside = [series[uid].files[0].relative_to(folder).parts for uid in by_series]
    above = [parts[0] if len(parts) > 1 else "" for parts in inside]
    if all(above) and len(set(above)) == len(above):
        return above
    return [found[0].patient or parts[0] or folder.name for parts, found in zip(above, by_series.values(), strict=True)]


def _read(series: Series, annotations: Sequence[Annotation], values: Mapping[str, int]) -> tuple[Volume, Volume]:
    image = read_series(series)
    label = np.zeros(image.shape, dtype=np.uint16)
    for annotation in annotations:
        joined_masks(read_masks(annotation, image.geometry, image.shape), values, label)
    return image, Volume(label[np.newaxis], image.geometry)


__all__ = ["dicom_collection"]
