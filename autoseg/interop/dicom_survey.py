"""What the annotations of each DICOM case mark: how much, where structures overlap, and what looks wrong.

Everything is known before the first file is written: labels are chosen by it, and warnings are of all cases, also of
those that an import that was stopped has written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise, product
from operator import itemgetter

import numpy as np

from autoseg.errors import AutosegError, DatasetError
from autoseg.io.dicom import Series
from autoseg.io.dicom_labels import Annotation, read_masks
from autoseg.log import get_logger, progress, table
from autoseg.parallel import map_cases

_LOG = get_logger(__name__)

# Rows of a table with a row per case; beyond, each structure has one row.
_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class DicomCase:
    """A series and what is annotated in it."""

    id: str
    series: Series
    annotations: tuple[Annotation, ...]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(name for one in self.annotations for name in one.names)


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What is marked in a case.

    ``voxels`` counts by the set of all names that mark a voxel, ``gaps`` the planes that a name leaves out between
    marked ones, ``voxel_volume`` is in mm3.
    """

    voxels: Mapping[frozenset[str], int]
    gaps: Mapping[str, int]
    voxel_volume: float

    def count(self, names: Iterable[str]) -> int:
        """The voxels that any of these names marks."""
        wanted = set(names)
        return sum(count for members, count in self.voxels.items() if members & wanted)


def survey(cases: Sequence[DicomCase], *, workers: int | None = 0) -> dict[str, Marks]:
    """Case id -> what is marked there; without the cases that cannot be read, which fail when they are written."""
    found = {}
    outcomes = map_cases(_marks, cases, workers=workers)
    for outcome in progress(outcomes, total=len(cases), label="structures"):
        try:
            found[outcome.item.id] = outcome.unwrap()
        except (AutosegError, OSError, ValueError) as error:
            if isinstance(error, AutosegError) and not isinstance(error, DatasetError):
                raise
    return {case.id: found[case.id] for case in cases if case.id in found}


def label_map(case: DicomCase, values: Mapping[str, int]) -> np.ndarray:
    """The label (z, y, x) of a case; where structures overlap, the highest integer wins.

    Args:
        values: name -> integer; what has none is left out.

    Raises:
        DatasetError: annotations that cannot be read, or that lie in other coordinates than the series.
    """
    members, codes = _combined(_masks(case), case.series.shape)
    return np.array([_winner(names, values) for names in members], dtype=np.int32)[codes]


def _winner(names: Iterable[str], values: Mapping[str, int]) -> int:
    """The integer of a voxel that all of these names mark: the highest; 0 where none has one."""
    return max((values[name] for name in names if name in values), default=0)


def _foreign_coordinates(case: DicomCase) -> list[Annotation]:
    """Annotations of other coordinates (frame of reference) than the series, where both say which."""
    own = case.series.frame_of_reference
    return [one for one in case.annotations if own and one.frames_of_reference - {own}]


def warn_of_marks(
    cases: Sequence[DicomCase], found: Mapping[str, Marks], labels: Mapping[str, int], values: Mapping[str, int]
) -> None:
    """Log what is odd: overlaps, labels without voxels, planes left out, other coordinates.

    Args:
        labels: name in dataset.json -> integer.
        values: name of a structure -> integer, of all that become labels.
    """
    for case in cases:
        for one in _foreign_coordinates(case):
            _LOG.warning(
                "%s is drawn in other coordinates (FrameOfReferenceUID) than the series that it is about: "
                "look whether the label of %s lies where it should",
                one.path,
                case.id,
            )
    lost: list[tuple[str, str, float, str]] = []
    empty: list[tuple[str, str]] = []
    gaps: list[tuple[str, str, int]] = []
    for case, (label, value) in product(cases, labels.items()):
        alike = {name for name in case.names if values.get(name) == value}
        if not alike or case.id not in found:
            continue
        marks = found[case.id]
        count = marks.count(alike)
        takers = _takers(marks, alike, value, values)
        planes = max(marks.gaps.get(name, 0) for name in alike)
        if not count:
            empty.append((case.id, label))
        if takers:
            most = takers.most_common(1)[0][0]
            lost.append((case.id, label, takers.total() / count, next(one for one in labels if labels[one] == most)))
        if planes:
            gaps.append((case.id, label, planes))
    if lost:
        shown = [
            (id_, name, _percent(share), to) for id_, name, share, to in sorted(lost, key=itemgetter(2), reverse=True)
        ]
        _LOG.warning(
            "structures overlap, and the higher integer wins (--labels gives integers; 0 leaves a structure out):\n%s",
            _table(shown, "lost", "mostly to"),
        )
    if empty:
        _LOG.warning("listed, but without a voxel, and so taken as absent there:\n%s", _table(empty))
    if gaps:
        _LOG.warning(
            "planes between marked ones are left out: have these structures drawn on every slice, or interpolated:\n%s",
            _table(sorted(gaps, key=itemgetter(2), reverse=True), "planes left out"),
        )


def _table(rows: Sequence[tuple[object, ...]], *columns: str) -> str:
    """(case, structure, ...) with the worst first: every row, or of many the first of each structure."""
    if len(rows) <= _ROWS:
        return table(rows, header=("case", "structure", *columns))
    counts = Counter(row[1] for row in rows)
    worst = {row[1]: row for row in reversed(rows)}
    return table(
        [(name, count, *worst[name][2:]) for name, count in counts.items()],
        header=("structure", "cases", *(f"{column} in the worst" for column in columns)),
    )


def _percent(share: float) -> str:
    """Rounded, but neither to nothing nor to all where that is not so."""
    if share == 1:
        return "100%"
    return f"{min(max(100 * share, 0.1), 99.9):.1f}%"


def _takers(marks: Marks, alike: Set[str], value: int, values: Mapping[str, int]) -> Counter[int]:
    """Integer -> voxels that it gets of what these names mark."""
    takers: Counter[int] = Counter()
    for members, count in marks.voxels.items():
        if members & alike:
            takers[_winner(members, values)] += count
    del takers[value]
    return takers


def _marks(case: DicomCase) -> Marks:
    gaps: dict[str, int] = {}

    def watched() -> Iterator[tuple[str, np.ndarray]]:
        for name, mask in _masks(case):
            gaps[name] = max(gaps.get(name, 0), _left_out(mask))
            yield name, mask

    members, codes = _combined(watched(), case.series.shape)
    counts = np.bincount(codes.ravel(), minlength=len(members))
    return Marks(
        voxels={names: int(count) for names, count in zip(members, counts, strict=True) if names and count},
        gaps=gaps,
        voxel_volume=case.series.geometry.voxel_size,
    )


def _masks(case: DicomCase) -> Iterator[tuple[str, np.ndarray]]:
    for one in _foreign_coordinates(case):
        if not one.series:
            raise DatasetError(
                f"{one.path} is drawn in other coordinates (FrameOfReferenceUID) than the series beside it, and names "
                "no series",
                hint="put it beside the series that it was drawn on",
            )
    for annotation in case.annotations:
        yield from read_masks(annotation, case.series.geometry, case.series.shape)


def _combined(
    masks: Iterable[tuple[str, np.ndarray]], shape: Sequence[int]
) -> tuple[tuple[frozenset[str], ...], np.ndarray]:
    """The sets of names that mark a voxel together, the empty one first, and the place of each voxel's set in them."""
    members: list[frozenset[str]] = [frozenset()]
    places = {members[0]: 0}
    codes = np.zeros(tuple(shape), dtype=np.uint16)
    for name, mask in masks:
        marked = np.flatnonzero(mask.any(axis=(1, 2)))
        # Most structures lie in few planes: the others need not be looked through.
        slab = slice(marked[0], marked[-1] + 1) if len(marked) else slice(0)
        before = codes[slab][mask[slab]]
        after = np.arange(len(members), dtype=np.uint32)
        for code in np.flatnonzero(np.bincount(before, minlength=len(members))).tolist():
            joined = members[code] | {name}
            if joined not in places:
                places[joined] = len(members)
                members.append(joined)
            after[code] = places[joined]
        if len(members) > np.iinfo(codes.dtype).max:
            codes = codes.astype(np.uint32)
        codes[slab][mask[slab]] = after[before]
    return tuple(members), codes


def _left_out(mask: np.ndarray) -> int:
    """Empty planes between two marked ones that lie over each other; parts that lie apart may have planes between."""
    marked = np.flatnonzero(mask.any(axis=(1, 2))).tolist()
    return sum(
        above - below - 1
        for below, above in pairwise(marked)
        if above - below > 1 and (mask[below] & mask[above]).any()
    )


__all__ = ["DicomCase", "Marks", "label_map", "survey", "warn_of_marks"]
