"""What a training minimises, and on which patches: the choices of the user beside the recipe."""

from __future__ import annotations

from dataclasses import dataclass

from autoseg.losses import segmentation_loss
from autoseg.schema.plan import Configuration, Plan
from autoseg.training.step import Loss


@dataclass(frozen=True, kw_only=True)
class Objective:
    """``loss`` is a name in ``losses.LOSSES``, ``sampling`` one in ``sampling.SAMPLINGS``.

    ``class_weights``: one per output of the network, background first, or per region; None weighs all alike.
    """

    loss: str = "dice_ce"
    sampling: str = "default"
    class_weights: tuple[float, ...] | None = None

    def loss_of(self, plan: Plan, configuration: Configuration, *, weights: tuple[float, ...] = (1.0,)) -> Loss:
        """The loss of a network whose outputs count with ``weights``; errors as ``segmentation_loss``."""
        return segmentation_loss(
            plan.labels,
            batch_dice=configuration.batch_dice,
            weights=weights,
            name=self.loss,
            class_weights=self.class_weights,
        )
