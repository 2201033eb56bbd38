"""Foreign layouts as collections: nnU-Net folders, tasks of the Medical Segmentation Decathlon, and lists of paths."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.errors import DatasetError, joined
from autoseg.interop.collection import Collection, Entry, refuse_repeated
from autoseg.io.dataset_json import labels_of, read_description
from autoseg.io.discover import find_cases, read_dataset
from autoseg.io.images import read_label, read_shape, split_ending
from autoseg.io.verify import check_spec, fault_table

# These are made anew for the dataset that is written.
_MADE = {"channel_names", "modality", "labels", "numTraining", "numTest", "file_ending", "training", "test", "dataset"}
_IMAGE = re.compile(r"(?:image|channel)_?(\d+)$")
_TEST_WORDS = {"test", "ts", "testing", "held-out", "heldout"}
_CASE_WORDS = ("case", "id", "case_id", "name")


def nnunet_collection(folder: Path) -> Collection:
    """A raw dataset folder of nnU-Net v2, with imagesTs and labelsTs if they are there.

    Raises:
        DatasetError: it is not one, or files are missing; all faults are listed.
    """
    spec = read_dataset(folder)
    faults = check_spec(spec)
    if faults:
        raise DatasetError(
            f"{folder} cannot be imported as it is:\n{fault_table(faults)}", hint="mend these files and run it again"
        )
    entries = [
        Entry(id=case.id, images=tuple(map(Path, case.images)), label=None if case.label is None else Path(case.label))
        for case in spec.cases
    ]
    if any((folder / "imagesTs").glob("[!.]*")):
        for case in find_cases(folder / "imagesTs", num_channels=len(spec.channels), file_ending=spec.file_ending):
            images = tuple(map(Path, case.images))
            label = folder / "labelsTs" / f"{case.id}{spec.file_ending}"
            entries.append(Entry(id=case.id, images=images, label=label if label.is_file() else None, test=True))
    _refuse_per_split(entries, folder)
    data = _json(folder / "dataset.json")
    return Collection(
        name=folder.name,
        channels=spec.channels,
        labels=data["labels"],
        entries=tuple(entries),
        facts=_facts(data),
    )


def msd_collection(folder: Path) -> Collection:
    """A task folder of the Medical Segmentation Decathlon: ``modality``, ``labels`` by number, ``training`` pairs.

    Images have their channels on a fourth axis, or (nnU-Net v1) in files ``case_0000`` beside the listed name.

    Raises:
        DatasetError: dataset.json is wrong.
    """
    path = folder / "dataset.json"
    data = _json(path)
    description = read_description(folder)
    listed = data.get("training")
    if not isinstance(listed, list):
        raise DatasetError(f'{path} has no list "training"', hint="give a task folder of the Decathlon")
    count = len(description.channels)
    entries, problems = [], []
    for item in [*listed, *({"image": image, "test": True} for image in data.get("test") or [])]:
        found = _pair(item, folder, count)
        if isinstance(found, str):
            problems.append(found)
        else:
            entries.append(found)
    if problems:
        raise DatasetError(f"{path} has problems:\n{joined(problems)}", hint="correct these entries")
    _refuse_per_split(entries, folder)
    labels = {"background": 0, **{label.name: label.values[0] for label in description.labels.foreground}}
    return Collection(
        name=folder.name,
        channels=description.channels,
        labels=labels,
        entries=tuple(entries),
        facts=_facts(data),
    )


def manifest_collection(path: Path, *, channels: Sequence[str] = (), labels: Path | None = None) -> Collection:
    """A CSV or JSON file with a row per case: ``image`` (or ``image_0``, ``image_1``, ...), ``label``, and if wanted
    ``case`` and ``split`` (rows that say test go to imagesTs).

    JSON is a list of such objects, or an object with it under ``cases``, and ``channels`` and ``labels`` beside it.
    Paths are relative to the file. Without ``case``, the name of the image without its channel number is the id;
    without names of labels, the label files are read and their integers named.

    Args:
        channels: names of the channels, in place of those in the file.
        labels: a JSON file whose ``labels`` (as in dataset.json) are the names.

    Raises:
        DatasetError: a row is wrong; all of them are listed.
    """
    rows, given = _rows(path)
    problems: list[str] = []
    entries = []
    for number, row in enumerate(rows, start=1):
        try:
            entries.append(_entry(row, path.parent))
        except DatasetError as error:
            problems.append(f"row {number}: {error.message}")
    if problems:
        raise DatasetError(
            f"{path} has problems:\n{joined(problems)}",
            hint="columns are image (or image_0, image_1, ...), label, and if wanted case and split",
        )
    _refuse_per_split(entries, path)
    names = tuple(channels) or _channels(given, path) or _numbered(entries)
    named = _json(labels) if labels is not None else given
    source = path if labels is None else labels
    values = _labels(named, source) or _found_labels(entries)
    facts = {"regions_class_order": named["regions_class_order"]} if "regions_class_order" in named else {}
    labels_of(values, facts.get("regions_class_order"), source=str(source))
    return Collection(name=path.stem, channels=names, labels=values, entries=tuple(entries), facts=facts)


def _channels(given: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The names of channels that a manifest gives; a single text is one name."""
    names = given.get("channels")
    names = [names] if isinstance(names, str) else [] if names is None else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise DatasetError(
            f'"channels" in {path} must be a list of names, found {names!r}', hint='write {"channels": ["CT"]}'
        )
    return tuple(names)


def _labels(named: Mapping[str, Any], source: Path) -> Mapping[str, Any]:
    """The names and integers of labels that a file gives, empty where it has none."""
    values = named.get("labels")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise DatasetError(
            f'"labels" in {source} must map names to integers, found {values!r}',
            hint='write {"labels": {"background": 0, "liver": 1}}',
        )
    return values


def _pair(item: Any, folder: Path, count: int) -> Entry | str:
    """A listed image and its label, or what is wrong with it."""
    image = item.get("image") if isinstance(item, dict) else None
    if not isinstance(image, str) or not isinstance(item.get("label", ""), str):
        return f"{item!r} names no image"
    path = folder / image
    stem, ending = split_ending(path.name)
    images: tuple[Path, ...] = (path,)
    if not path.is_file():
        images = tuple(path.with_name(f"{stem}_{number:04d}{ending}") for number in range(count))
    label = folder / item["label"] if item.get("label") else None
    lacking = [str(file) for file in (*images, label) if file is not None and not file.is_file()]
    if lacking:
        return f"{path if len(lacking) == len(images) else lacking[0]} does not exist"
    return Entry(id=stem, images=images, label=label, test=bool(item.get("test")))


def _rows(path: Path) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    if path.suffix.lower() != ".json":
        try:
            with path.open(newline="", encoding="utf-8-sig") as stream:
                first = stream.readline()
                stream.seek(0)
                delimiter = max(",;\t", key=first.count)
                return [dict(row) for row in csv.DictReader(stream, delimiter=delimiter)], {}
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DatasetError(f"{path} cannot be read: {error}", hint="save it as CSV in UTF-8") from error
    data = _json(path, kind=(dict, list))
    rows = data if isinstance(data, list) else data.get("cases")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DatasetError(f"{path} has no list of cases", hint='write {"cases": [{"image": ..., "label": ...}]}')
    return rows, {} if isinstance(data, list) else data


def _entry(row: Mapping[str, Any], folder: Path) -> Entry:
    cells = {str(key).strip().casefold(): value for key, value in row.items() if value not in (None, "")}
    images = cells.get("image", cells.get("images"))
    if images is None:
        numbered = {int(match[1]): cells[key] for key in cells if (match := _IMAGE.match(key))}
        images = [numbered[number] for number in sorted(numbered)]
    paths = tuple(_path(image, folder) for image in (images if isinstance(images, list) else [images]))
    if not paths:
        raise DatasetError("there is no image")
    label = _path(cells["label"], folder) if "label" in cells else None
    lacking = [str(file) for file in (*paths, label) if file is not None and not file.is_file()]
    if lacking:
        raise DatasetError(f"{', '.join(lacking)} {'does' if len(lacking) == 1 else 'do'} not exist")
    test = str(cells.get("split", "")).strip().casefold() in _TEST_WORDS
    if label is None and not test:
        raise DatasetError("there is no label, and split does not say test")
    stem = split_ending(paths[0].name)[0]
    id_ = next((str(cells[word]) for word in _CASE_WORDS if word in cells), re.sub(r"_0000$", "", stem))
    return Entry(id=id_, images=paths, label=label, test=test)


def _path(text: Any, folder: Path) -> Path:
    return folder / Path(str(text).strip()).expanduser()


def _numbered(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Names for channels that nobody named: as many as the first case has."""
    first = entries[0]
    count = len(first.images) if len(first.images) > 1 else read_shape(first.images[0])[0]
    return tuple(f"channel {number}" for number in range(count))


def _found_labels(entries: Sequence[Entry]) -> dict[str, int]:
    found: set[int] = set()
    for entry in entries:
        if entry.label is not None:
            found |= set(np.unique(read_label(entry.label).data).tolist())
    return {"background": 0, **{f"label {value}": value for value in sorted(found - {0})}}


def _refuse_per_split(entries: Sequence[Entry], source: Path) -> None:
    training = [entry for entry in entries if not entry.test]
    refuse_repeated(training, source)
    held_out = [entry for entry in entries if entry.test]
    if held_out:
        refuse_repeated(held_out, source)


def _json(path: Path, kind: type | tuple[type, ...] = dict) -> Any:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}", hint="it must be JSON in UTF-8") from error
    if not isinstance(data, kind):
        raise DatasetError(f"{path} does not hold what is expected", hint="see docs/from_nnunet.md")
    return data


def _facts(data: Mapping[str, Any]) -> dict[str, Any]:
    """Licence, reference and whatever else a dataset says about itself."""
    return {key: value for key, value in data.items() if key not in _MADE}


__all__ = ["manifest_collection", "msd_collection", "nnunet_collection"]
