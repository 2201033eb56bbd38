"""dataset.json as nnU-Net v2 defines it, and the older spellings that are still about."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from autoseg.errors import DatasetError, joined
from autoseg.io.images import READABLE_ENDINGS
from autoseg.schema.dataset import CaseFiles, Label, Labels

_BACKGROUND = "background"
_IGNORE = "ignore"
_ORDER = "regions_class_order"
_KEYS = (
    "channel_names",
    "modality",
    "labels",
    "file_ending",
    "numTraining",
    _ORDER,
    "dataset",
    "annotated",
)
# Of older files, and near to a key of ours.
_OTHER_KEYS = frozenset({"numTest", "dataset_name", "name"})


@dataclass(frozen=True)
class Description:
    """What dataset.json says. ``cases`` is None when the cases are found in imagesTr and labelsTr.

    ``annotated`` has the cases in which not all labels were looked for, with the names of those that were.
    """

    channels: tuple[str, ...]
    labels: Labels
    file_ending: str | None
    num_training: int | None
    cases: tuple[CaseFiles, ...] | None
    annotated: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class _Pairs(dict[str, Any]):
    """A JSON object that remembers the names that it holds twice, and every pair."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs
        self.twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]


def read_description(folder: Path) -> Description:
    """Read ``folder/dataset.json``.

    Raises:
        DatasetError: missing, not JSON, or with problems; all of them are listed.
    """
    path = folder / "dataset.json"
    data = _load(path)
    problems: list[str] = []
    _check_keys(data, problems)
    channels = _channels(data, problems)
    labels = _labels(data, problems)
    ending = _file_ending(data, problems)
    cases = _listed_cases(data, folder, problems)
    annotated = {} if labels is None else _annotated(data, labels.names, problems)
    if problems or labels is None:
        raise DatasetError(f"{path} has problems:\n{joined(problems)}", hint="correct these entries")
    count = data.get("numTraining")
    return Description(channels, labels, ending, count if isinstance(count, int) else None, cases, annotated)


def labels_of(labels: Any, order: Any = None, *, source: str) -> Labels:
    """What the entries "labels" and "regions_class_order" of a dataset.json say.

    Raises:
        DatasetError: they are wrong; all problems are listed, under the name of ``source``.
    """
    problems: list[str] = []
    # Whoever reads without looking for names that occur twice gives a plain dictionary, or what is none at all.
    entries = _Pairs(list(labels.items())) if isinstance(labels, Mapping) else labels
    found = _labels(_Pairs([("labels", entries), (_ORDER, order)]), problems)
    if found is None:
        raise DatasetError(f"the labels of {source} have problems:\n{joined(problems)}", hint="correct these entries")
    return found


def _load(path: Path) -> _Pairs:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path} does not exist", hint="a dataset folder holds dataset.json, imagesTr and labelsTr"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}", hint="check the file") from error
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path} is not valid JSON: {error}", hint="correct the file at that place") from error
    if not isinstance(data, _Pairs):
        raise DatasetError(f"{path} must hold a JSON object", hint='start it with {"channel_names": ...')
    return data


def _check_keys(data: _Pairs, problems: list[str]) -> None:
    """Keys that occur twice, and keys that look like one of ours which is not there."""
    problems.extend(f'"{name}" occurs twice' for name in data.twice)
    lower = {key.lower(): key for key in _KEYS if key not in data}
    for name in data:
        close = [] if name in _OTHER_KEYS or name in _KEYS else get_close_matches(name.lower(), lower, n=1, cutoff=0.8)
        problems.extend(f'"{name}" is not understood; did you mean "{lower[key]}"?' for key in close)


def _channels(data: _Pairs, problems: list[str]) -> tuple[str, ...]:
    """Names in the order of the channel *numbers*: as text, "10" would come before "2"."""
    key = "channel_names" if "channel_names" in data else "modality"
    names = data.get(key)
    if isinstance(names, list):
        names = _Pairs([(str(index), name) for index, name in enumerate(names)])
    if not isinstance(names, _Pairs) or not names:
        problems.append('"channel_names" is missing; write it like {"0": "CT"}')
        return ()
    numbers = {_integer(number): str(name) for number, name in names.items()}
    if names.twice or sorted(number for number in numbers if number is not None) != list(range(len(names))):
        problems.append(f'"{key}" must number the channels 0 to {len(names) - 1}, found {", ".join(names)}')
        return ()
    return tuple(numbers[index] for index in range(len(names)))


def _labels(data: _Pairs, problems: list[str]) -> Labels | None:
    entries = data.get("labels")
    if not isinstance(entries, _Pairs) or not entries:
        problems.append('"labels" is missing; write it like {"background": 0, "tumour": 1}')
        return None
    before = len(problems)
    problems.extend(f'"labels" has two entries called {name!r}' for name in entries.twice)
    named = _named_values(entries, problems)
    background = [values for name, values in named.items() if name.casefold() == _BACKGROUND]
    if any(values != (0,) for values in background):
        problems.append(f'"background" must be 0, found {background[0]}')
    ignore = next((values for name, values in named.items() if name.casefold() == _IGNORE), None)
    foreground = {
        name: values
        for name, values in named.items()
        if name.casefold() not in {_BACKGROUND, _IGNORE} and values != (0,)
    }
    _check_values(foreground, ignore, problems)
    order = _class_order(data, foreground, problems)
    if len(problems) > before:
        return None
    regions = any(len(values) > 1 for values in foreground.values())
    # The heads of plain labels follow the integers; those of regions follow the file, as regions_class_order does.
    pairs = list(foreground.items()) if regions else sorted(foreground.items(), key=lambda pair: pair[1])
    return Labels(
        foreground=tuple(Label(name=name, values=values) for name, values in pairs),
        ignore=ignore[0] if ignore else None,
        regions_class_order=order,
    )


def _named_values(entries: _Pairs, problems: list[str]) -> dict[str, tuple[int, ...]]:
    """Name -> integers, also from the legacy form integer -> name."""
    pairs: list[tuple[str, Any]] = list(entries.items())
    if all(_integer(key) is not None and isinstance(value, str) for key, value in pairs):
        pairs = [(value, key) for key, value in pairs]
        names = Counter(name for name, _ in pairs)
        problems.extend(f'"labels" has two integers called {name!r}' for name, count in names.items() if count > 1)
    named: dict[str, tuple[int, ...]] = {}
    for name, value in pairs:
        values = [_integer(item) for item in (value if isinstance(value, list) else [value])]
        if not values or None in values:
            problems.append(f'label "{name}" must be an integer or a list of integers, found {value!r}')
        else:
            named[name] = tuple(sorted({item for item in values if item is not None}))
    return named


def _check_values(
    foreground: Mapping[str, tuple[int, ...]], ignore: tuple[int, ...] | None, problems: list[str]
) -> None:
    if not foreground:
        problems.append('"labels" has no foreground')
    for name, values in foreground.items():
        if 0 in values:
            problems.append(f'label "{name}" contains 0, which is the background')
    sets = Counter(foreground.values())
    for values in (values for values, count in sets.items() if count > 1):
        names = " and ".join(f'"{name}"' for name, own in foreground.items() if own == values)
        problems.append(f"labels {names} are the same: {', '.join(map(str, values))}")
    taken = {0, *(value for values in foreground.values() for value in values)}
    if ignore is not None and (len(ignore) != 1 or ignore[0] in taken):
        problems.append('"ignore" must be one integer that no other label has')


def _class_order(
    data: _Pairs, foreground: Mapping[str, tuple[int, ...]], problems: list[str]
) -> tuple[int, ...] | None:
    if all(len(values) == 1 for values in foreground.values()):
        return None
    given = data.get(_ORDER)
    order = [_integer(item) for item in given] if isinstance(given, list) else []
    if len(order) != len(foreground) or None in order:
        problems.append(
            f'"regions_class_order" must list {len(foreground)} integers, one per region in the order of "labels", '
            f"because some labels are lists; found {given!r}"
        )
        return None
    return tuple(item for item in order if item is not None)


def _file_ending(data: _Pairs, problems: list[str]) -> str | None:
    ending = data.get("file_ending")
    if ending is None:
        return None
    if not isinstance(ending, str) or not ending:
        problems.append(f'"file_ending" must be text such as ".nii.gz", found {ending!r}')
        return None
    ending = ending if ending.startswith(".") else f".{ending}"
    if ending.lower() not in READABLE_ENDINGS:
        problems.append(f'"file_ending" {ending!r} cannot be read; use one of {" ".join(READABLE_ENDINGS)}')
    return ending


def _listed_cases(data: _Pairs, folder: Path, problems: list[str]) -> tuple[CaseFiles, ...] | None:
    listed = data.get("dataset")
    if not listed:
        return None
    if not isinstance(listed, _Pairs):
        problems.append('"dataset" must map each case to {"images": [...], "label": ...}')
        return None
    cases = []
    for name, entry in listed.pairs:
        images = entry.get("images") if isinstance(entry, _Pairs) else None
        images = [images] if isinstance(images, str) else images
        label = entry.get("label") if isinstance(entry, _Pairs) else None
        if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
            problems.append(f'case "{name}" in "dataset" has no list of "images"')
        elif not (label is None or isinstance(label, str)):
            problems.append(f'"label" of case "{name}" in "dataset" must be a path, found {label!r}')
        elif "/" in name or "\\" in name or name.startswith("."):
            problems.append(f'case "{name}" in "dataset" cannot be a file name; rename it')
        else:
            paths = tuple(_resolved(image, folder) for image in images)
            cases.append(CaseFiles(id=name, images=paths, label=_resolved(label, folder) if label else None))
    return tuple(sorted(cases, key=lambda case: case.id))


def _annotated(data: _Pairs, names: tuple[str, ...], problems: list[str]) -> dict[str, tuple[str, ...]]:
    """Case -> annotated labels in the order of the heads, for cases that lack one."""
    listed = data.get("annotated", _Pairs([]))
    if not isinstance(listed, _Pairs):
        problems.append('"annotated" must map a case to the labels that were annotated: {"case_7": ["liver"]}')
        return {}
    problems.extend(f'"annotated" has case "{case}" twice' for case in listed.twice)
    result = {}
    for case, given in listed.items():
        if not isinstance(given, list) or not given or not all(isinstance(name, str) for name in given):
            problems.append(f'"annotated" of case "{case}" must be a list of label names, found {given!r}')
            continue
        unknown = [name for name in given if name not in names]
        if unknown:
            problems.append(f'"annotated" of case "{case}" names no label of this dataset: {", ".join(unknown)}')
        elif set(given) != set(names):
            result[case] = tuple(name for name in names if name in given)
    return result


def _resolved(text: str, folder: Path) -> str:
    """Environment variables and ~ are expanded; a relative path starts at the dataset folder."""
    return os.path.normpath(folder / Path(os.path.expandvars(text)).expanduser())


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value.strip()):
        return int(value)
    return None
