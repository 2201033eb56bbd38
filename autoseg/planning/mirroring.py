"""Which axes may be mirrored: not left and right where labels tell the sides apart."""

from __future__ import annotations

import re

from autoseg.schema.dataset import Labels
from autoseg.schema.fingerprint import Shape
from autoseg.schema.plan import Configuration, Plan

_WORDS = {"left": "left", "right": "right", "links": "left", "rechts": "right"}
# Abbreviations can mean anything; they count only where the other side exists too.
_SHORT = {"l": "left", "r": "right", "lt": "left", "rt": "right", "lh": "left", "rh": "right"}
_TOKEN = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
# In (z, y, x) arrays of medical images x runs between left and right.
_LEFT_RIGHT = 2


def mirror_axes(plan: Plan, configuration: Configuration) -> tuple[Shape, str]:
    """Axes of the patch (0 .. ndim - 1) that training and prediction may mirror, and the reason if one is missing.

    The images are taken as stored with x between left and right, as axial and coronal scans are.
    """
    axes = tuple(range(configuration.ndim))
    names = sided_labels(plan.labels)
    # A 2D configuration lacks the first transposed axis.
    blocked = plan.transpose.index(_LEFT_RIGHT) - (3 - configuration.ndim)
    if not names or blocked < 0:
        return axes, ""
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return (
        tuple(axis for axis in axes if axis != blocked),
        f"labels tell left from right ({shown}), so the left-right axis (axis {blocked} of the patch) is not mirrored",
    )


def sided_labels(labels: Labels) -> tuple[str, ...]:
    """Names of the labels that belong to one side of the body."""
    sides = {name: _side(name) for name in labels.names}
    parts = set(sides.values())
    found = []
    for name, (side, rest, certain) in sides.items():
        other = {"left": "right", "right": "left"}.get(side)
        if other and (certain or any(part[0] == other and part[1] == rest for part in parts)):
            found.append(name)
    return tuple(found)


def _side(name: str) -> tuple[str, tuple[str, ...], bool]:
    """The side ("" if none), the name without it, and whether the word is beyond doubt."""
    tokens = [token.lower() for token in _TOKEN.findall(name)]
    for position, token in enumerate(tokens):
        if side := _WORDS.get(token) or _SHORT.get(token):
            return side, (*tokens[:position], *tokens[position + 1 :]), token in _WORDS
        for word, side in _WORDS.items():
            # "leftkidney" beside "rightkidney"
            if token.startswith(word):
                return side, (*tokens[:position], token.removeprefix(word), *tokens[position + 1 :]), False
    return "", tuple(tokens), False
