"""Several collections as one: labels united by name, and for every case which of them somebody looked for.

An integer of a label file is known by the labels and regions that it belongs to. What belongs to the same ones in two
sources gets the same integer: the first of its own that is free, or else the next free one. So regions of two sources
unite too, where they split a whole in different ways: which parts a voxel may then belong to follows from what was
annotated (``Labels.candidates``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from autoseg.errors import DatasetError, joined
from autoseg.interop.collection import Collection, Entry
from autoseg.io.dataset_json import labels_of
from autoseg.io.images import read_shape
from autoseg.schema.dataset import Labels

_ANNOTATED, _ORDER = "annotated", "regions_class_order"
_NUMBERED = re.compile(r"Dataset\d+_(?=.)")

# The names that an integer belongs to, and its place among those of its source that belong to the same ones.
_Key = tuple[frozenset[str], int]


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A collection, what stands before its case ids, and the united integer for each of its own."""

    prefix: str
    collection: Collection
    labels: Labels
    integers: Mapping[int, int]


def merge_collections(collections: Sequence[Collection], name: str) -> Collection:
    """One collection with the cases of all.

    Every case id begins with the name of its source. Channels are those of the first source, in its order.

    Raises:
        DatasetError: sources contradict each other; all contradictions are listed.
    """
    problems: list[str] = []
    labels = [labels_of(one.labels, one.facts.get(_ORDER), source=one.name) for one in collections]
    names = _ordered(labels, problems)
    _check_kinds(collections, labels, names, problems)
    _check_dimensions(collections, problems)
    channels = [_channel_order(one, collections[0], problems) for one in collections]
    keys = _united(labels)
    sources = [
        _Source(prefix=prefix, collection=one, labels=own, integers=_integers(own, keys))
        for prefix, one, own in zip(_prefixes(collections), collections, labels, strict=True)
    ]
    entries = [
        _entry(entry, source, order, problems)
        for source, order in zip(sources, channels, strict=True)
        for entry in source.collection.entries
    ]
    problems += _repeated(entries)
    facts = _facts(sources, names, taken={0, *keys.values()})
    if problems:
        raise DatasetError(
            f"{' and '.join(one.name for one in collections)} cannot become one dataset:\n"
            f"{joined(list(dict.fromkeys(problems)))}",
            hint="rename labels or channels in a copy of dataset.json, or leave a source out",
        )
    return Collection(
        name=name,
        channels=collections[0].channels,
        labels=_description(names, keys),
        entries=tuple(entries),
        facts=facts,
    )


def _ordered(labels: Sequence[Labels], problems: list[str]) -> tuple[str, ...]:
    """All names as they come, but each region after those that it is written over in a source, such as its whole."""
    names = tuple(dict.fromkeys(label for one in labels for label in one.names))
    under: dict[str, set[str]] = {name: set() for name in names}
    for own in labels:
        for lower, upper in combinations(own.foreground, 2):
            if set(lower.values) & set(upper.values):
                under[upper.name].add(lower.name)
    result: dict[str, None] = {}
    while len(result) < len(names):
        rest = [name for name in names if name not in result]
        chosen = next((name for name in rest if under[name] <= result.keys()), None)
        if chosen is None:
            shown = " and ".join(f'"{name}"' for name in rest if any(name in under[other] for other in rest))
            problems.append(f"{shown} are written over one another in different orders: see regions_class_order")
            return names
        result[chosen] = None
    return tuple(result)


def _check_dimensions(collections: Sequence[Collection], problems: list[str]) -> None:
    """Pictures and volumes are not learnt together; one volume tells what a source has."""
    found: dict[bool, list[str]] = {}
    for collection in collections:
        files = [entry.images[0] for entry in collection.entries if entry.images]
        try:
            found.setdefault(any(read_shape(path)[1] > 1 for path in files), []).append(collection.name)
        except DatasetError as error:
            problems.append(error.message)
    if len(found) > 1:
        problems.append(f"{', '.join(found[False])} has pictures (2D), {', '.join(found[True])} has volumes (3D)")


def _check_kinds(
    collections: Sequence[Collection], labels: Sequence[Labels], names: Iterable[str], problems: list[str]
) -> None:
    """A name means the same kind of thing everywhere, and is spelt in one way."""
    regions: dict[str, dict[bool, list[str]]] = {name: {} for name in names}
    for collection, own in zip(collections, labels, strict=True):
        for label in own.foreground:
            regions[label.name].setdefault(len(label.values) > 1, []).append(collection.name)
    for name, kinds in regions.items():
        if len(kinds) > 1:
            problems.append(
                f'"{name}" is a region in {", ".join(kinds[True])} and a label with one integer in '
                f"{', '.join(kinds[False])}"
            )
    spellings: dict[str, list[str]] = {}
    for name in regions:
        spellings.setdefault(name.casefold(), []).append(name)
    for alike in spellings.values():
        if len(alike) > 1:
            shown = " and ".join(f'"{name}"' for name in alike)
            problems.append(f"{shown} differ only in small and capital letters")


def _channel_order(collection: Collection, first: Collection, problems: list[str]) -> tuple[int, ...]:
    """Which image of a case becomes channel 0, 1, ... of the first source."""
    own, wanted = ([name.casefold() for name in one.channels] for one in (collection, first))
    if own == wanted:
        return tuple(range(len(own)))
    if len(set(own)) == len(own) and sorted(own) == sorted(wanted):
        return tuple(own.index(name) for name in wanted)
    problems.append(
        f"{first.name} has the channels {', '.join(first.channels)}, {collection.name} has "
        f"{', '.join(collection.channels)}"
    )
    return ()


def _keys(labels: Labels) -> dict[int, _Key]:
    seen: Counter[frozenset[str]] = Counter()
    result = {}
    for value in labels.leaves[1:]:
        members = frozenset(label.name for label in labels.foreground if value in label.values)
        result[value] = (members, seen[members])
        seen[members] += 1
    return result


def _united(labels: Sequence[Labels]) -> dict[_Key | None, int]:
    """The united integer of each key; None is the ignore label, if there is one."""
    united: dict[_Key | None, int] = {}
    taken = {0}
    found = [pair for own in labels for pair in _keys(own).items()]
    for value, key in found:
        if key not in united and value not in taken:
            united[key] = value
            taken.add(value)
    for _, key in found:
        if key not in united:
            united[key] = max(taken) + 1
            taken.add(united[key])
    ignored = next((own.ignore for own in labels if own.ignore is not None), None)
    if ignored is not None:
        united[None] = ignored if ignored not in taken else max(taken) + 1
    return united


def _integers(labels: Labels, united: Mapping[_Key | None, int]) -> dict[int, int]:
    found = {value: united[key] for value, key in _keys(labels).items()}
    return found if labels.ignore is None else {**found, labels.ignore: united[None]}


def _prefixes(collections: Sequence[Collection]) -> list[str]:
    """``Liver`` for ``Dataset003_Liver``; the whole name where that would be the same for two."""
    short = [_NUMBERED.sub("", one.name) for one in collections]
    counts = Counter(short)
    return [one.name if counts[word] > 1 else word for word, one in zip(short, collections, strict=True)]


def _entry(entry: Entry, source: _Source, order: tuple[int, ...], problems: list[str]) -> Entry:
    if entry.read is not None:
        problems.append(f"{source.collection.name} is read from DICOM: import it by itself first")
    images = entry.images
    if order and order != tuple(range(len(order))):
        if len(images) == len(order):
            images = tuple(images[index] for index in order)
        else:
            problems.append(f"{source.collection.name} has its channels in another order, inside of its files")
    changed = any(before != after for before, after in source.integers.items())
    return replace(
        entry,
        id=f"{source.prefix}_{entry.id}",
        images=images,
        integers=dict(source.integers) if changed and entry.label is not None else None,
    )


def _repeated(entries: Sequence[Entry]) -> list[str]:
    counts = Counter((entry.id, entry.test) for entry in entries)
    twice = [id_ for (id_, _), count in counts.items() if count > 1]
    more = f" and {len(twice) - 3} more" if len(twice) > 3 else ""
    return [f"several cases would have the same name: {', '.join(twice[:3])}{more}"] if twice else []


def _facts(sources: Sequence[_Source], names: tuple[str, ...], taken: set[int]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if any(source.labels.has_regions for source in sources):
        facts[_ORDER] = _output_integers(names, sources, taken)
    annotated = {
        f"{source.prefix}_{entry.id}": looked_for
        for source in sources
        for entry in source.collection.entries
        if entry.label is not None and set(looked_for := _looked_for(entry, source)) != set(names)
    }
    if annotated:
        facts[_ANNOTATED] = annotated
    facts["merged_from"] = {
        source.prefix: {
            "name": source.collection.name,
            "integers": {str(before): after for before, after in source.integers.items()},
            **{key: value for key, value in source.collection.facts.items() if key not in (_ANNOTATED, _ORDER)},
        }
        for source in sources
    }
    return facts


def _looked_for(entry: Entry, source: _Source) -> list[str]:
    listed = source.collection.facts.get(_ANNOTATED, {}).get(entry.id)
    return [name for name in source.labels.names if listed is None or name in listed]


def _output_integers(names: Sequence[str], sources: Sequence[_Source], taken: set[int]) -> list[int]:
    """What regions and labels are written as: as in the first source that has them, if that integer is not another's.

    Args:
        taken: all integers of the united label files.
    """
    # By source and integer there: what a source writes as the same integer stays the same.
    written: dict[tuple[str, int], int] = {}
    result = []
    for name in names:
        source = next(source for source in sources if name in source.labels.names)
        labels = source.labels
        place = labels.names.index(name)
        own = labels.regions_class_order[place] if labels.regions_class_order else labels.foreground[place].values[0]
        if (source.prefix, own) not in written:
            others = set(written.values()) | (set() if own in source.integers else taken)
            wanted = source.integers.get(own, own)
            written[source.prefix, own] = wanted if wanted not in others else max(taken.union(others)) + 1
        result.append(written[source.prefix, own])
    return result


def _description(names: Iterable[str], united: Mapping[_Key | None, int]) -> dict[str, Any]:
    content: dict[str, Any] = {"background": 0}
    for name in names:
        values = sorted(value for key, value in united.items() if key is not None and name in key[0])
        # What has one integer in every source can have several here: in one source it is a part of a region.
        content[name] = values if len(values) > 1 else values[0]
    return content if None not in united else {**content, "ignore": united[None]}


__all__ = ["merge_collections"]
