"""Which structures of DICOM become labels, under which name and integer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from autoseg.errors import DatasetError, joined
from autoseg.interop.dicom_survey import DicomCase, Marks
from autoseg.io.dataset_json import labels_of
from autoseg.log import get_logger

_LOG = get_logger(__name__)

# Names of dataset.json that mean something of their own.
_RESERVED = {"background", "ignore"}
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, kw_only=True)
class Naming:
    """``labels`` is that of dataset.json; ``values`` has the integer of every structure that is wanted, by its name."""

    labels: Mapping[str, int]
    values: Mapping[str, int]

    def listed(self, names: Iterable[str]) -> list[str]:
        """The labels, without the ignore label, that stand for any of these structures."""
        found = {self.values[name] for name in names if name in self.values}
        return [
            label for label, value in self.labels.items() if value in found - {0} and label.casefold() not in _RESERVED
        ]


def names_by_size(cases: Sequence[DicomCase], found: Mapping[str, Marks], folder: Path) -> Naming:
    """Every structure that marks a voxel somewhere: 1 is the largest by the median of its volumes, ties by name.

    Higher integers win, so what lies inside of something larger stays.

    Raises:
        DatasetError: none marks anything, or names cannot be told apart or mean something else; all are listed.
    """
    sizes: dict[str, list[float]] = {name: [] for case in cases for name in sorted(case.names)}
    # What marks something in a case that cannot be read is not known.
    unknown = {name for case in cases if case.id not in found for name in case.names}
    for marks in found.values():
        for name in sizes:
            count = marks.count([name])
            if count:
                sizes[name].append(count * marks.voxel_volume)
    chosen = sorted(
        (name for name in sizes if sizes[name] or name in unknown),
        key=lambda name: (-median(sizes[name] or [0.0]), name),
    )
    left_out = sorted(set(sizes) - set(chosen))
    if not chosen:
        raise DatasetError(
            f"{folder}: no structure marks a voxel of its image: {', '.join(left_out) or 'none is listed'}",
            hint="check that these files were drawn on these series, with closed contours",
        )
    problems = [
        f"a structure is called {name!r}, which has a meaning of its own in dataset.json ({_where(name, cases)})"
        for name in chosen
        if name.casefold() in _RESERVED
    ]
    problems += [f"a structure has no name ({_where(name, cases)})" for name in chosen if not name]
    problems += [f"{_quoted(alike)} differ only in capital letters or spaces" for alike in _alike(chosen)]
    if problems:
        raise DatasetError(
            f"{folder} has structures that cannot become labels:\n{joined(problems)}",
            hint="choose names with --labels FILE; names of one integer are one label, called as the first: "
            + json.dumps({"labels": _example(chosen)}, ensure_ascii=False),
        )
    if left_out:
        _LOG.warning("no labels, as they mark no voxel in any case: %s", ", ".join(map(repr, left_out)))
    values = {name: number for number, name in enumerate(chosen, start=1)}
    return Naming(labels={"background": 0, **values}, values=values)


def names_of_file(path: Path, cases: Sequence[DicomCase]) -> Naming:
    """What a JSON file under ``labels`` says: name -> integer, where several names may have one integer.

    The first name of an integer is that of the label, also if no structure has it; 0 leaves structures out.

    Raises:
        DatasetError: it cannot be read, names what is not there, or makes no labels; all problems are listed.
    """
    try:
        wanted = json.loads(path.read_text(encoding="utf-8-sig"))["labels"]
        given = {str(name).strip(): value for name, value in wanted.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} has no labels: {error}", hint='write {"labels": {"Heart": 1}}') from error
    problems: list[str] = []
    integers = {name: _integer(name, value, problems) for name, value in given.items()}
    there = {name for case in cases for name in case.names}
    titles: dict[int, str] = {}
    for name, value in integers.items():
        titles.setdefault(value, name)
    kept = {name: value for name, value in integers.items() if value}
    missing = [
        name
        for name, value in kept.items()
        # The name of a label whose structures are called otherwise.
        if name not in there and not (name == titles[value] and any(kept.get(other) == value for other in there))
    ]
    if missing:
        problems.append(f"nothing is called {', '.join(missing)}; the names are: {', '.join(sorted(there))}")
    problems += [f"the label {value} has no name" for value, name in titles.items() if value and not name]
    for alike in _alike(sorted(there | set(integers))):
        unsaid = [name for name in alike if name not in integers]
        if unsaid and any(kept.get(name) for name in alike):
            problems.append(f"{_quoted(alike)} differ only in capital letters or spaces, and not all have an integer")
    if problems:
        raise DatasetError(
            f"{path} does not fit:\n{joined(problems)}",
            hint="give every structure that is meant its integer: the same for several names of one thing, 0 for none",
        )
    labels = {"background": 0, **{name: value for value, name in titles.items() if value}}
    labels_of(labels, source=str(path))
    return Naming(labels=labels, values={name: value for name, value in kept.items() if name in there})


def _integer(name: str, value: Any, problems: list[str]) -> int:
    if isinstance(value, list):
        problems.append(
            f"{name!r} is a region, {value}: give each structure one integer, what lies inside a higher one, and write "
            "the regions into dataset.json after the import"
        )
    elif not re.fullmatch(r"-?\d+", str(value).strip()):
        problems.append(f"{name!r} must be an integer, found {value!r}")
    elif not _INT32.min <= int(value) <= _INT32.max:
        problems.append(f"{name!r}: {value} does not fit into 32 bits")
    else:
        return int(value)
    return 0


def _alike(names: Sequence[str]) -> list[list[str]]:
    """Groups of names that are the same but for capital letters and spaces."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_key(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _key(name: str) -> str:
    """Equal for names that are the same but for capital letters and spaces."""
    return "".join(name.split()).casefold()


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(f'"{name}"' for name in names)


def _where(name: str, cases: Sequence[DicomCase]) -> str:
    return str(next(one.path for case in cases for one in case.annotations if name in one.names))


def _example(names: Sequence[str]) -> dict[str, int]:
    """A beginning of what would do: names that are alike share an integer, the others follow."""
    result: dict[str, int] = {}
    numbers: dict[str, int] = {}
    for name in names:
        key = _key(name)
        if key and key not in _RESERVED:
            result[name] = numbers.setdefault(key, len(numbers) + 1)
    return result


__all__ = ["Naming", "names_by_size", "names_of_file"]
