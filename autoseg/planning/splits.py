"""Which cases train and which validate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.errors import SettingError, joined
from autoseg.schema.splits import Fold, Splits

SEED = 12345


def make_splits(
    ids: Sequence[str], *, folds: int = 5, seed: int = SEED, groups: Mapping[str, str] | None = None
) -> Splits:
    """Split cases into folds; every case validates once.

    Without groups these are the folds of scikit-learn's ``KFold(folds, shuffle=True, random_state=seed)`` over the
    sorted ids, and thus nnU-Net's. With ``groups`` (case id to group, such as a patient) all cases of a group
    validate in the same fold, and folds get as equal in cases as that allows.

    With fewer cases (or groups) than folds there are as many folds as cases.

    Raises:
        SettingError: fewer than two cases or groups, fewer than two folds, or a case without a group.
    """
    cases = sorted(set(ids))
    if folds < 2:
        raise SettingError(f"{folds} folds are not possible", hint="give --folds 2 or more, or train with -f all")
    if groups is None:
        groups = {case: case for case in cases}
    elif lacking := [case for case in cases if case not in groups]:
        raise SettingError(f"cases without a group:\n{joined(lacking)}", hint="give every case a group")
    if len({groups[case] for case in cases}) < 2:
        unit = "case" if len(cases) < 2 else "group"
        raise SettingError(f"one {unit} cannot be split into training and validation", hint="train with -f all")
    parts = _parts(cases, groups, folds, seed)
    return Splits(
        seed=seed,
        folds=tuple(Fold(train=tuple(c for c in cases if c not in part), val=tuple(sorted(part))) for part in parts),
    )


def _parts(cases: Sequence[str], groups: Mapping[str, str], folds: int, seed: int) -> list[set[str]]:
    members: dict[str, list[str]] = {}
    for case in cases:
        members.setdefault(groups[case], []).append(case)
    names = sorted(members)
    order = np.arange(len(names))
    np.random.RandomState(seed).shuffle(order)
    shuffled = [members[names[index]] for index in order]
    count = min(folds, len(names))
    if len(names) == len(cases):
        return [{case for group in part for case in group} for part in _even(shuffled, count)]
    parts: list[set[str]] = [set() for _ in range(count)]
    # The largest groups first, each into the emptiest fold; sorting is stable, so equal groups stay shuffled.
    for group in sorted(shuffled, key=len, reverse=True):
        min(parts, key=len).update(group)
    return parts


def _even(items: Sequence[list[str]], count: int) -> list[Sequence[list[str]]]:
    """Consecutive parts; the first ones are longer by one where the division has a rest."""
    sizes = [len(items) // count + (index < len(items) % count) for index in range(count)]
    ends = np.cumsum(sizes)
    return [items[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def read_splits(path: str | Path, ids: Sequence[str], *, folds: int = 5) -> Splits:
    """Read folds of the user's own, or groups to make folds from.

    The JSON is a list of ``{"train": [ids], "val": [ids]}`` (nnU-Net's ``splits_final.json``), the same under
    ``"folds"``, or an object from case id to group (also under ``"groups"``).

    Raises:
        SettingError: not readable, another form, unknown or missing cases, or a case on both sides of a fold.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(
            f"{path} cannot be read as JSON: {error}", hint="see the documentation of --splits"
        ) from error
    known = set(ids)
    if isinstance(data, dict) and "folds" not in data:
        return make_splits(ids, folds=folds, groups=_groups(path, data.get("groups", data)))
    entries = data["folds"] if isinstance(data, dict) else data
    problems: list[str] = []
    made = [_fold(index, entry, known, problems) for index, entry in enumerate(_list(entries))]
    if not made:
        problems.append("there are no folds")
    if problems:
        raise SettingError(f"{path} does not fit the dataset:\n{joined(problems)}", hint="correct the file")
    return Splits(seed=SEED, folds=tuple(made))


def _list(entries: Any) -> list[Any]:
    return entries if isinstance(entries, list) else []


def _groups(path: str | Path, data: Any) -> dict[str, str]:
    if not isinstance(data, dict) or not all(isinstance(group, str | int) for group in data.values()):
        raise SettingError(
            f"{path} has neither folds nor a group per case",
            hint='write [{"train": ["a"], "val": ["b"]}, ...] or {"a": "patient 1", "b": "patient 2"}',
        )
    return {str(case): str(group) for case, group in data.items()}


def _fold(index: int, entry: Any, known: set[str], problems: list[str]) -> Fold:
    sides: dict[str, tuple[str, ...]] = {}
    for side in ("train", "val"):
        given = entry.get(side) if isinstance(entry, dict) else None
        if not isinstance(given, list) or not given or not all(isinstance(case, str) for case in given):
            problems.append(f'fold {index} has no list of case ids under "{side}"')
            given = []
        unknown = sorted(set(given) - known)
        if unknown:
            problems.append(f"fold {index}, {side}: the dataset has no case {', '.join(unknown)}")
        sides[side] = tuple(sorted(set(given)))
    both = sorted(set(sides["train"]) & set(sides["val"]))
    if both:
        problems.append(f"fold {index}: in train and val at once: {', '.join(both)}")
    return Fold(train=sides["train"], val=sides["val"])
