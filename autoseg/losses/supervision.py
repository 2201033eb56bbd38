"""Deep supervision: one loss over all resolutions that a network predicts at."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from autoseg.errors import SettingError
from autoseg.losses import LOSSES
from autoseg.schema.dataset import Labels


def segmentation_loss(
    labels: Labels,
    *,
    batch_dice: bool,
    weights: tuple[float, ...] = (1.0,),
    name: str = "dice_ce",
    class_weights: tuple[float, ...] | None = None,
) -> Callable[[tuple[Tensor, ...], Tensor], Tensor]:
    """The training loss of a network.

    Args:
        labels: labels with several integers make it a loss over regions; an ignore label is masked.
        batch_dice: whether Dice sums run over the batch, or each sample has its own.
        weights: how much each output counts, finest first (``output_weights`` of the network).
        name: a name in ``LOSSES``.
        class_weights: per output of the network (background first, or per region), for the voxel term.

    Returns:
        A function of the outputs, logits (b, heads, *spatial) finest first, and the target (b, 1, *spatial) of
        internal indices at the finest resolution. It gives a scalar, and never reads an output whose weight is 0.
        A single output is taken as the finest of a network in evaluation mode and counts in full. A scalar after the
        logits is a loss term of the network's own and is added.

    Raises:
        SettingError: there is no loss of that name, another number of class weights, or (when called) the number of
            outputs is another one.
    """
    chosen = {} if class_weights is None else {"class_weights": class_weights}
    single = LOSSES.get(name)(labels, batch_dice=batch_dice, **chosen)

    def loss(outputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
        if len(outputs) == 1:
            return single(outputs[0], target)
        own = outputs[-1] if outputs[-1].ndim == 0 else None
        logits_only = outputs if own is None else outputs[:-1]
        if len(logits_only) != len(weights):
            raise SettingError(f"the loss was made for {len(weights)} outputs, the network gave {len(logits_only)}")
        terms = [
            weight * single(logits, downsample_nearest(target, tuple(logits.shape[2:])))
            for weight, logits in zip(weights, logits_only, strict=True)
            if weight > 0
        ]
        return torch.stack(terms if own is None else [*terms, own]).sum()

    return loss


def downsample_nearest(target: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(b, 1, *spatial) -> (b, 1, *shape): the voxel that holds the centre of each new one, as "nearest-exact"."""
    for axis, size in enumerate(shape, start=2):
        length = target.shape[axis]
        if size != length:
            # The integer form of floor((i + 1/2) length / size), free of rounding.
            centres = (2 * torch.arange(size, device=target.device) + 1) * length // (2 * size)
            target = target.index_select(axis, centres)
    return target
