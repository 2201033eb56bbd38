"""Augmentation of patches: what is drawn (numpy) and what is done with it (torch, on any device).

Per sample the loader calls ``draw_spatial`` and reads ``source_extent`` voxels; on the device ``cut`` turns, zooms and
cuts each patch, ``apply_intensity`` changes the batch, and what is then left to mirror is mirrored. The recipe is
nnU-Net's default; all its numbers are the fields of ``Policy``. Importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoseg.augment.intensity import apply_intensity
    from autoseg.augment.policy import (
        Intensity,
        Policy,
        Spatial,
        draw_intensity,
        draw_spatial,
        make_policy,
        rotation_matrix,
        source_extent,
    )
    from autoseg.augment.spatial import cut

_HOMES = {
    "Intensity": "policy",
    "Policy": "policy",
    "Spatial": "policy",
    "apply_intensity": "intensity",
    "cut": "spatial",
    "draw_intensity": "policy",
    "draw_spatial": "policy",
    "make_policy": "policy",
    "rotation_matrix": "policy",
    "source_extent": "policy",
}

__all__ = [
    "Intensity",
    "Policy",
    "Spatial",
    "apply_intensity",
    "cut",
    "draw_intensity",
    "draw_spatial",
    "make_policy",
    "rotation_matrix",
    "source_extent",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
