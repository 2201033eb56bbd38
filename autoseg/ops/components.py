"""Connected components of binary masks (z, y, x); voxels that share a face, an edge or a corner are connected."""

from __future__ import annotations

from typing import Final

import cc3d
import numpy as np

_FACES_EDGES_CORNERS: Final = 26
_FACES: Final = 6


def label_components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the components 1, 2, ...: (unsigned integers, how many there are)."""
    labels = cc3d.connected_components(_thick(_as_bool(mask)), connectivity=_FACES_EDGES_CORNERS)
    labels = labels[_extent(mask)]
    return labels, int(labels.max(initial=0))


def _thick(mask: np.ndarray) -> np.ndarray:
    """The mask with a plane of background behind y and x where it is one voxel thin.

    cc3d 4.1 reserves too little room for the components of some such masks and gives up.
    """
    room = [(0, 0), *((0, 1 if length == 1 else 0) for length in mask.shape[1:])]
    thin = any(length == 1 for length in mask.shape[1:])
    # It refuses read-only arrays too, as pictures are read.
    return np.require(np.pad(mask, room) if thin else mask, requirements=["C", "W"])


def _extent(mask: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(length) for length in mask.shape)


def count_components(mask: np.ndarray) -> int:
    """How many components a mask has."""
    return label_components(mask)[1]


def count_class_components(label: np.ndarray, largest: int) -> list[tuple[int, int]]:
    """(voxels, components) of every value 0 to ``largest`` of a label map (z, y, x) of small integers, in one pass.

    Voxels of different values are never connected; 0 and negative values have no components.
    """
    numbered = cc3d.connected_components(_thick(label), connectivity=_FACES_EDGES_CORNERS)[_extent(label)]
    # Each number lies in one class: whichever of its voxels is written last says which.
    owners = np.zeros(int(numbered.max(initial=0)) + 1, dtype=label.dtype)
    voxels = np.zeros(largest + 1, dtype=np.int64)
    for numbers, plane in zip(numbered, label, strict=True):
        inside = plane > 0
        values = plane[inside]
        owners[numbers[inside]] = values
        voxels += np.bincount(values, minlength=largest + 1)[: largest + 1]
    components = np.bincount(owners[owners > 0], minlength=largest + 1)
    return [(int(voxels[value]), int(components[value])) for value in range(largest + 1)]


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The component with most voxels as a bool mask; components of the same largest size all stay."""
    # Imported here, because it brings packages that nothing else in preparation needs.
    from acvl_utils.morphology.morphology_helper import remove_all_but_largest_component_cc3d

    kept = remove_all_but_largest_component_cc3d(_thick(_as_bool(mask)), connectivity=_FACES_EDGES_CORNERS)
    return kept[_extent(mask)]


def remove_small(mask: np.ndarray, minimum: int) -> np.ndarray:
    """The components of at least ``minimum`` voxels as a bool mask."""
    from acvl_utils.morphology.morphology_helper import remove_components_cc3d

    thick = _thick(_as_bool(mask))
    kept = remove_components_cc3d(thick, minimum, threshold_type="min", connectivity=_FACES_EDGES_CORNERS)
    return kept[_extent(mask)]


def _as_bool(mask: np.ndarray) -> np.ndarray:
    return mask.astype(bool, copy=False)


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill background that no path over voxel faces joins to the border (as ``scipy.ndimage.binary_fill_holes``)."""
    filled = np.array(mask, dtype=bool)
    if filled.all() or not filled.any():
        return filled
    outside = cc3d.connected_components(~filled, connectivity=_FACES)
    enclosed = np.ones(int(outside.max()) + 1, dtype=bool)
    for axis in range(filled.ndim):
        for end in (0, -1):
            enclosed[np.unique(np.take(outside, end, axis=axis))] = False
    # Number 0 is the mask itself, whether or not it touches the border.
    enclosed[0] = True
    return enclosed[outside]
