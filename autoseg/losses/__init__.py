"""Training losses by name, and the counts behind the online Dice. Importing this package does not import torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from autoseg.registry import Registry

if TYPE_CHECKING:
    from autoseg.losses.counts import dice_counts
    from autoseg.losses.supervision import segmentation_loss

# A loss is a factory: (labels, *, batch_dice) -> function of one output's logits and its target. It is also given
# ``class_weights`` where the user chose some.
LOSSES = Registry(
    "loss",
    {
        "dice_ce": "autoseg.losses.mixed:dice_ce",
        "dice_topk": "autoseg.losses.mixed:dice_topk",
        "dice_focal": "autoseg.losses.mixed:dice_focal",
        "tversky": "autoseg.losses.mixed:tversky",
        "small_objects": "autoseg.losses.mixed:small_objects",
    },
    plugins="autoseg.losses",
)

_HOMES = {
    "dice_counts": "autoseg.losses.counts",
    "segmentation_loss": "autoseg.losses.supervision",
}

__all__ = ["LOSSES", "dice_counts", "segmentation_loss"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
